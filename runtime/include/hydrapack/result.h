// A value or an error with a message; nothing here throws.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <variant>

namespace hydrapack {

enum class Code {
  Ok = 0,
  NotFound = 1,     // a file or a task that is not there
  Invalid = 2,      // a malformed file, an argument out of range, an unknown option
  Mismatch = 3,     // files that do not belong together; a size, digest or signature that does not fit
  ContextFull = 4,  // no room for more tokens
  Busy = 5,         // in use by another thread, or by a running answer's own callback
  Io = 6,           // it is there but cannot be read
  Runtime = 7,      // ExecuTorch failed while running
};

// The code as it is written above.
inline const char* name(Code code) {
  switch (code) {
    case Code::Ok: return "Ok";
    case Code::NotFound: return "NotFound";
    case Code::Invalid: return "Invalid";
    case Code::Mismatch: return "Mismatch";
    case Code::ContextFull: return "ContextFull";
    case Code::Busy: return "Busy";
    case Code::Io: return "Io";
    case Code::Runtime: return "Runtime";
  }
  return "";
}

struct [[nodiscard]] Error {
  Code code = Code::Ok;
  std::string message;

  bool ok() const { return code == Code::Ok; }
};

// Look at ok() first: value() of an error, and error() of a value, print what they hold and abort.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}
  Result(Error error) : held_(std::move(error)) {}

  bool ok() const { return std::holds_alternative<T>(held_); }
  T& value() { return *checked(std::get_if<T>(&held_)); }
  const T& value() const { return *checked(std::get_if<T>(&held_)); }
  const Error& error() const {
    if (ok()) abort_with("error() of a Result that holds a value");
    return *std::get_if<Error>(&held_);
  }

 private:
  template <typename Held>
  Held* checked(Held* held) const {
    if (held == nullptr) abort_with("value() of an error: " + std::get_if<Error>(&held_)->message);
    return held;
  }

  [[noreturn]] static void abort_with(const std::string& message) {
    std::fprintf(stderr, "hydrapack: %s\n", message.c_str());
    std::abort();
  }

  std::variant<T, Error> held_;
};

}  // namespace hydrapack
