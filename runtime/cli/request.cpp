#include "request.h"

#include <limits>

using hydrapack::Code;

bool integer(const Json& value, int64_t& out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  out = value.get<int64_t>();
  return true;
}

namespace {

bool integers(const Json& value, std::vector<int64_t>& out) {
  if (!value.is_array()) return false;
  out.resize(value.size());
  for (size_t i = 0; i < value.size(); i++) {
    if (!integer(value[i], out[i])) return false;
  }
  return true;
}

// What is wrong with a key of a request, or an empty text.
std::string read_key(const std::string& key, const Json& value, Request& request) {
  hydrapack::GenerateOptions& options = request.options;
  int64_t whole = 0;
  if (key == "id") {
    if (!integer(value, whole)) return "give an integer";
    request.id = whole;
  } else if (key == "ids") {
    if (!integers(value, request.ids)) return "give a list of integers";
  } else if (key == "stop_ids") {
    if (!integers(value, options.stop_ids.emplace())) return "give a list of integers";
  } else if (key == "task") {
    if (!value.is_null() && !value.is_string()) return "give a name or null";
    request.task =
        value.is_null() ? std::nullopt : std::optional<std::string>(value.get<std::string>());
  } else if (key == "max_new_tokens") {
    if (!integer(value, options.max_new_tokens.emplace())) return "give an integer";
  } else if (key == "top_k") {
    if (!integer(value, options.top_k.emplace())) return "give an integer";
  } else if (key == "temperature") {
    if (!value.is_number()) return "give a number";
    options.temperature = value.get<float>();
  } else if (key == "top_p") {
    if (!value.is_number()) return "give a number";
    options.top_p = value.get<float>();
  } else if (key == "lookup") {
    if (!value.is_boolean()) return "give true or false";
    options.lookup = value.get<bool>();
  } else if (key == "seed") {
    if (!value.is_number_unsigned()) return "give an integer from 0 to 2^64 - 1";
    options.seed = value.get<uint64_t>();
  } else {
    return "no such key; hydrapack-run --help lists them";
  }
  return "";
}

}  // namespace

std::shared_ptr<Request> read_request(const Json& line, const std::optional<std::string>& task) {
  auto request = std::make_shared<Request>();
  request->task = task;
  if (!line.is_object()) {
    request->error = {Code::Invalid, "the line is no JSON object"};
    return request;
  }
  for (const auto& item : line.items()) {
    const std::string wrong = read_key(item.key(), item.value(), *request);
    if (!wrong.empty() && request->error.ok()) {
      request->error = {Code::Invalid, item.key() + ": " + wrong};
    }
  }
  if (request->error.ok() && !line.contains("ids")) {
    request->error = {Code::Invalid, "ids: missing; give a list of integers"};
  }
  return request;
}
