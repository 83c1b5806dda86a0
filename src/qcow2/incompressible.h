// Finds out quickly that compressing a cluster would not make it smaller: what is compressed or encrypted already, media,
// random bytes. A compressor takes longest over such data, for nothing.
#pragma once

#include <cstddef>
#include <span>

namespace varve::qcow2 {

// True only where bytes are spread so evenly that no code for single bytes saves more than its own table takes, and
// (almost) no sequence of four bytes comes twice. Takes a few hundredths of the time that deflate needs for such data.
bool is_incompressible(std::span<const std::byte> cluster);

}  // namespace varve::qcow2
