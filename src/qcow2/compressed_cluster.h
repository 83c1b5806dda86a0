// Compressed clusters (qcow2 specification, "Compressed Clusters Descriptor"): from their bytes to the cluster.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "qcow2/header.h"

namespace varve::qcow2 {

// Fills all of `cluster` from `input`, which may have anything behind the compressed stream. zlib: raw deflate,
// written with a window of 4 KiB, though a larger one does no harm (the whole cluster is the window, in QEMU too);
// zstd: frames of which the last ends with the cluster, with windows of at most 8 MiB. kCorrupt without image name or
// offset (the caller knows them) when the stream is broken or too short. Never writes past `cluster`.
Result<void> decompress_cluster(CompressionType type, std::span<const std::byte> input, std::span<std::byte> cluster);

}  // namespace varve::qcow2
