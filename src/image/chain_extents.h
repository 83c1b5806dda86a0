// Which layer of a backing chain a guest's bytes come from, so that two chains can be told equal where they share a
// layer, and only there without reading.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "image/open.h"

namespace varve::image {

// What a layer's bytes are: a file, and how it is read. The same file read as raw and as qcow2 shows two disks.
struct LayerIdentity {
  FileIdentity file;
  Format format = Format::kRaw;
  bool operator==(const LayerIdentity&) const = default;
};

struct ChainLayer {
  BlockDevice* device = nullptr;
  LayerIdentity identity;
};

struct OwnedExtent {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool zero = false;    // reads as zeroes; then no layer is named
  LayerIdentity owner;  // the layer whose data shows
};

// The layers of an open image from `first` on, top first.
std::vector<ChainLayer> chain_layers(const OpenImage& image, size_t first = 0);

// Covers [offset, offset+length) whole, in order; what no layer holds, and what is behind the end of one that the ones
// above leave open, is zero.
Result<std::vector<OwnedExtent>> owned_extents(std::span<const ChainLayer> layers, uint64_t offset, uint64_t length);

}  // namespace varve::image
