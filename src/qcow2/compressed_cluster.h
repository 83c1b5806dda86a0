// Compressed clusters (qcow2 specification, "Compressed Clusters Descriptor"): from their bytes to the cluster, and
// back.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "qcow2/header.h"

namespace varve::qcow2 {

// Fills all of `cluster` from `input`, which may have anything behind the compressed stream. zlib: raw deflate,
// written with a window of 4 KiB, though a larger one does no harm (the whole cluster is the window, in QEMU too);
// zstd: frames of which the last ends with the cluster, with windows of at most 8 MiB. kCorrupt without image name or
// offset (the caller knows them) when the stream is broken or too short. Never writes past `cluster`.
Result<void> decompress_cluster(CompressionType type, std::span<const std::byte> input, std::span<std::byte> cluster);

// Compresses clusters, one after the other; for one thread. Streams are what QEMU's own would be: raw deflate at zlib's
// default level in a window of 4 KiB, or one zstd frame at zstd's default level.
class ClusterCompressor {
 public:
  static Result<std::unique_ptr<ClusterCompressor>> create(CompressionType type, uint64_t cluster_size);
  virtual ~ClusterCompressor() = default;
  // The stream; empty where it would not be smaller than the cluster, or by next to nothing (incompressible.h). Valid until the next call.
  virtual Result<std::span<const std::byte>> compress(std::span<const std::byte> cluster) = 0;
};

}  // namespace varve::qcow2
