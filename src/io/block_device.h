// A block device: bytes at offsets, with the handful of operations that a disk has. It is what an image file looks
// like to the format that lives in it, and also what a guest's disk looks like to its reader: qcow2::Image is a
// BlockDevice over a BlockDevice. Real kinds: FileDevice, MemoryDevice, FaultDevice (tests), qcow2::Image.
//
// Contract, for all kinds:
//  - Offsets and lengths are in bytes and need no alignment.
//  - Bytes between a device's size and infinity read as an error (kInvalidArgument); a format that wants zeroes there
//    clips first.
//  - A write past the end grows the device if capabilities().can_grow, else it fails with kInvalidArgument.
//  - write_zeroes and discard never grow: what of the range lies past the end is left out. After write_zeroes the range
//    reads as zeroes. After discard it reads as zeroes (files, holes) or as whatever the format says (qcow2: zeroes or
//    backing data); never as stale data that a later allocation could expose.
//  - A completed write is visible to later reads at once and is on stable storage after the next successful flush.
//    After a failed flush the device refuses further writes (kIo): nobody knows what is on the disk.
//  - Calls from several threads are safe where they touch different ranges.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace varve {

enum class ExtentKind : uint8_t {
  kData,         // allocated here, contents unknown
  kZero,         // known to read as zeroes (a hole in a file; a zero cluster)
  kUnallocated,  // not held by this layer: the backing image shows through (zeroes where there is none)
};

struct Extent {
  uint64_t offset = 0;
  uint64_t length = 0;
  ExtentKind kind = ExtentKind::kData;
  bool operator==(const Extent&) const = default;
};

// Adds one that begins where the last one ends; of the same kind, they become one. One without length is left out.
inline void append_extent(std::vector<Extent>& extents, const Extent& next) {
  if (next.length == 0) return;
  if (!extents.empty() && extents.back().kind == next.kind) {
    extents.back().length += next.length;
  } else {
    extents.push_back(next);
  }
}

struct DeviceCapabilities {
  bool can_write = false;
  bool can_grow = false;         // resize up, writes past the end
  bool can_discard = false;      // discard gives space back
  bool has_extents = false;      // extents() knows more than "all data"
  bool grows_by_zeroes = false;  // what it grew by, and nobody wrote, reads as zeroes
};

enum class ZeroMode : uint8_t {
  kMayUnmap,       // give the space back where the device can
  kKeepAllocated,  // keep (or make) the range allocated
};

class BlockDevice {
 public:
  BlockDevice() = default;
  BlockDevice(const BlockDevice&) = delete;
  BlockDevice& operator=(const BlockDevice&) = delete;
  virtual ~BlockDevice() = default;

  virtual Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) = 0;
  virtual Result<void> write_at(uint64_t offset, std::span<const std::byte> data) = 0;
  // As write_at(), of at least one byte. Calls `placed` as soon as where the bytes will lie is settled: what others
  // write from then on lies behind them, if the device chooses places. Where it fails before that, `placed` is not
  // called.
  virtual Result<void> write_in_turn(uint64_t offset, std::span<const std::byte> data,
                                     const std::function<void()>& placed) {
    placed();
    return write_at(offset, data);
  }
  virtual Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) = 0;
  virtual Result<void> discard(uint64_t offset, uint64_t length) = 0;
  virtual Result<void> flush() = 0;
  // A hint: what was written here should be on its way to the disk while the caller goes on, so that the flush to come
  // finds less to wait for. Promises nothing, and says nothing of errors: those come with the flush.
  virtual void start_write_back(uint64_t /*offset*/, uint64_t /*length*/) {}
  virtual Result<uint64_t> size() = 0;
  virtual Result<void> resize(uint64_t new_size) = 0;
  // Extents that cover exactly [offset, offset+length) clipped to size(), in order, neighbours of one kind merged.
  virtual Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) = 0;
  virtual DeviceCapabilities capabilities() const = 0;
  // What to call the device in messages: the path for a file.
  virtual const std::string& name() const = 0;
};

}  // namespace varve
