// What libguestfs calls a disk, and what people do. Its disks are /dev/sda, /dev/sdb, … in the order in which they were
// given to it; people know them by their target in the definition.
//
//   /dev/sda1               vda1
//   /dev/vg/root            vg/root
//   btrfsvol:/dev/sda2/@    btrfsvol:vda2/@
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace varve::guestfs {

// "/dev/sda" for 0, "/dev/sdaa" for 26.
std::string appliance_disk(size_t index);

// The name for people of what libguestfs calls `mountable`; `targets` are its disks in their order.
std::string name_for_people(const std::string& mountable, const std::vector<std::string>& targets);

}  // namespace varve::guestfs
