// Reads what a JSON text must hold; nothing in it is trusted.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <hydrapack/result.h>
#include <nlohmann/json.hpp>

namespace hydrapack {

constexpr size_t kMaxItems = 65536, kMaxText = 1 << 20;
constexpr char kHex[] = "0123456789abcdef";

// A value and the path of keys to it. The first failure is kept; every later read gives a zero.
class Reader {
 public:
  Reader(const nlohmann::json& value, std::string key, Error& error)
      : value_(value), key_(std::move(key)), error_(error) {}

  void fail(const std::string& what) const {
    if (error_.ok()) error_ = {Code::Invalid, key_ + ": " + what};
  }

  // Nothing has failed so far.
  bool ok() const { return error_.ok(); }

  bool is_null() const { return value_.is_null(); }
  size_t size() const { return value_.size(); }

  bool has(const char* name) const { return value_.is_object() && value_.contains(name); }

  Reader at(const char* name) const {
    static const nlohmann::json null;
    const std::string key = key_ + (key_.back() == ' ' ? "" : ".") + name;
    if (!value_.is_object()) fail("is no object");
    if (!has(name)) {
      Reader missing(null, key, error_);
      missing.fail("is missing");
      return missing;
    }
    return Reader(value_[name], key, error_);
  }

  void object() const {
    if (!value_.is_object()) fail("is no object");
  }

  int64_t integer(int64_t least, int64_t most) const {
    const bool fits = value_.is_number_integer() &&
        (!value_.is_number_unsigned() ||
         value_.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    const int64_t number = fits ? value_.get<int64_t>() : 0;
    if (fits && number >= least && number <= most) return number;
    fail("must be an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return 0;
  }

  double number() const {
    if (!value_.is_number()) fail("is no number");
    return value_.is_number() ? value_.get<double>() : 0;
  }

  std::string text(size_t least, size_t most) const {
    if (!value_.is_string()) {
      fail("is no text");
      return "";
    }
    const auto& held = value_.get_ref<const std::string&>();
    if (held.size() < least) fail("is empty");
    if (held.size() > most) fail("is longer than " + std::to_string(most) + " bytes");
    return held;
  }

  std::string digest() const {
    std::string held = text(0, kMaxText);
    if (held.size() != 64 || held.find_first_not_of(kHex) != std::string::npos) {
      fail("is no SHA-256 in hex");
    }
    return held;
  }

  // Empty for null.
  std::string digest_or_null() const { return is_null() ? "" : digest(); }

  std::vector<Reader> list(size_t least) const {
    std::vector<Reader> items;
    if (!value_.is_array() || value_.size() < least || value_.size() > kMaxItems) {
      fail("must be a list of " + std::to_string(least) + " to " + std::to_string(kMaxItems));
      return items;
    }
    items.reserve(value_.size());
    for (size_t i = 0; i < value_.size(); i++) {
      items.emplace_back(value_[i], key_ + "." + std::to_string(i), error_);
    }
    return items;
  }

 private:
  const nlohmann::json& value_;
  std::string key_;
  Error& error_;
};

}  // namespace hydrapack
