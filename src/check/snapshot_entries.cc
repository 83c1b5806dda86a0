#include "check/snapshot_entries.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::check {

namespace {

constexpr uint32_t kKnownExtraBytes = 24;  // size of the machine's state, size of the disk, instruction count
constexpr uint32_t kRequiredExtraBytes = 16;

Error ended(Tally& tally, int error) {
  ++tally.check_errors;
  tally.error = error;
  return system_error(error, "the check ended");
}

class TableReader {
 public:
  TableReader(const ImageFile& file, const Layout& layout, Repair repair, const Report& report, Tally& tally)
      : file_(file), layout_(layout), repair_(repair), report_(report), tally_(tally) {}

  Result<SnapshotEntries> read(uint32_t count) {
    SnapshotEntries table;
    uint64_t at = layout_.snapshots_offset;
    uint64_t kept_bytes = 0;
    for (uint32_t i = 0; i < count; ++i) {
      const uint64_t entry_start = at;
      at = align_up(at, 8);
      kept_bytes = align_up(kept_bytes, 8);
      SnapshotEntry entry;
      TRY(read_entry(i, at, kept_bytes, entry, table));
      if (kept_bytes > kMaxSnapshotTableBytes || at - layout_.snapshots_offset > INT32_MAX) {
        if (repair_ != Repair::kAll) {
          report_.error(fmt::format("ERROR failed to read the snapshot table: Snapshot table is too big"));
          report_.line(
              fmt::format("You can force-remove all {} overhanging snapshots with qemu-img check -r all", count - i));
          return ended(tally_, EFBIG);
        }
        report_.line(fmt::format("Discarding {} overhanging snapshots (snapshot table is too big)", count - i));
        reduced_ += count - i;
        at = entry_start;
        break;
      }
      table.entries.push_back(std::move(entry));
    }
    table.table_bytes = at - layout_.snapshots_offset;
    return table;
  }
  uint32_t reduced() const { return reduced_; }

 private:
  Result<void> get(uint64_t at, std::span<std::byte> buffer) {
    if (file_.read(at, buffer)) return {};
    report_.error("ERROR failed to read the snapshot table: Failed to read snapshot table: Input/output error");
    return ended(tally_, EIO);
  }

  Result<void> read_entry(uint32_t index, uint64_t& at, uint64_t& kept_bytes, SnapshotEntry& entry,
                          SnapshotEntries& table) {
    std::array<std::byte, kSnapshotHeaderBytes> head{};
    TRY(get(at, head));
    at += head.size();
    const auto u32 = [&](size_t i) { return load_be<uint32_t>(&head[i]); };
    entry.l1_offset = load_be<uint64_t>(head.data());
    entry.l1_size = u32(8);
    const auto id_bytes = load_be<uint16_t>(&head[12]);
    const auto name_bytes = load_be<uint16_t>(&head[14]);
    entry.date_sec = u32(16);
    entry.date_nsec = u32(20);
    entry.vm_clock_nsec = load_be<uint64_t>(&head[24]);
    entry.vm_state_size = u32(32);
    entry.extra_bytes = u32(36);
    const bool too_much = entry.extra_bytes > kMaxSnapshotExtraBytes;
    if (too_much && repair_ != Repair::kAll) {
      report_.error(fmt::format(
          "ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry {}", index));
      report_.line("You can force-remove this extra metadata with qemu-img check -r all");
      return ended(tally_, EFBIG);
    }
    if (too_much) {
      report_.line(fmt::format("Discarding too much extra metadata in snapshot table entry {} ({} > {})", index,
                               entry.extra_bytes, kMaxSnapshotExtraBytes));
      ++tally_.corruptions;
      table.needs_new_table = true;
    }
    const uint64_t extra_end = at + entry.extra_bytes;
    std::array<std::byte, kKnownExtraBytes> extra{};
    TRY(get(at, std::span(extra).first(std::min(entry.extra_bytes, kKnownExtraBytes))));
    if (entry.extra_bytes >= 8) entry.vm_state_size = load_be<uint64_t>(extra.data());
    entry.disk_size = entry.extra_bytes >= 16 ? load_be<uint64_t>(&extra[8]) : layout_.virtual_size;
    entry.icount = entry.extra_bytes >= 24 ? load_be<uint64_t>(&extra[16]) : ~uint64_t{0};
    entry.extra_bytes = std::min(entry.extra_bytes, kMaxSnapshotExtraBytes);
    if (entry.extra_bytes > kKnownExtraBytes) {
      entry.unknown_extra.resize(entry.extra_bytes - kKnownExtraBytes);
      TRY(get(at + kKnownExtraBytes, entry.unknown_extra));
    }
    at = extra_end;
    TRY(read_text(at, id_bytes, entry.id));
    TRY(read_text(at, name_bytes, entry.name));
    kept_bytes += head.size() + entry.extra_bytes + id_bytes + name_bytes;
    return {};
  }

  // What QEMU takes for a C string: up to a NUL.
  Result<void> read_text(uint64_t& at, uint16_t bytes, std::string& text) {
    text.resize(bytes);
    TRY(get(at, std::as_writable_bytes(std::span(text))));
    at += bytes;
    text.resize(std::strlen(text.c_str()));
    return {};
  }

  const ImageFile& file_;
  const Layout& layout_;
  Repair repair_;
  const Report& report_;
  Tally& tally_;
  uint32_t reduced_ = 0;
};

}  // namespace

Result<SnapshotEntries> read_snapshot_entries(const ImageFile& file, const Layout& layout, Repair repair,
                                              const Report& report, Tally& tally) {
  uint32_t count = layout.nb_snapshots;
  uint32_t reduced = 0;
  if (count > kMaxSnapshots && repair == Repair::kAll) {
    report.line(fmt::format("Discarding {} overhanging snapshots", count - kMaxSnapshots));
    reduced = count - kMaxSnapshots;
    count = kMaxSnapshots;
  }
  if (count > kMaxSnapshots) {
    report.error("ERROR snapshot table too large");
    report.line(fmt::format("You can force-remove all {} overhanging snapshots with qemu-img check -r all",
                            count - kMaxSnapshots));
    return ended(tally, EFBIG);
  }
  if (static_cast<uint64_t>(INT64_MAX) - count * kSnapshotHeaderBytes < layout.snapshots_offset ||
      !layout.is_aligned(layout.snapshots_offset)) {
    report.error("ERROR snapshot table offset invalid");
    return ended(tally, EINVAL);
  }
  TableReader reader(file, layout, repair, report, tally);
  SnapshotEntries table = TRY(reader.read(count));
  reduced += reader.reduced();
  table.needs_fewer = reduced != 0;
  tally.corruptions_fixed += reduced;
  if (layout.version >= 3) {
    for (size_t i = 0; i < table.entries.size(); ++i) {
      if (table.entries[i].extra_bytes >= kRequiredExtraBytes) continue;
      ++tally.corruptions;
      table.needs_new_table = true;
      report.line(
          fmt::format("{} snapshot table entry {} is incomplete", repair == Repair::kAll ? "Repairing" : "ERROR", i));
    }
  }
  return table;
}

std::vector<std::byte> serialize(const std::vector<SnapshotEntry>& entries) {
  std::vector<std::byte> out;
  const auto put = [&](auto value) {
    const BigEndian<decltype(value)> raw(value);
    const auto bytes = std::as_bytes(std::span(&raw, 1));
    out.insert(out.end(), bytes.begin(), bytes.end());
  };
  const auto put_bytes = [&](std::span<const std::byte> bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); };
  for (const SnapshotEntry& e : entries) {
    out.resize(align_up(out.size(), 8));
    put(e.l1_offset);
    put(e.l1_size);
    put(static_cast<uint16_t>(e.id.size()));
    put(static_cast<uint16_t>(e.name.size()));
    put(e.date_sec);
    put(e.date_nsec);
    put(e.vm_clock_nsec);
    // Old readers, which know 32 bits only, shall see no machine state rather than a part of one.
    put(e.vm_state_size <= UINT32_MAX ? static_cast<uint32_t>(e.vm_state_size) : uint32_t{0});
    put(std::max(kKnownExtraBytes, e.extra_bytes));
    put(e.vm_state_size);
    put(e.disk_size);
    put(e.icount);
    put_bytes(e.unknown_extra);
    put_bytes(std::as_bytes(std::span(e.id)));
    put_bytes(std::as_bytes(std::span(e.name)));
  }
  return out;
}

}  // namespace varve::check
