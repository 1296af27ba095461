#include "golden.h"

#include "files.h"
#include "json.h"
#include "reader.h"

namespace hydrapack {
namespace {

constexpr int64_t kLargestId = (int64_t{1} << 31) - 1, kMaxAnswer = 4096;

double not_negative(const Reader& reader) {
  const double number = reader.number();
  if (!(number >= 0)) reader.fail("must be 0 or more");
  return number;
}

std::vector<int64_t> ids_of(const Reader& list) {
  std::vector<int64_t> ids;
  for (const Reader& id : list.list(1)) ids.push_back(id.integer(0, kLargestId));
  return ids;
}

GoldenPrompt read_prompt(const Reader& prompt) {
  GoldenPrompt found;
  found.ids = ids_of(prompt.at("ids"));
  found.tokens = ids_of(prompt.at("tokens"));
  if (found.tokens.size() > kMaxAnswer) prompt.at("tokens").fail("are more than 4096");
  for (const Reader& margin : prompt.at("margins").list(0)) {
    found.margins.push_back(not_negative(margin));
  }
  if (found.margins.size() != found.tokens.size()) prompt.fail("not a margin for each token");
  return found;
}

}  // namespace

Result<Golden> read_golden(const Paths& paths, const Manifest& manifest, bool check_digest) {
  const std::string path = paths.package + "/golden.json";
  const ManifestFile* stated = manifest.file("golden.json");
  if (stated == nullptr) {
    return Error{Code::NotFound, paths.package + ": has no golden outputs: pack it with --golden"};
  }
  Error error = check_file(path, stated->bytes, stated->sha256, check_digest);
  if (!error.ok()) return error;
  const auto text = read_text(path);
  if (!text.ok()) return text.error();
  const auto json = parse_json(text.value(), path);
  if (!json.ok()) return json.error();
  const Reader root(json.value(), path + ": ", error);
  root.at("schema_version").integer(1, 1);
  Golden golden;
  golden.near_tie = not_negative(root.at("near_tie"));
  for (const Reader& task : root.at("tasks").list(1)) {
    const std::string name = task.at("name").text(1, kMaxTaskName);
    bool known = false;
    for (const ManifestTask& each : manifest.tasks) known = known || each.shown.name == name;
    if (!known) task.at("name").fail("is not in the package");
    int64_t number = 0;
    for (const Reader& prompt : task.at("prompts").list(1)) {
      golden.prompts.push_back(read_prompt(prompt));
      golden.prompts.back().task = name;
      golden.prompts.back().number = number++;
    }
  }
  if (!error.ok()) return error;
  return golden;
}

}  // namespace hydrapack
