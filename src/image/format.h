// The image formats that Varve reads and writes, and how one is told from another. A format comes from whoever names
// the image (the user's -f, the domain's XML, the overlay's header); probing is for one case only, an image that a user
// names on the command line without saying what it is, because a guest can write any header it likes into a raw disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "io/block_device.h"

namespace varve::image {

enum class Format : uint8_t { kRaw, kQcow2, kLuks };

// "raw", "qcow2", "luks", as QEMU and libvirt write them.
const char* name_of(Format format);
std::optional<Format> format_of_name(std::string_view name);

// What the first bytes look like: qcow2, LUKS version 1, else raw. kUnsupported for a disk format that QEMU would
// recognise and Varve does not read: it must not pass for a raw disk.
Result<Format> probe_format(BlockDevice& file);

// Whether the file begins as a qcow2 image does.
Result<bool> looks_like_qcow2(BlockDevice& file);

}  // namespace varve::image
