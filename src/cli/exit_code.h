// What the `varve` command says to the shell (docs: "Exit codes"). The one place where error kinds become numbers;
// `varve image` keeps qemu-img's own codes instead.
#pragma once

#include "base/result.h"

namespace varve::cli {

enum class ExitCode : int {
  kDone = 0,
  kFailed = 1,
  kUsage = 2,
  kRefused = 3,
  kNotFound = 4,
  kInUse = 5,
};

// What `varve verify` says to a monitoring system, in the numbers that these agree upon.
enum class Verdict : int {
  kOk = 0,
  kWarning = 1,
  kCritical = 2,
  kUnknown = 3,
};

constexpr ExitCode exit_code_of(Verdict verdict) {
  return static_cast<ExitCode>(verdict);
}

constexpr ExitCode exit_code_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return ExitCode::kUsage;
    case ErrorKind::kRefused:
    case ErrorKind::kAlreadyExists:
      return ExitCode::kRefused;
    case ErrorKind::kNotFound:
      return ExitCode::kNotFound;
    case ErrorKind::kInUse:
      return ExitCode::kInUse;
    case ErrorKind::kUnsupported:
    case ErrorKind::kCorrupt:
    case ErrorKind::kNoSpace:
    case ErrorKind::kPermission:
    case ErrorKind::kIo:
    case ErrorKind::kInterrupted:
    case ErrorKind::kInternal:
      return ExitCode::kFailed;
  }
  return ExitCode::kFailed;
}

}  // namespace varve::cli
