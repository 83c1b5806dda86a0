#include "image/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

namespace varve::image {

namespace {

constexpr std::string_view kQcowMagic{"QFI\xfb", 4};
// With the version. To QEMU, LUKS version 2 is what a guest has in its raw disk.
constexpr std::string_view kLuksMagic{"LUKS\xba\xbe\0\1", 8};

// Formats that QEMU 7.2 recognises by what stands at a fixed place, and that are not ours.
struct ForeignMagic {
  uint64_t offset;
  std::string_view bytes;
  const char* name;
};
constexpr std::array kForeign = {
    ForeignMagic{0, "KDMV", "VMDK"},
    ForeignMagic{0, "COWD", "VMDK"},
    ForeignMagic{0, "vhdxfile", "VHDX"},
    ForeignMagic{0, "conectix", "VHD (vpc)"},
    ForeignMagic{0, std::string_view("QED\0", 4), "QED"},
    ForeignMagic{0, "WithoutFreeSpace", "Parallels"},
    ForeignMagic{0, "WithouFreSpacExt", "Parallels"},
    ForeignMagic{0, "Bochs Virtual HD Image", "Bochs"},
    ForeignMagic{64, "\x7f\x10\xda\xbe", "VDI"},
};

Result<std::string> first_bytes(BlockDevice& file, size_t count) {
  const uint64_t size = TRY(file.size());
  std::string bytes(static_cast<size_t>(std::min<uint64_t>(size, count)), '\0');
  TRY(file.read_at(0, std::as_writable_bytes(std::span(bytes))));
  return bytes;
}

}  // namespace

const char* name_of(Format format) {
  switch (format) {
    case Format::kRaw:
      return "raw";
    case Format::kQcow2:
      return "qcow2";
    case Format::kLuks:
      return "luks";
  }
  return "raw";
}

std::optional<Format> format_of_name(std::string_view name) {
  if (name == "raw") return Format::kRaw;
  if (name == "qcow2") return Format::kQcow2;
  if (name == "luks") return Format::kLuks;
  return std::nullopt;
}

Result<bool> looks_like_qcow2(BlockDevice& file) {
  const std::string head = TRY(first_bytes(file, 8));
  if (head.size() < 8 || !head.starts_with(kQcowMagic)) return false;
  const std::string_view version = std::string_view(head).substr(4);
  return version >= std::string_view("\0\0\0\x02", 4);  // version 1 is another format
}

Result<Format> probe_format(BlockDevice& file) {
  if (TRY(looks_like_qcow2(file))) return Format::kQcow2;
  const std::string head = TRY(first_bytes(file, 512));
  if (head.starts_with(kLuksMagic)) return Format::kLuks;
  const char* foreign = head.starts_with(kQcowMagic) ? "qcow (version 1)" : nullptr;
  for (const ForeignMagic& magic : kForeign) {
    if (head.size() >= magic.offset + magic.bytes.size() &&
        head.compare(magic.offset, magic.bytes.size(), magic.bytes) == 0) {
      foreign = magic.name;
    }
  }
  if (foreign != nullptr) {
    return make_error(
               ErrorKind::kUnsupported,
               fmt::format("'{}' looks like a {} image, a format that Varve does not read", file.name(), foreign))
        .with_note("`-f raw` takes its bytes as they are; `qemu-img convert` makes a qcow2 image of it");
  }
  return Format::kRaw;
}

}  // namespace varve::image
