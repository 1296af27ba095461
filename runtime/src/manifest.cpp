#include "manifest.h"

#include <cmath>
#include <initializer_list>
#include <set>

#include <nlohmann/json.hpp>

#include "sha256.h"

namespace hydrapack {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxHeads = 4096, kMaxRank = 65536;
constexpr int64_t kMaxBytes = int64_t{1} << 40, kMaxCount = (int64_t{1} << 31) - 1;
constexpr size_t kMaxItems = 65536, kMaxText = 1 << 20;

// Reads values out of a JSON object; the first failure is kept and every later read gives a zero.
class Reader {
 public:
  Reader(const std::string& where, Error& error) : where_(where), error_(error) {}

  void fail(const std::string& key, const std::string& what) {
    if (error_.ok()) error_ = {Code::Invalid, where_ + ": " + key + ": " + what};
  }

  bool object(
      const Json& value,
      const std::string& key,
      std::initializer_list<const char*> keys) {
    if (!value.is_object()) {
      fail(key.empty() ? "the file" : key, "is no object");
      return false;
    }
    const std::string prefix = key.empty() ? "" : key + ".";
    const std::set<std::string> known(keys.begin(), keys.end());
    for (const auto& item : value.items()) {
      if (known.count(item.key()) == 0) fail(prefix + item.key(), "is not known");
    }
    for (const char* name : keys) {
      if (!value.contains(name)) fail(prefix + name, "is missing");
    }
    return error_.ok();
  }

  int64_t integer(const Json& value, const std::string& key, int64_t least, int64_t most) {
    const bool fits = value.is_number_integer() &&
        (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    if (!fits) {
      fail(key, "is no integer, or out of range");
      return 0;
    }
    const int64_t number = value.get<int64_t>();
    if (number < least || number > most) {
      fail(key, "must be from " + std::to_string(least) + " to " + std::to_string(most));
      return 0;
    }
    return number;
  }

  void number(const Json& value, const std::string& key, double least, double most) {
    if (!value.is_number()) return fail(key, "is no number");
    const double held = value.get<double>();
    if (!(held >= least && held <= most)) fail(key, "is out of range");
  }

  std::string text(const Json& value, const std::string& key, bool nullable = false) {
    if (nullable && value.is_null()) return "";
    if (!value.is_string()) {
      fail(key, "is no text");
      return "";
    }
    std::string held = value.get<std::string>();
    if (held.size() > kMaxText) fail(key, "is too long");
    return held;
  }

  std::string digest(const Json& value, const std::string& key, bool nullable = false) {
    if (nullable && value.is_null()) return "";
    std::string held = text(value, key);
    const bool hex = held.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (held.size() != 64 || !hex) fail(key, "is no SHA-256 in hex");
    return held;
  }

  bool list(const Json& value, const std::string& key, size_t least) {
    if (!value.is_array() || value.size() < least || value.size() > kMaxItems) {
      fail(key, "is no list, or too short or long");
      return false;
    }
    return error_.ok();
  }

 private:
  const std::string& where_;
  Error& error_;
};

std::string at(const std::string& key, size_t index) {
  return key + "." + std::to_string(index);
}

bool one_of(int64_t value, std::initializer_list<int64_t> allowed) {
  for (int64_t a : allowed) {
    if (a == value) return true;
  }
  return false;
}

std::vector<int64_t> read_modules(Reader& read, const Json& modules, const Manifest& manifest) {
  std::vector<int64_t> heads;
  for (size_t i = 0; i < modules.size(); i++) {
    const std::string key = at("modules", i);
    const Json& module = modules[i];
    if (!read.object(
            module, key, {"bits_a", "bits_b", "heads", "name", "output_rank", "rank"})) {
      return {};
    }
    read.text(module["name"], key + ".name");
    heads.push_back(read.integer(module["heads"], key + ".heads", 1, manifest.heads));
    read.integer(module["rank"], key + ".rank", 1, manifest.rank);
    read.integer(module["output_rank"], key + ".output_rank", 0, kMaxCount);
    for (const char* name : {"bits_a", "bits_b"}) {
      const int64_t bits = read.integer(module[name], key + "." + name, 4, 32);
      if (!one_of(bits, {0, 4, 8, 16, 32})) read.fail(key + "." + name, "must be 4, 8, 16 or 32");
    }
  }
  return heads;
}

void read_sources(Reader& read, const Json& sources) {
  for (size_t i = 0; i < sources.size(); i++) {
    const std::string key = at("sources", i);
    const Json& source = sources[i];
    if (!read.object(
            source,
            key,
            {"alpha", "base_model", "digest", "license", "parameters", "rank", "task"})) {
      return;
    }
    read.number(source["alpha"], key + ".alpha", -1e30, 1e30);
    read.text(source["base_model"], key + ".base_model");
    read.digest(source["digest"], key + ".digest");
    read.text(source["license"], key + ".license", true);
    read.integer(source["parameters"], key + ".parameters", 0, kMaxCount);
    read.integer(source["rank"], key + ".rank", 1, kMaxRank);
    read.text(source["task"], key + ".task");
  }
}

ManifestTask read_task(
    Reader& read, const Json& task, const std::string& key, const std::vector<int64_t>& heads) {
  ManifestTask found;
  if (!read.object(
          task,
          key,
          {"generation", "language", "merge_relative_error", "name", "packed_relative_error",
           "prompt_template", "route", "stop"})) {
    return found;
  }
  found.shown.name = read.text(task["name"], key + ".name");
  if (found.shown.name.empty()) read.fail(key + ".name", "is empty");
  found.shown.prompt_template = read.text(task["prompt_template"], key + ".prompt_template");
  const std::string& prompt = found.shown.prompt_template;
  const size_t hole = prompt.find("{input}");
  if (hole == std::string::npos || prompt.find("{input}", hole + 1) != std::string::npos) {
    read.fail(key + ".prompt_template", "must hold {input} exactly once");
  }
  found.shown.language = read.text(task["language"], key + ".language", true);
  if (read.list(task["stop"], key + ".stop", 0)) {
    for (const Json& stop : task["stop"]) {
      found.shown.stop.push_back(read.text(stop, key + ".stop"));
    }
  }
  for (const char* name : {"merge_relative_error", "packed_relative_error"}) {
    read.number(task[name], key + "." + name, 0, 1e30);
  }
  const Json& generation = task["generation"];
  if (read.object(
          generation,
          key + ".generation",
          {"max_new_tokens", "temperature", "top_k", "top_p"})) {
    read.integer(generation["max_new_tokens"], key + ".generation.max_new_tokens", 1, 1 << 20);
    read.number(generation["temperature"], key + ".generation.temperature", 0, 100);
    read.integer(generation["top_k"], key + ".generation.top_k", 0, 1 << 20);
    read.number(generation["top_p"], key + ".generation.top_p", 0, 1);
  }
  if (!read.list(task["route"], key + ".route", 1)) return found;
  if (task["route"].size() != heads.size()) {
    read.fail(key + ".route", "does not have an entry for each module");
    return found;
  }
  for (size_t i = 0; i < heads.size(); i++) {
    found.route.push_back(read.integer(task["route"][i], key + ".route", 0, heads[i] - 1));
  }
  return found;
}

void read_files(Reader& read, const Json& files, Manifest& manifest) {
  std::set<std::string> seen;
  for (size_t i = 0; i < files.size(); i++) {
    const std::string key = at("files", i);
    const Json& file = files[i];
    if (!read.object(file, key, {"bytes", "name", "sha256"})) return;
    const std::string name = read.text(file["name"], key + ".name");
    const int64_t bytes = read.integer(file["bytes"], key + ".bytes", 0, kMaxBytes);
    const std::string digest = read.digest(file["sha256"], key + ".sha256");
    const bool plain = !name.empty() && name[0] != '.' && name.size() <= 200 &&
        name.find_first_of("/\\") == std::string::npos;
    if (!plain || !seen.insert(name).second) {
      read.fail(key + ".name", "must be a plain file name, each once");
    }
    if (name == "adapters.pte") manifest.adapters_bytes = bytes, manifest.adapters_sha256 = digest;
  }
  if (manifest.adapters_sha256.empty()) read.fail("files", "do not name adapters.pte");
}

void read_rest(Reader& read, const Json& json) {
  if (read.object(json["base_model"], "base_model", {"id", "tokenizer_sha256", "weights_sha256"})) {
    read.digest(json["base_model"]["tokenizer_sha256"], "base_model.tokenizer_sha256", true);
    read.digest(json["base_model"]["weights_sha256"], "base_model.weights_sha256", true);
  }
  const Json& storage = json["storage"];
  if (read.object(
          storage,
          "storage",
          {"baseline_bytes", "baseline_parameters", "bytes", "parameters", "s_percent",
           "tensor_bytes"})) {
    for (const char* name :
         {"baseline_bytes", "baseline_parameters", "bytes", "parameters", "tensor_bytes"}) {
      read.integer(storage[name], std::string("storage.") + name, 1, INT64_MAX);
    }
    read.number(storage["s_percent"], "storage.s_percent", 0, 1e30);
  }
  if (!json["tools"].is_object()) read.fail("tools", "is no object");
  read.text(json["hydrapack_version"], "hydrapack_version");
  read.integer(json["group_size"], "group_size", 1, 65536);
  if (read.list(json["target_modules"], "target_modules", 1)) {
    for (const Json& target : json["target_modules"]) read.text(target, "target_modules");
  }
  if (read.list(json["target_shapes"], "target_shapes", 1)) {
    for (const Json& shape : json["target_shapes"]) {
      if (!read.list(shape, "target_shapes", 2) || shape.size() != 2) {
        read.fail("target_shapes", "are no pairs");
        return;
      }
      for (const Json& width : shape) read.integer(width, "target_shapes", 1, 1 << 24);
    }
  }
}

Error check_package_digest(const std::string& text, const std::string& stated,
                           const std::string& where) {
  // A line of its own at the top level: no string can hold a bare newline.
  const std::string key = "\n  \"package_digest\": \"";
  const size_t start = text.find(key);
  if (start == std::string::npos || start + key.size() + 64 > text.size()) {
    return {Code::Invalid, where + ": is not written as hydrapack writes it"};
  }
  Sha256 digest;
  digest.update(text.data(), start + key.size());
  const size_t rest = start + key.size() + 64;
  digest.update(text.data() + rest, text.size() - rest);
  if (digest.hex() != stated) {
    return {Code::Mismatch, where + ": package_digest does not fit: the file was changed"};
  }
  return {};
}

Error check_fallback(const Manifest& manifest, const std::string& where) {
  std::set<std::string> names;
  for (const ManifestTask& task : manifest.tasks) {
    if (!names.insert(task.shown.name).second) {
      return {Code::Invalid, where + ": tasks: the name " + task.shown.name + " stands twice"};
    }
  }
  const std::string& fallback = manifest.fallback;
  if (fallback != "error" && fallback != "base" && names.count(fallback) == 0) {
    return {Code::Invalid, where + ": fallback: is neither error, base nor a task"};
  }
  return {};
}

}  // namespace

Result<const ManifestTask*> Manifest::find(const std::string& name) const {
  const std::string* wanted = &name;
  for (int round = 0; round < 2; round++) {
    for (const ManifestTask& task : tasks) {
      if (task.shown.name == *wanted) return &task;
    }
    if (fallback == "base") return static_cast<const ManifestTask*>(nullptr);
    if (fallback == "error") break;
    wanted = &fallback;
  }
  std::string known;
  for (const ManifestTask& task : tasks) known += (known.empty() ? "" : ", ") + task.shown.name;
  return Error{Code::NotFound, "unknown task '" + name + "'; the package has: " + known};
}

Result<Manifest> parse_manifest(
    const std::string& text, const std::string& where, bool check_digest) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return Error{Code::Invalid, where + ": is not JSON"};
  Error error;
  Reader read(where, error);
  Manifest manifest;
  if (json.is_object() && json.contains("schema_version")) {
    // First, so that a newer manifest is not refused for its unknown keys.
    if (read.integer(json["schema_version"], "schema_version", 0, kMaxCount) != 1 && error.ok()) {
      read.fail("schema_version", "is not 1, the version that this runtime reads; update it");
    }
  }
  if (!read.object(
          json,
          "",
          {"base_model", "fallback", "files", "group_size", "heads", "hydrapack_version",
           "layout_digest", "modules", "package_digest", "rank", "schema_version", "sources",
           "storage", "target_modules", "target_shapes", "tasks", "tools"})) {
    return error;
  }
  const std::string package_digest = read.digest(json["package_digest"], "package_digest");
  if (check_digest && error.ok()) error = check_package_digest(text, package_digest, where);
  manifest.layout_digest = read.digest(json["layout_digest"], "layout_digest");
  manifest.rank = read.integer(json["rank"], "rank", 1, kMaxRank);
  manifest.heads = read.integer(json["heads"], "heads", 1, kMaxHeads);
  manifest.fallback = read.text(json["fallback"], "fallback");
  read_rest(read, json);
  if (error.ok()) manifest.base_model = read.text(json["base_model"]["id"], "base_model.id");
  std::vector<int64_t> heads;
  if (read.list(json["modules"], "modules", 1)) {
    heads = read_modules(read, json["modules"], manifest);
    manifest.modules = static_cast<int64_t>(heads.size());
  }
  if (read.list(json["sources"], "sources", 1)) read_sources(read, json["sources"]);
  if (read.list(json["tasks"], "tasks", 1)) {
    for (size_t i = 0; i < json["tasks"].size() && error.ok(); i++) {
      manifest.tasks.push_back(read_task(read, json["tasks"][i], at("tasks", i), heads));
    }
  }
  if (read.list(json["files"], "files", 1)) read_files(read, json["files"], manifest);
  if (error.ok()) error = check_fallback(manifest, where);
  if (!error.ok()) return error;
  return manifest;
}

}  // namespace hydrapack
