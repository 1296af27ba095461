#include "manifest.h"

#include <algorithm>
#include <limits>
#include <set>

#include "json.h"
#include "reader.h"
#include "sha256.h"

namespace hydrapack {
namespace {

constexpr int64_t kMaxHeads = 4096, kMaxRank = 65536;
constexpr int64_t kMaxBytes = (int64_t{1} << 40) - 1;
constexpr int64_t kMaxPiece = (int64_t{1} << 31) - 1;
constexpr size_t kMaxId = 1000, kMaxPieces = 8;

void read_generation(const Reader& generation, Task& task) {
  task.max_new_tokens = generation.at("max_new_tokens").integer(1, kMaxTokens);
  const Reader temperature = generation.at("temperature"), top_p = generation.at("top_p");
  const double heat = temperature.number(), share = top_p.number();
  if (!(heat >= 0 && heat <= 100)) temperature.fail("must be from 0 to 100");
  task.sampling.top_k = generation.at("top_k").integer(0, kMaxTokens);
  if (!(share > 0 && share <= 1)) top_p.fail("must be above 0, at most 1");
  task.sampling.temperature = static_cast<float>(heat);
  // Above 0 it must stay.
  task.sampling.top_p = std::max(static_cast<float>(share), std::numeric_limits<float>::min());
}

ManifestTask read_task(const Reader& task, const std::vector<int64_t>& heads) {
  ManifestTask found;
  found.shown.name = task.at("name").text(1, kMaxTaskName);
  const Reader prompt = task.at("prompt_template");
  found.shown.prompt_template = prompt.text(0, kMaxText);
  const size_t hole = found.shown.prompt_template.find("{input}");
  if (hole == std::string::npos ||
      found.shown.prompt_template.find("{input}", hole + 1) != std::string::npos) {
    prompt.fail("must hold {input} exactly once");
  }
  for (const Reader& stop : task.at("stop").list(0)) {
    found.shown.stop.push_back(stop.text(1, kMaxText));
  }
  read_generation(task.at("generation"), found.shown);
  const Reader language = task.at("language");
  if (!language.is_null()) found.shown.language = language.text(0, kMaxText);
  const Reader route = task.at("route");
  const auto entries = route.list(1);
  if (entries.size() != heads.size()) route.fail("must have an entry for each module");
  for (size_t i = 0; i < std::min(heads.size(), entries.size()); i++) {
    found.route.push_back(entries[i].integer(0, heads[i] - 1));
  }
  if (task.has("head_sha256")) found.head_sha256 = task.at("head_sha256").digest_or_null();
  return found;
}

void read_files(const Reader& files, Manifest& manifest) {
  std::set<std::string> seen;
  for (const Reader& file : files.list(1)) {
    const std::string name = file.at("name").text(0, kMaxText);
    const int64_t bytes = file.at("bytes").integer(0, kMaxBytes);
    const std::string digest = file.at("sha256").digest();
    if (!is_plain_name(name) || name == "manifest.json" || !seen.insert(name).second) {
      file.at("name").fail("must be a plain file name, each once");
    }
    manifest.files.push_back({name, bytes, digest});
  }
  if (seen.count("adapters.pte") == 0) files.fail("do not name adapters.pte");
}

// Where the heads lie, once all else is read.
void read_head_banks(const Reader& root, Manifest& manifest) {
  const bool known = root.has("head_banks") && !root.at("head_banks").is_null();
  const Reader banks = known ? root.at("head_banks") : root;
  std::vector<Span> spans;
  if (known) {
    for (const Reader& offset : banks.at("offsets").list(1)) {
      const int64_t start = offset.integer(0, kMaxBytes);
      spans.push_back({start, start});
    }
    manifest.shared_sha256 = banks.at("shared_sha256").digest();
  }
  const auto modules = root.at("modules").list(1);
  for (size_t i = 0; i < manifest.modules.size(); i++) {
    auto& own = manifest.first_heads.emplace_back();
    if (!modules[i].has("pieces")) continue;
    const Reader pieces = modules[i].at("pieces");
    if (pieces.size() > kMaxPieces) pieces.fail("are more than 8");
    for (const Reader& piece : pieces.list(0)) {
      const auto numbers = piece.list(2);
      if (numbers.size() != 2) piece.fail("must be the number of a bank and bytes");
      if (!root.ok()) return;
      const int64_t bank = numbers[0].integer(0, kMaxPiece);
      const int64_t bytes = numbers[1].integer(0, kMaxPiece);
      if (bank >= static_cast<int64_t>(spans.size())) return piece.fail("its bank is not there");
      Span& whole = spans[static_cast<size_t>(bank)];
      own.push_back({whole.end, whole.end + bytes});
      whole.end += manifest.modules[i] * bytes;
    }
  }
  if (!known || !root.ok()) return;
  spans.push_back({manifest.file("adapters.pte")->bytes, 0});
  int64_t at = 0;
  for (const Span& bank : spans) {
    if (bank.start < at) return banks.fail("do not lie one after the other in the file");
    manifest.shared.push_back({at, bank.start});
    at = bank.end;
  }
  for (const ManifestTask& task : manifest.tasks) {
    if (task.head_sha256.empty()) banks.fail("task " + task.shown.name + " has no head_sha256");
  }
}

void check_names(const Reader& tasks, const Reader& fallback, const Manifest& manifest) {
  std::set<std::string> names;
  for (const ManifestTask& task : manifest.tasks) {
    if (!names.insert(task.shown.name).second) {
      tasks.fail("the name " + task.shown.name + " stands twice");
    }
  }
  const std::string& name = manifest.fallback;
  if (name != "error" && name != "base" && names.count(name) == 0) {
    fallback.fail("is neither error, base nor a task");
  }
}

Error check_package_digest(
    const std::string& text, const std::string& stated, const std::string& where) {
  // A line of its own at the top level, as hydrapack writes it: no string can hold a bare newline.
  const std::string key = "\n  \"package_digest\": \"";
  size_t start = 0;
  do {
    start = text.find(key, start);
    if (start == std::string::npos) {
      return {Code::Invalid, where + ": is not written as hydrapack writes it"};
    }
    start += key.size();
  } while (std::min(text.find_first_not_of(kHex, start), text.size()) < start + 64);
  Sha256 digest;
  digest.update(text.data(), start);
  digest.update(text.data() + start + 64, text.size() - start - 64);
  if (digest.hex() != stated) {
    return {Code::Mismatch, where + ": package_digest does not fit: the file was changed"};
  }
  return {};
}

}  // namespace

bool is_plain_name(const std::string& name) {
  constexpr char kLetters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
  return !name.empty() && name.size() <= kMaxTaskName &&
      std::string(kLetters).find(name[0]) != std::string::npos &&
      name.find_first_not_of(std::string(kLetters) + "._-") == std::string::npos;
}

Result<const ManifestTask*> Manifest::find(const std::string& name) const {
  const auto named = [&](const std::string& wanted) -> const ManifestTask* {
    for (const ManifestTask& task : tasks) {
      if (task.shown.name == wanted) return &task;
    }
    return nullptr;
  };
  if (tasks.empty()) {
    return Error{Code::NotFound, "unknown task '" + name + "': the session has no package"};
  }
  const ManifestTask* task = named(name);
  if (task != nullptr || fallback == "base") return task;
  if (fallback != "error") return named(fallback);
  std::string known;
  for (const ManifestTask& each : tasks) known += (known.empty() ? "" : ", ") + each.shown.name;
  return Error{Code::NotFound, "unknown task '" + name + "'; the package has: " + known};
}

std::vector<Span> Manifest::head(const std::vector<int64_t>& route) const {
  std::vector<Span> pieces;
  for (size_t i = 0; i < route.size(); i++) {
    for (const Span& first : first_heads[i]) {
      const int64_t start = first.start + route[i] * (first.end - first.start);
      pieces.push_back({start, start + first.end - first.start});
    }
  }
  return pieces;
}

const ManifestFile* Manifest::file(const std::string& name) const {
  for (const ManifestFile& each : files) {
    if (each.name == name) return &each;
  }
  return nullptr;
}

Result<Manifest> parse_manifest(
    const std::string& text, const std::string& where, bool check_digest) {
  const auto json = parse_json(text, where);
  if (!json.ok()) return json.error();
  Error error;
  const Reader root(json.value(), where + ": ", error);
  if (!json.value().is_object()) return Error{Code::Invalid, where + ": is no object"};
  // First, so that a newer manifest is not refused for its other keys.
  const Reader version = root.at("schema_version");
  const int64_t most = std::numeric_limits<int64_t>::max();
  if (version.integer(std::numeric_limits<int64_t>::min(), most) != 1) {
    version.fail("is not 1, the version that this runtime reads; update the runtime");
  }
  Manifest manifest;
  const std::string package_digest = root.at("package_digest").digest();
  manifest.layout_digest = root.at("layout_digest").digest();
  manifest.rank = root.at("rank").integer(1, kMaxRank);
  manifest.heads = root.at("heads").integer(1, kMaxHeads);
  const Reader base = root.at("base_model");
  manifest.base_model = base.at("id").text(0, kMaxId);
  manifest.weights_sha256 = base.at("weights_sha256").digest_or_null();
  manifest.tokenizer_sha256 = base.at("tokenizer_sha256").digest_or_null();
  for (const Reader& module : root.at("modules").list(1)) {
    manifest.modules.push_back(module.at("heads").integer(1, manifest.heads));
  }
  const Reader tasks = root.at("tasks"), fallback = root.at("fallback");
  for (const Reader& task : tasks.list(1)) {
    if (!error.ok()) break;
    manifest.tasks.push_back(read_task(task, manifest.modules));
  }
  manifest.fallback = fallback.text(0, kMaxText);
  check_names(tasks, fallback, manifest);
  read_files(root.at("files"), manifest);
  if (error.ok()) read_head_banks(root, manifest);
  if (root.has("metadata")) root.at("metadata").object();
  if (error.ok() && check_digest) error = check_package_digest(text, package_digest, where);
  if (!error.ok()) return error;
  return manifest;
}

}  // namespace hydrapack
