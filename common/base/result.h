// How a call says that it failed: a value or an Error, never an exception across a module, a thread or a process.
#pragma once

#include <cassert>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace skerry {

/// gRPC's status codes, by their numbers, so that an error crosses the wire unchanged.
enum class Code {
  kOk = 0,
  kCancelled = 1,
  kUnknown = 2,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

/// The code's name as gRPC spells it, for example "INVALID_ARGUMENT".
std::string_view code_name(Code code);

/// What went wrong, for a person: what was being done, the value that was wrong, what to do next.
struct Error {
  Code code = Code::kUnknown;
  std::string message;
  bool retryable = false;  ///< the same call may succeed later without anybody changing anything
};

inline Error invalid_argument(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }
inline Error not_found(std::string message) { return {Code::kNotFound, std::move(message)}; }
inline Error already_exists(std::string message) { return {Code::kAlreadyExists, std::move(message)}; }
inline Error permission_denied(std::string message) { return {Code::kPermissionDenied, std::move(message)}; }
inline Error unauthenticated(std::string message) { return {Code::kUnauthenticated, std::move(message)}; }
inline Error failed_precondition(std::string message) { return {Code::kFailedPrecondition, std::move(message)}; }
inline Error resource_exhausted(std::string message) { return {Code::kResourceExhausted, std::move(message), true}; }
inline Error unavailable(std::string message) { return {Code::kUnavailable, std::move(message), true}; }
inline Error data_loss(std::string message) { return {Code::kDataLoss, std::move(message)}; }
inline Error internal_error(std::string message) { return {Code::kInternal, std::move(message)}; }

/// "INVALID_ARGUMENT: run spec line 12: …"
std::string to_string(const Error& error);

/// The same error with `context` and ": " before its message.
Error with_context(Error error, std::string_view context);

/// A T, or the Error that says why there is none. `Result<void>` carries only success or the error.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { assert(ok()); return std::get<0>(state_); }
  const T& value() const& { assert(ok()); return std::get<0>(state_); }
  T&& value() && { assert(ok()); return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { assert(!ok()); return std::get<1>(state_); }
  Error&& error() && { assert(!ok()); return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { assert(!ok()); return *error_; }
  Error&& error() && { assert(!ok()); return *std::move(error_); }

 private:
  std::optional<Error> error_;
};

#define SKERRY_CONCAT_INNER(a, b) a##b
#define SKERRY_CONCAT(a, b) SKERRY_CONCAT_INNER(a, b)

/// Leaves the enclosing function with the error of `expression`, a Result, where there is one.
#define SKERRY_TRY(expression)                                        \
  do {                                                                \
    if (auto skerry_result = (expression); !skerry_result.ok())       \
      return std::move(skerry_result).error();                        \
  } while (false)

/// `SKERRY_ASSIGN(auto file, open(path));` takes the value, or leaves the enclosing function with the error.
#define SKERRY_ASSIGN(declaration, expression) \
  SKERRY_ASSIGN_INNER(SKERRY_CONCAT(skerry_result_, __LINE__), declaration, expression)
#define SKERRY_ASSIGN_INNER(result, declaration, expression)  \
  auto result = (expression);                                 \
  if (!result.ok()) return std::move(result).error();         \
  declaration = std::move(result).value()

}  // namespace skerry
