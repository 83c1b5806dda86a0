// Collects every reason not to start an operation, so that a refusal names all of them at once.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace varve {

class Preflight {
 public:
  // `failure` is how a refusal begins: "snapshot 'a' of 'vm' is not created".
  explicit Preflight(std::string failure) : failure_(std::move(failure)) {}

  void refuse(Error error) { errors_.push_back(std::move(error)); }
  // The value, or nothing where the error has been added to the reasons.
  template <typename T>
  std::optional<T> accept(Result<T> result) {
    if (result) return std::move(*result);
    refuse(std::move(result).error());
    return std::nullopt;
  }
  void accept(Result<void> result) {
    if (!result) refuse(std::move(result).error());
  }
  bool ok() const { return errors_.empty(); }

  // Nothing, or one error: the first reason, the others as notes, and that nothing was changed. kInUse and
  // kAlreadyExists stay what they are; every other reason becomes kRefused.
  Result<void> finish() &&;

 private:
  std::string failure_;
  std::vector<Error> errors_;
};

// "a, b and 12 more".
std::string list_of(const std::vector<std::string>& names, size_t shown = 10);

}  // namespace varve
