#include "qcow2/header_update.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"
#include "qcow2/padded_read.h"

namespace varve::qcow2 {
namespace {

// Where the bytes end that the header in `cluster` needs: extensions and backing file name.
uint64_t end_of_header(std::span<const std::byte> cluster, uint64_t header_length) {
  const auto name_at = load_be<uint64_t>(&cluster[8]);
  const auto name_size = load_be<uint32_t>(&cluster[16]);
  const uint64_t limit = name_at != 0 ? name_at : cluster.size();
  uint64_t at = header_length;
  while (at + 8 <= limit && load_be<uint32_t>(&cluster[at]) != kExtensionEnd)
    at = align_up(at + 8 + load_be<uint32_t>(&cluster[at + 4]), 8);
  return std::min<uint64_t>(std::max(at + 8, name_at + name_size), cluster.size());
}

// The new header's bytes behind the first sector can be written while the old header is the header. What lies between
// its extensions and its name belongs to nobody, and stays.
bool spares_the_old(SerializedHeader& next, std::span<const std::byte> now, uint64_t old_end) {
  const uint64_t name_at = std::max<uint64_t>(load_be<uint64_t>(&next.cluster[8]), next.extensions_end);
  for (uint64_t at = std::max<uint64_t>(next.extensions_end, kHeaderSectorSize); at < name_at; ++at)
    next.cluster[at] = now[at];
  const uint64_t both = std::min(next.end, old_end);
  return both <= kHeaderSectorSize ||
         std::equal(&next.cluster[kHeaderSectorSize], &next.cluster[0] + both, &now[kHeaderSectorSize]);
}

}  // namespace

Result<void> replace_header(BlockDevice& file, const Header& header) {
  const Header old_header = TRY(read_header(file));
  std::vector<std::byte> now(header.cluster_size());
  TRY(read_padded(file, 0, now));
  const uint64_t old_end = end_of_header(now, old_header.header_length);
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
  if (spares_the_old(next, now, old_end)) return write(next, true);
  // The new name, or the new extensions, would lie on the old name. So the new name goes beside it; or the old one
  // moves first, out of the way of both.
  const uint64_t beside_at = align_up(std::max({old_end, next.extensions_end, uint64_t{kHeaderSectorSize}}), 8);
  auto beside = serialize_header(header, beside_at);
  if (beside && spares_the_old(*beside, now, old_end)) return write(*beside, true);
  if (old_header.backing_file) {
    auto moved = serialize_header(old_header, beside_at);
    if (moved && spares_the_old(*moved, now, old_end)) {
      const bool same_name = old_header.backing_file == header.backing_file;
      auto last = serialize_header(header, same_name ? beside_at : align_up(moved->end, 8));
      if (last) {
        TRY(write(*moved, true));
        const bool in_order = spares_the_old(*last, moved->cluster, moved->end);
        return write(*last, in_order);
      }
    }
  }
  return write(next, false);
}

}  // namespace varve::qcow2
