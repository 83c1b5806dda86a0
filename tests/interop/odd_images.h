// Images of all the kinds that qemu-img 7.2 and a running QEMU legitimately leave behind.
#pragma once

#include <functional>
#include <iosfwd>
#include <vector>

#include "support/workshop.h"

namespace varve::test {

struct OddImage {
  const char* name;
  std::function<void(const Workshop&)> make;  // leaves an image called "disk", perhaps a raw "base" behind it
  bool clean_before = true;                   // for qemu-img check
};

std::ostream& operator<<(std::ostream& out, const OddImage& odd);

std::vector<OddImage> odd_images();

// Some data, zeroes, and a hole, at places that no cluster size likes.
void scatter(const Workshop& shop);

}  // namespace varve::test
