// QEMU's null-co and null-aio: a disk of a given size in which everything is zero, for measuring and for tests. Here it
// is a file without a name that is all hole, so that whatever opens images opens it, too.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace varve::cli {

class NullDevice {
 public:
  static Result<NullDevice> make(uint64_t size);  // bytes
  NullDevice(NullDevice&& other) noexcept;
  NullDevice(const NullDevice&) = delete;
  NullDevice& operator=(const NullDevice&) = delete;
  ~NullDevice();

  std::string path() const;  // while this object lives

 private:
  explicit NullDevice(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace varve::cli
