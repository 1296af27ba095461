#pragma once

#include <string>

#include <hydrapack/result.h>
#include <nlohmann/json.hpp>

namespace hydrapack {

// Strict RFC 8259: UTF-8 without a byte order mark, no trailing text, no number beyond a double, no
// key twice in an object, at most 64 objects and lists within each other. Invalid; where names the
// text in messages.
Result<nlohmann::json> parse_json(const std::string& text, const std::string& where);

}  // namespace hydrapack
