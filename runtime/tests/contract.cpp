// What the runtime makes of manifests, logits and files, as JSON lines; compared with Python's.
#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>

#include <nlohmann/json.hpp>

#include "files.h"
#include "manifest.h"
#include "sampler.h"
#include "sha256.h"

using namespace hydrapack;
using Json = nlohmann::json;

namespace {

constexpr char kHelp[] = R"(Usage:
  hydrapack-contract manifest FILE...  {"file":, "kind":, "message":} for each, digests checked
  hydrapack-contract sample            reads {"logits":, "temperature":, "top_k":, "top_p":, "seed":,
                                       "count":}, writes {"ids":} or {"kind":, "message":}
  hydrapack-contract sha256 FILE...    {"file":, "way":, "sha256":} for each way of this processor
)";

void print(const Json& json) {
  std::cout << json.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

int manifest(const std::string& path) {
  const auto text = read_text(path);
  Error error;
  if (text.ok()) {
    const auto read = parse_manifest(text.value(), base_name(path), true);
    if (!read.ok()) error = read.error();
  } else {
    error = text.error();
  }
  print({{"file", base_name(path)}, {"kind", name(error.code)}, {"message", error.message}});
  return 0;
}

int sha256(const std::string& path) {
  const auto text = read_text(path);
  if (!text.ok()) return 2;
  for (const Sha256Way& way : sha256_ways()) {
    Sha256 digest(way.blocks);
    digest.update(text.value().data(), text.value().size());
    print({{"file", base_name(path)}, {"way", way.name}, {"sha256", digest.hex()}});
  }
  return 0;
}

Json sample(const std::string& line) {
  const auto failed = [](const Error& error) {
    return Json{{"kind", name(error.code)}, {"message", error.message}};
  };
  const Json asked = Json::parse(line, nullptr, false);
  if (!asked.is_object()) return failed({Code::Invalid, "the line is no JSON object"});
  std::vector<float> logits;
  // JSON has no NaN: null stands for it.
  for (const Json& value : asked.at("logits")) {
    logits.push_back(value.is_null() ? NAN : value.get<float>());
  }
  const Sampling sampling{
      asked.value("temperature", 0.0f), asked.value("top_k", int64_t{0}), asked.value("top_p", 1.0f)};
  const Error error = Sampler::check(sampling);
  if (!error.ok()) return failed(error);
  Sampler sampler;
  sampler.seed(asked.value("seed", uint64_t{0}));
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < asked.value("count", int64_t{1}); i++) {
    const auto token = sampler.pick(logits.data(), static_cast<int64_t>(logits.size()), sampling);
    if (!token.ok()) return failed(token.error());
    ids.push_back(token.value());
  }
  return {{"ids", ids}};
}

}  // namespace

int main(int count, char** arguments) {
  const std::string command = count > 1 ? arguments[1] : "";
  int code = 0;
  if (command == "manifest" || command == "sha256") {
    for (int i = 2; i < count; i++) {
      code |= command == "manifest" ? manifest(arguments[i]) : sha256(arguments[i]);
    }
    return code;
  }
  if (command != "sample" || count > 2) {
    std::fputs(kHelp, command == "--help" ? stdout : stderr);
    return command == "--help" ? 0 : 2;
  }
  for (std::string line; std::getline(std::cin, line);) print(sample(line));
  return 0;
}
