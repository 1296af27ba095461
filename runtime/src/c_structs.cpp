#include "c_structs.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace hydrapack {
namespace {

// The size of a struct of the fields up to this one.
#define UP_TO(type, field)                                                              \
  ((offsetof(type, field) + sizeof(type::field) + alignof(type) - 1) / alignof(type) * alignof(type))

// A struct's name and the sizes that a caller's may have, the library's own last. A new field goes to
// the end of its struct, and its size here. What is only of use with another field comes with it.
template <typename Struct>
struct Known;

template <>
struct Known<hydrapack_open_options> {
  static constexpr char name[] = "hydrapack_open_options";
  static constexpr size_t sizes[] = {
      UP_TO(hydrapack_open_options, check_digests), UP_TO(hydrapack_open_options, public_key),
      UP_TO(hydrapack_open_options, weight_cache), UP_TO(hydrapack_open_options, share_weights),
      sizeof(hydrapack_open_options)};
};

template <>
struct Known<hydrapack_sampling> {
  static constexpr char name[] = "hydrapack_sampling";
  static constexpr size_t sizes[] = {
      UP_TO(hydrapack_sampling, temperature), UP_TO(hydrapack_sampling, top_k),
      sizeof(hydrapack_sampling)};
};

template <>
struct Known<hydrapack_options> {
  static constexpr char name[] = "hydrapack_options";
  static constexpr size_t sizes[] = {
      UP_TO(hydrapack_options, max_new_tokens), UP_TO(hydrapack_options, temperature),
      UP_TO(hydrapack_options, top_k),          UP_TO(hydrapack_options, top_p),
      UP_TO(hydrapack_options, seed),           UP_TO(hydrapack_options, lookup),
      UP_TO(hydrapack_options, stop_count),     sizeof(hydrapack_options)};
};

template <>
struct Known<hydrapack_stats> {
  static constexpr char name[] = "hydrapack_stats";
  static constexpr size_t sizes[] = {
      UP_TO(hydrapack_stats, decode_ms), UP_TO(hydrapack_stats, decode_calls),
      sizeof(hydrapack_stats)};
};

#undef UP_TO

template <typename Struct>
Error check_size(size_t size) {
  const std::string what = std::string(Known<Struct>::name) + ": struct_size ";
  if (size == 0) return {Code::Invalid, what + "is 0: set it to the struct's sizeof"};
  if (size > sizeof(Struct)) {
    return {
        Code::Invalid,
        what + std::to_string(size) + " is more than the " + std::to_string(sizeof(Struct)) +
            " that this library knows: the caller was compiled with the header of a newer one"};
  }
  const auto& sizes = Known<Struct>::sizes;
  if (std::find(std::begin(sizes), std::end(sizes), size) == std::end(sizes)) {
    return {Code::Invalid, what + std::to_string(size) + " does not end with a field"};
  }
  return {};
}

// All fields of the first so many bytes; struct_size stays the target's own.
template <typename Struct>
void copy_fields(const Struct& from, Struct& to, size_t size) {
  constexpr size_t first = sizeof(size_t);
  std::memcpy(
      reinterpret_cast<char*>(&to) + first, reinterpret_cast<const char*>(&from) + first,
      size - first);
}

}  // namespace

template <>
hydrapack_open_options defaults() {
  return {sizeof(hydrapack_open_options), 1, nullptr, nullptr, 0, 0};
}
template <>
hydrapack_sampling defaults() {
  return {sizeof(hydrapack_sampling), 0, 0, 1};
}
template <>
hydrapack_options defaults() {
  return {sizeof(hydrapack_options), -1, -1, -1, -1, 0, 0, nullptr, 0, nullptr, nullptr};
}

template <typename Struct>
Result<Struct> taken(const Struct* given) {
  Struct own = defaults<Struct>();
  if (given == nullptr) return own;
  const Error error = check_size<Struct>(given->struct_size);
  if (!error.ok()) return error;
  copy_fields(*given, own, given->struct_size);
  return own;
}

template <typename Struct>
Error give(const Struct& own, Struct* to) {
  const Error error = check_size<Struct>(to->struct_size);
  if (error.ok()) copy_fields(own, *to, to->struct_size);
  return error;
}

template <typename Struct>
Error initialize(Struct* to, size_t size) {
  const Error error = check_size<Struct>(size);
  if (size >= sizeof(size_t)) {
    std::memset(static_cast<void*>(to), 0, size);
    to->struct_size = size;
  }
  if (error.ok()) copy_fields(defaults<Struct>(), *to, size);
  return error;
}

template Result<hydrapack_open_options> taken(const hydrapack_open_options*);
template Result<hydrapack_sampling> taken(const hydrapack_sampling*);
template Result<hydrapack_options> taken(const hydrapack_options*);
template Error give(const hydrapack_options&, hydrapack_options*);
template Error give(const hydrapack_stats&, hydrapack_stats*);
template Error initialize(hydrapack_open_options*, size_t);
template Error initialize(hydrapack_sampling*, size_t);
template Error initialize(hydrapack_options*, size_t);

}  // namespace hydrapack
