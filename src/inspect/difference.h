// What differs between two points of a domain: its definition, and the places of its disks. Looks only; opens images
// for reading, under QEMU's locks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "host/host.h"
#include "qcow2/image.h"

namespace varve {

struct DiskDifference {
  std::string target;
  std::optional<qcow2::PointDifference> places;  // nothing: see `problem`
  std::string problem;                           // why they can't be compared
};

struct PointsDifference {
  // A unified diff of the domain XML, of what starts next time where the machine ran; empty: the same.
  std::string definition;
  std::string definition_problem;     // why they can't be compared; empty: they were
  std::vector<DiskDifference> disks;  // those of today that hold one of the two points at least
};

// `other` empty: the present state. kNotFound.
Result<PointsDifference> difference_of_points(Host& host, const std::string& domain, const std::string& one,
                                              const std::string& other);

// Line by line, with three lines around each change, as diff -u has it; empty where they are the same.
std::string unified_diff(const std::string& before, const std::string& after);

}  // namespace varve
