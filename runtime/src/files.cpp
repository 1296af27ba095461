#include "files.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "sha256.h"

namespace hydrapack {
namespace {

constexpr int64_t kMaxFile = int64_t{64} << 20;

Error not_read(const std::string& path, int reason) {
  if (reason == ENOENT || reason == ENOTDIR) return {Code::NotFound, path + ": no such file"};
  return {Code::Io, path + ": cannot be read: " + std::strerror(reason)};
}

// All bytes of a file, piece by piece, to a function of (data, size).
template <typename Take>
Error read_file(const std::string& path, Take take) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(
      std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) return not_read(path, errno);
  std::vector<char> piece(1 << 18);
  size_t size = 0;
  while ((size = std::fread(piece.data(), 1, piece.size(), file.get())) > 0) {
    if (!take(piece.data(), size)) return {};
  }
  if (std::ferror(file.get()) != 0) return not_read(path, errno);
  return {};
}

}  // namespace

Result<int64_t> file_bytes(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return not_read(path, errno);
  if (!S_ISREG(info.st_mode)) return Error{Code::Io, path + ": is no file"};
  return static_cast<int64_t>(info.st_size);
}

bool on_disk(const std::string& path) {
  const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (handle < 0) return false;
  const bool done = ::fsync(handle) == 0;
  ::close(handle);
  return done;
}

Result<std::string> read_bytes(const std::string& path, int64_t most) {
  const auto size = file_bytes(path);
  if (!size.ok()) return size.error();
  std::string data;
  if (size.value() <= most) {
    const Error error = read_file(path, [&](const char* piece, size_t count) {
      data.append(piece, count);
      return static_cast<int64_t>(data.size()) <= most;
    });
    if (!error.ok()) return error;
  }
  if (size.value() > most || static_cast<int64_t>(data.size()) > most) {
    return Error{Code::Invalid, path + ": is larger than " + std::to_string(most >> 20) + " MiB"};
  }
  return data;
}

Result<std::string> read_text(const std::string& path) { return read_bytes(path, kMaxFile); }

Error check_file(
    const std::string& path, int64_t bytes, const std::string& sha256, bool check_digest) {
  const auto size = file_bytes(path);
  if (!size.ok()) return size.error();
  if (size.value() != bytes) {
    return {
        Code::Mismatch,
        path + ": has " + std::to_string(size.value()) + " bytes, not the " +
            std::to_string(bytes) + " stated"};
  }
  if (!check_digest) return {};
  const auto digest = file_sha256(path);
  if (!digest.ok()) return digest.error();
  if (digest.value() != sha256) return {Code::Mismatch, path + ": is not the file described"};
  return {};
}

Result<std::string> file_sha256(const std::string& path) {
  Sha256 digest;
  const Error error = read_file(path, [&](const char* data, size_t count) {
    digest.update(data, count);
    return true;
  });
  if (!error.ok()) return error;
  return digest.hex();
}

Result<std::shared_ptr<OpenFile>> OpenFile::open(const std::string& path) {
  const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (handle < 0) return not_read(path, errno);
  return std::make_shared<OpenFile>(handle);
}

OpenFile::~OpenFile() { ::close(handle_); }

std::string OpenFile::sha256(const std::vector<Span>& parts) const {
  Sha256 digest;
  std::vector<char> piece(1 << 18);
  for (Span part : parts) {
    while (part.start < part.end) {
      const size_t wanted = std::min<size_t>(piece.size(), part.end - part.start);
      const ssize_t count = ::pread(handle_, piece.data(), wanted, part.start);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;
      digest.update(piece.data(), static_cast<size_t>(count));
      part.start += count;
    }
  }
  return digest.hex();
}

Result<std::string> check_model_file(const std::string& model, bool check_digest) {
  const auto size = file_bytes(model);
  if (!size.ok()) return size.error();
  const std::string path = model + ".json";
  const auto text = read_text(path);
  if (!text.ok() && text.error().code == Code::NotFound) {
    if (!check_digest) return std::string();
    return Error{
        Code::NotFound,
        path + ": missing; it has the SHA-256 of the program: keep it beside, or open without digests"};
  }
  if (!text.ok()) return text.error();
  const auto parsed = parse_json(text.value(), path);
  if (!parsed.ok()) return parsed.error();
  const auto& json = parsed.value();
  const bool fits = json.is_object() && json.contains("bytes") && json.contains("sha256") &&
      json["bytes"].is_number_unsigned() && json["bytes"].get<uint64_t>() < (uint64_t{1} << 40) &&
      json["sha256"].is_string();
  const std::string digest = fits ? json["sha256"].get<std::string>() : "";
  if (digest.size() != 64 || digest.find_first_not_of("0123456789abcdef") != std::string::npos) {
    return Error{Code::Invalid, path + ": does not give bytes and sha256 (64 hex digits)"};
  }
  const Error error = check_file(model, json["bytes"].get<int64_t>(), digest, check_digest);
  if (!error.ok()) return error;
  return digest;
}

}  // namespace hydrapack
