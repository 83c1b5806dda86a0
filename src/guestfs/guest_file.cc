#include "guestfs/guest_file.h"

namespace varve::guestfs {

const char* name_of(GuestFileKind kind) {
  switch (kind) {
    case GuestFileKind::kFile:
      return "file";
    case GuestFileKind::kDirectory:
      return "directory";
    case GuestFileKind::kLink:
      return "link";
    case GuestFileKind::kBlockDevice:
      return "block device";
    case GuestFileKind::kCharacterDevice:
      return "character device";
    case GuestFileKind::kFifo:
      return "fifo";
    case GuestFileKind::kSocket:
      return "socket";
    case GuestFileKind::kOther:
      break;
  }
  return "other";
}

std::string mode_text(const GuestFile& file) {
  constexpr const char* kKinds = "-dlbcps?";
  std::string text(1, kKinds[static_cast<size_t>(file.kind)]);
  for (int shift = 6; shift >= 0; shift -= 3) {
    const uint32_t bits = file.mode >> shift;
    text += (bits & 4U) != 0 ? 'r' : '-';
    text += (bits & 2U) != 0 ? 'w' : '-';
    text += (bits & 1U) != 0 ? 'x' : '-';
  }
  const auto special = [&](uint32_t bit, size_t at, char with_x, char without) {
    if ((file.mode & bit) != 0) text[at] = text[at] == 'x' ? with_x : without;
  };
  special(04000, 3, 's', 'S');
  special(02000, 6, 's', 'S');
  special(01000, 9, 't', 'T');
  return text;
}

std::string path_in(const std::string& directory, const std::string& name) {
  return directory.ends_with('/') ? directory + name : directory + "/" + name;
}

}  // namespace varve::guestfs
