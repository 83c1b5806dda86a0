// Whether two disks hold the same. Where the tables of both show that a stretch is the same one (zeroes in both, or the
// very same place of the very same file, as in two overlays of one image), nothing is read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "image/open.h"

namespace varve::image {

struct Comparison {
  enum class Kind : uint8_t {
    kEqual,
    kSizeMismatch,     // strict only: nothing else was looked at
    kStatusMismatch,   // strict only: one has clusters where the other has none, at `offset`
    kContentMismatch,  // the sector at `offset` differs
    kReadFailed,       // at `offset` of image `image`
    kMapFailed,        // the tables of image `image` can't be read
  };
  Kind kind = Kind::kEqual;
  uint64_t offset = 0;
  int image = 0;                 // 0, 1
  std::optional<Error> failure;  // kReadFailed, kMapFailed
  bool reached_end_of_shorter = false;
};

struct CompareOptions {
  bool strict = false;
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
};

// Behind the end of the shorter disk the longer one must read as zeroes (unless strict).
Result<Comparison> compare(const OpenImage& first, const OpenImage& second, const CompareOptions& options);

}  // namespace varve::image
