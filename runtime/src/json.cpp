#include "json.h"

#include <cstdint>
#include <vector>

namespace hydrapack {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 64;

// Builds the value, and stops at the first thing that the parser lets pass and we do not.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(Json(value)); }
  bool number_integer(int64_t value) override { return add(Json(value)); }
  bool number_unsigned(uint64_t value) override { return add(Json(value)); }
  bool number_float(double value, const std::string&) override { return add(Json(value)); }
  bool string(std::string& value) override { return add(Json(std::move(value))); }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    const auto [at, fresh] = open_.back()->get_ref<Json::object_t&>().emplace(name, Json());
    if (!fresh) return fail("the key " + name + " stands twice in one object");
    member_ = &at->second;
    return true;
  }

  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception&) override {
    return fail("is not JSON (at byte " + std::to_string(at) + ")");
  }

  Json root;
  std::string error;

 private:
  bool fail(const std::string& what) {
    if (error.empty()) error = what;
    return false;
  }

  Json* place(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    *member_ = std::move(value);
    return member_;
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  // A list grows only after what was opened last in it is closed, so the pointers stay good.
  bool open(Json value) {
    if (open_.size() == kMaxDepth) return fail("objects and lists lie too deep in each other");
    open_.push_back(place(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::vector<Json*> open_;
  Json* member_ = nullptr;
};

}  // namespace

Result<Json> parse_json(const std::string& text, const std::string& where) {
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) {
    return Error{Code::Invalid, where + ": begins with a byte order mark: save it without"};
  }
  // The parser takes a zero byte for the end of the text.
  if (text.find('\0') != std::string::npos) {
    return Error{Code::Invalid, where + ": is not JSON: it holds a zero byte"};
  }
  Builder builder;
  if (!Json::sax_parse(text, &builder)) return Error{Code::Invalid, where + ": " + builder.error};
  return std::move(builder.root);
}

}  // namespace hydrapack
