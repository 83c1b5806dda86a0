// Copying a guest's disk from one image to another, holes kept: what reads as zeroes is not written where the target
// reads as zeroes anyhow, and long enough runs of zero bytes in data become holes.
//
// Several threads, each with its own pieces of the disk: reading, looking for zeroes and compressing go on side by
// side.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "io/block_device.h"
#include "qcow2/image.h"

namespace varve::image {

// A disk to copy from: layers of one chain, top first. A snapshot's view may stand in place of the top.
struct ConvertSource {
  std::vector<BlockDevice*> layers;
  uint64_t size = 0;  // of layers.front(), bytes
};

struct Salvage {
  std::function<void(uint64_t offset, const Error& error)> unreadable;
  std::function<void(uint64_t offset, const Error& error)> unknown;
};

struct ConvertOptions {
  // Runs of zero bytes of at least this length become holes; 0: everything is written and the target fully allocated.
  uint64_t sparse_size = 4096;
  // From this offset on, the target reads as zeroes before the copy.
  uint64_t target_zero_from = UINT64_MAX;
  // The target's own backing file shows what the source's lower layers hold: only the top layer is copied.
  bool only_top_layer = false;
  // Where the target is this image: clusters are written compressed, and only whole clusters of zeroes become holes.
  // They lie in the order in which they got ready, others in that of the disk.
  qcow2::Image* compress_into = nullptr;
  uint64_t bytes_per_second = 0;  // 0: as fast as it goes
  // Called now and then, from any thread but never from two at once; bytes of data.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Where it is given: sectors that can't be read become zeroes, and those of which nobody can tell whether they are
  // data are taken for data. Each is told of, in the order of the disk, with its offset in its source; what can't be
  // told, twice, as the sources are first looked through. One thread copies then.
  std::optional<Salvage> salvage = std::nullopt;
  // Asked now and then: true ends the copy with kInterrupted, whose offset says how far it came: everything before is
  // copied.
  std::function<bool()> interrupted = nullptr;
};

// Copies the sources, one behind the other, into `target`, which is at least as large as all of them together. The
// caller flushes. An error has the offset in the target, and its message says whether reading or writing failed.
Result<void> convert(const std::vector<ConvertSource>& sources, BlockDevice& target, const ConvertOptions& options);

}  // namespace varve::image
