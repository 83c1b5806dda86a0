#include "qcow2/header_update.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/padded_read.h"

namespace varve::qcow2 {
namespace {

// The bytes that a header needs behind its fixed part: up to the end of the extensions, and the backing file name.
struct NeededBytes {
  uint64_t extensions_end = 0;
  uint64_t name_at = 0;
  uint64_t name_end = 0;
  uint64_t end() const { return std::max(extensions_end, name_end); }
};

NeededBytes bytes_needed(std::span<const std::byte> cluster) {
  NeededBytes needed;
  needed.name_at = load_be<uint64_t>(&cluster[8]);
  needed.name_end = std::min<uint64_t>(needed.name_at + load_be<uint32_t>(&cluster[16]), cluster.size());
  const uint64_t limit = needed.name_at != 0 ? needed.name_at : cluster.size();
  const bool version_2 = load_be<uint32_t>(&cluster[4]) == 2;
  uint64_t at = version_2 ? 72 : load_be<uint32_t>(&cluster[100]);
  while (at + 8 <= limit && load_be<uint32_t>(&cluster[at]) != kExtensionEnd)
    at = align_up(at + 8 + load_be<uint32_t>(&cluster[at + 4]), 8);
  needed.extensions_end = std::min<uint64_t>(at + 8, limit);
  return needed;
}

// The new header's bytes behind the first sector can be written while the header in `now` is the header. What lies
// between the new extensions and the new name belongs to nobody, and stays.
bool spares(SerializedHeader& next, std::span<const std::byte> now, const NeededBytes& needed) {
  const uint64_t name_at = std::max<uint64_t>(load_be<uint64_t>(&next.cluster[8]), next.extensions_end);
  for (uint64_t at = std::max<uint64_t>(next.extensions_end, kHeaderSectorSize); at < name_at; ++at)
    next.cluster[at] = now[at];
  const auto same = [&](uint64_t first, uint64_t last) {
    first = std::max<uint64_t>(first, kHeaderSectorSize);
    last = std::min(last, next.end);
    return first >= last || std::equal(&next.cluster[first], &next.cluster[0] + last, &now[first]);
  };
  return same(0, needed.extensions_end) && same(needed.name_at, needed.name_end);
}

}  // namespace

Result<void> replace_header(BlockDevice& file, const Header& header) {
  const Header old_header = TRY(read_header(file));
  std::vector<std::byte> now(header.cluster_size());
  TRY(read_padded(file, 0, now));
  const NeededBytes needed = bytes_needed(now);
  const auto write = [&](const SerializedHeader& h, bool in_order) -> Result<void> {
    const auto bytes = std::span<const std::byte>(h.cluster).first(std::max<uint64_t>(h.end, kHeaderSectorSize));
    if (in_order && bytes.size() > kHeaderSectorSize) {
      TRY(file.write_at(kHeaderSectorSize, bytes.subspan(kHeaderSectorSize)));
      TRY(file.flush());  // the end of the header | the sector that makes it the header
      TRY(file.write_at(0, bytes.first(kHeaderSectorSize)));
    } else {
      TRY(file.write_at(0, bytes));
    }
    return file.flush();
  };

  SerializedHeader next = TRY(serialize_header(header));
  TRY(file.flush());  // whatever the new header names | the header
  if (spares(next, now, needed)) return write(next, true);
  // The new name, or the new extensions, would lie on the old name. So the new name goes beside it; or the old one
  // moves first, out of the way of both.
  const uint64_t beside_at = align_up(std::max({needed.end(), next.extensions_end, uint64_t{kHeaderSectorSize}}), 8);
  auto beside = serialize_header(header, beside_at);
  if (beside && spares(*beside, now, needed)) return write(*beside, true);
  if (old_header.backing_file) {
    auto moved = serialize_header(old_header, beside_at);
    if (moved && spares(*moved, now, needed)) {
      const bool same_name = old_header.backing_file == header.backing_file;
      auto last = serialize_header(header, same_name ? beside_at : align_up(moved->end, 8));
      if (last) {
        TRY(write(*moved, true));
        return write(*last, spares(*last, moved->cluster, bytes_needed(moved->cluster)));
      }
    }
  }
  return write(next, false);
}

}  // namespace varve::qcow2
