#include <hydrapack/activation.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include <unistd.h>

#include <hydrapack/session.h>

#include "files.h"
#include "manifest.h"

namespace hydrapack {
namespace {

namespace fs = std::filesystem;

constexpr char kCurrent[] = "current", kPrevious[] = "previous", kFolder[] = "package-";

// A folder of its own name. Throws filesystem_error.
fs::path new_folder(const fs::path& packages) {
  std::string name = packages / (std::string(kFolder) + "XXXXXX");
  if (::mkdtemp(name.data()) == nullptr) {
    throw fs::filesystem_error(
        "mkdtemp", packages, std::error_code(errno, std::generic_category()));
  }
  return name;
}

// Throws filesystem_error.
Error copy(const fs::path& from, const fs::path& to, const Manifest& manifest) {
  for (const ManifestFile& file : manifest.files) {
    fs::copy_file(from / file.name, to / file.name);
    const Error error = check_file(to / file.name, file.bytes, file.sha256, true);
    if (!error.ok()) return error;
    on_disk(to / file.name);
  }
  for (const char* name : {"manifest.json", "manifest.sig"}) {
    if (!fs::exists(from / name)) continue;
    fs::copy_file(from / name, to / name);
    on_disk(to / name);
  }
  fs::permissions(to, fs::perms(0755));
  on_disk(to);
  return {};
}

// Throws filesystem_error.
void link(const fs::path& packages, const char* name, const fs::path& folder) {
  const fs::path partial = packages / ".link";
  fs::remove(partial);
  fs::create_directory_symlink(folder.filename(), partial);
  fs::rename(partial, packages / name);
}

void sweep(const fs::path& packages) {
  std::error_code ignored;
  const fs::path current = fs::canonical(packages / kCurrent, ignored);
  const fs::path previous = fs::canonical(packages / kPrevious, ignored);
  std::vector<fs::path> unnamed;
  for (const auto& entry : fs::directory_iterator(packages)) {
    const fs::path path = fs::canonical(entry.path(), ignored);
    const bool ours = entry.path().filename().string().rfind(kFolder, 0) == 0;
    if (ours && path != current && path != previous) unnamed.push_back(entry.path());
  }
  for (const fs::path& path : unnamed) fs::remove_all(path, ignored);
}

// Throws filesystem_error.
Result<std::string> switch_to(const fs::path& packages, const fs::path& package) {
  const auto text = read_text(package / "manifest.json");
  if (!text.ok()) return text.error();
  const auto manifest = parse_manifest(text.value(), package / "manifest.json", true);
  if (!manifest.ok()) return manifest.error();
  fs::create_directories(packages);
  fs::path target = fs::canonical(package);
  const bool is_there = target.parent_path() == fs::canonical(packages);
  std::vector<std::pair<const char*, fs::path>> links;
  if (fs::exists(packages / kCurrent)) {
    links.emplace_back(kPrevious, fs::canonical(packages / kCurrent));
  }
  if (is_there && !links.empty() && links[0].second == target) return target.string();
  if (!is_there) {
    target = new_folder(packages);
    const Error error = copy(package, target, manifest.value());
    if (!error.ok()) return error;
  }
  // One that is there already is named first: a kill in between might leave it without a name.
  links.emplace(is_there ? links.begin() : links.end(), kCurrent, target);
  for (const auto& [name, folder] : links) link(packages, name, folder);
  // A loss of power finds no link to what was not written.
  on_disk(packages);
  sweep(packages);
  return target.string();
}

}  // namespace

Result<std::string> activate(const std::string& packages, const std::string& package) {
  try {
    return switch_to(packages, package);
  } catch (const fs::filesystem_error& error) {
    return Error{Code::Io, packages + ": cannot be written: " + error.code().message()};
  }
}

Result<LastGood> open_last_good(
    const std::string& model, const std::string& packages, OpenOptions options) {
  options.self_test = true;
  options.check_heads = true;
  auto current = Session::open(model, packages + "/" + kCurrent, options);
  if (current.ok()) return LastGood{std::move(current.value()), false};
  auto previous = Session::open(model, packages + "/" + kPrevious, options);
  if (!previous.ok()) return current.error();
  return LastGood{std::move(previous.value()), true};
}

}  // namespace hydrapack
