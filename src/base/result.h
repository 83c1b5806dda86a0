// Errors are values. A function that can fail returns Result<T>; its caller either handles the Error or hands it on
// with TRY(...), usually after adding what it was doing (Error::context). Exceptions come only from allocation and
// from third-party code, and are caught in the adapter that calls it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tl/expected.hpp>
#include <utility>
#include <vector>

namespace varve {

// What went wrong, as far as a caller could act on it. Mapped once to exit codes (cli/exit_code.h).
enum class ErrorKind {
  kInvalidArgument,  // the request makes no sense as given
  kNotFound,         // a named thing is not there
  kAlreadyExists,    // a name is taken
  kInUse,            // somebody holds a lock
  kRefused,          // preflight found a reason not to start
  kUnsupported,      // the format allows it, we (or the peer) do not do it
  kCorrupt,          // bytes on disk contradict the format
  kNoSpace,          // ENOSPC, EDQUOT, EFBIG
  kPermission,       // EACCES, EPERM, EROFS
  kIo,               // everything else that the system reported
  kInterrupted,      // the user asked to stop
  kInternal,         // an invariant of ours does not hold
};

// `message` is one sentence without a final full stop: what was being done, to what, what went wrong.
// `notes` are further lines (what is there instead; what to do). `path` and `offset` say where, when they are known.
struct Error {
  ErrorKind kind = ErrorKind::kInternal;
  int sys_errno = 0;
  std::string message;
  std::string path;
  std::optional<uint64_t> offset;
  std::vector<std::string> notes;

  Error&& with_note(std::string note) && {
    notes.push_back(std::move(note));
    return std::move(*this);
  }
  // Puts "what: " before the message.
  Error&& context(const std::string& what) && {
    message = what + ": " + message;
    return std::move(*this);
  }
};

inline Error make_error(ErrorKind kind, std::string message) {
  Error e;
  e.kind = kind;
  e.message = std::move(message);
  return e;
}

// An error from errno: message becomes "what: strerror(err)"; the kind follows from err.
Error system_error(int err, const std::string& what, const std::string& path = {});
ErrorKind kind_of_errno(int err);
const char* name_of(ErrorKind kind);

template <typename T = void>
class [[nodiscard]] Result {
 public:
  using value_type = T;
  Result(T value) : value_(std::move(value)) {}  // NOLINT(google-explicit-constructor)
  template <typename U>
    requires(std::is_convertible_v<U &&, T> && !std::is_same_v<std::decay_t<U>, T> &&
             !std::is_same_v<std::decay_t<U>, Error> && !std::is_same_v<std::decay_t<U>, Result<T>>)
  Result(U&& value) : value_(T(std::forward<U>(value))) {}         // NOLINT(google-explicit-constructor)
  Result(Error error) : value_(tl::unexpect, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return value_.has_value(); }
  bool has_value() const { return value_.has_value(); }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  Error& error() & { return value_.error(); }
  const Error& error() const& { return value_.error(); }
  Error&& error() && { return std::move(value_).error(); }
  T value_or(T other) && { return std::move(value_).value_or(std::move(other)); }

 private:
  tl::expected<T, Error> value_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;
  Result() = default;
  Result(Error error) : value_(tl::unexpect, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return value_.has_value(); }
  bool has_value() const { return value_.has_value(); }
  void operator*() const {}
  Error& error() & { return value_.error(); }
  const Error& error() const& { return value_.error(); }
  Error&& error() && { return std::move(value_).error(); }

 private:
  tl::expected<void, Error> value_;
};

namespace internal {
template <typename T>
T take(Result<T>& r) {
  return std::move(*r);
}
inline void take(Result<void>&) {}
}  // namespace internal

// TRY(expression of type Result<T>): its value, or return its error from the enclosing function. (The counter keeps a
// TRY inside of another one's expression from shadowing it.)
#define TRY(...) VARVE_TRY_NAMED(VARVE_TRY_JOIN(varve_try_result_, __COUNTER__), __VA_ARGS__)
#define VARVE_TRY_JOIN(a, b) VARVE_TRY_JOIN_NOW(a, b)
#define VARVE_TRY_JOIN_NOW(a, b) a##b
#define VARVE_TRY_NAMED(result, ...)               \
  ({                                               \
    auto result = (__VA_ARGS__);                   \
    if (!result) return std::move(result).error(); \
    ::varve::internal::take(result);               \
  })

// CHECK is for invariants of the program, never for input: it ends the process.
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
#define CHECK(expression) ((expression) ? static_cast<void>(0) : ::varve::check_failed(#expression, __FILE__, __LINE__))

}  // namespace varve
