#include "cli/qemu_drivers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace varve::cli {

namespace {

// Readers of foreign formats, filters, and devices that nobody creates.
constexpr auto kMakeNothing = std::to_array<std::string_view>(
    {"blkdebug", "blklogwrites", "blkverify", "bochs", "cloop", "compress", "copy-before-write", "copy-on-read", "dmg",
     "null-aio", "null-co", "preallocate", "quorum", "replication", "snapshot-access", "throttle", "vvfat"});
constexpr auto kMakeImages =
    std::to_array<std::string_view>({"file", "host_cdrom", "host_device", "luks", "nbd", "nvme", "parallels", "qcow",
                                     "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc"});
// Names that QEMU knows, and whose drivers are packaged apart from it: unknown where an image is to be made.
constexpr auto kPackagedApart =
    std::to_array<std::string_view>({"ftp", "ftps", "gluster", "http", "https", "iscsi", "nfs", "rbd", "ssh"});

template <size_t N>
bool is_among(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::ranges::find(names, name) != names.end();
}

std::string unknown(const std::string& format) {
  return fmt::format("Unknown file format '{}'", format);
}

}  // namespace

bool is_qemu_driver(std::string_view name) {
  return is_among(kMakeNothing, name) || is_among(kMakeImages, name) || is_among(kPackagedApart, name);
}

std::string not_created_reason(const std::string& format) {
  if (!is_among(kMakeNothing, format)) return unknown(format);
  return fmt::format("Format driver '{}' does not support image creation", format);
}

std::string not_amended_reason(const std::string& format) {
  if (!is_among(kMakeNothing, format) && !is_among(kMakeImages, format)) return unknown(format);
  return fmt::format("Format driver '{}' does not support option amendment", format);
}

std::string not_created_by_reason(const std::string& protocol) {
  if (protocol == "blkdebug") return "Protocol driver 'blkdebug' does not support image creation";
  return fmt::format("Unknown protocol '{}'", protocol);
}

}  // namespace varve::cli
