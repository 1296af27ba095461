// A value or an error with a message; nothing here throws.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace hydrapack {

enum class Code {
  Ok = 0,
  NotFound = 1,      // a file or a task that is not there
  Invalid = 2,       // a malformed file, or an argument out of range
  Mismatch = 3,      // files that do not belong together, or a digest that does not fit
  ContextFull = 4,   // no room for more tokens
  Busy = 5,          // the session is in use by another thread
  Runtime = 6,       // ExecuTorch reported an error
};

struct [[nodiscard]] Error {
  Code code = Code::Ok;
  std::string message;

  bool ok() const { return code == Code::Ok; }
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}
  Result(Error error) : held_(std::move(error)) {}

  bool ok() const { return std::holds_alternative<T>(held_); }
  T& value() { return std::get<T>(held_); }
  const T& value() const { return std::get<T>(held_); }
  const Error& error() const { return std::get<Error>(held_); }

 private:
  std::variant<T, Error> held_;
};

}  // namespace hydrapack
