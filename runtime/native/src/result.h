// What a function gives that can fail: a value, or what went wrong. The library throws nothing.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace plc {

enum class ErrorCode {
  kArgument = 1,  // the caller asked for what cannot be
  kFile = 2,      // a file cannot be read
  kFormat = 3,    // a file was read, and is not what it should be
  kRuntime = 4,   // ONNX Runtime is missing, too old, or failed
  kRequest = 5,   // a request cannot be served as it is
  kAnswer = 6,    // the base's numbers for a request are not finite
  kMemory = 8,    // no memory is left
  kCancelled = 9  // the request was cancelled
};                // The numbers are those of plc_status.

// `message` says what was being done, what was found, what was expected and what to do next.
struct Error {
  ErrorCode code;
  std::string message;
};

// To ask for the value of an error, or for the error of a value, is a mistake of ours: it aborts.
template <typename Value>
class [[nodiscard]] Result {
 public:
  Result(Value value) : held_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return held_.index() == 0; }
  Value& value() { return *checked(std::get_if<0>(&held_)); }
  const Value& value() const { return *checked(std::get_if<0>(&held_)); }
  const Error& error() const { return *checked(std::get_if<1>(&held_)); }

 private:
  template <typename Held>
  static Held* checked(Held* held) {
    if (held == nullptr) std::abort();
    return held;
  }

  std::variant<Value, Error> held_;
};

// Without a value: `return {};` where all went well.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_.has_value(); }
  const Error& error() const {
    if (ok()) std::abort();
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

}  // namespace plc
