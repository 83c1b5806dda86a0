// The SHA-256 of a file while it is copied, computed beside the copying.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace varve {

class Checksum {
 public:
  static Result<Checksum> begin();
  Checksum(Checksum&&) noexcept;
  ~Checksum();

  // Waits while too much has been added that is not yet computed.
  void add(std::span<const std::byte> bytes);
  // In hexadecimal, as sha256sum prints it. Once.
  Result<std::string> finish();

 private:
  class Worker;
  explicit Checksum(std::unique_ptr<Worker> worker);
  std::unique_ptr<Worker> worker_;
};

// Of a text.
Result<std::string> checksum_of(std::string_view text);

}  // namespace varve
