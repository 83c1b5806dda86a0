#include "cli/snapshot_table_text.h"

#include <fmt/format.h>

#include "base/units.h"

namespace varve::cli {

namespace {

// fmt counts characters of UTF-8, C's printf (which QEMU uses) bytes.
std::string pad_right(std::string text, size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

}  // namespace

std::string snapshot_word(const std::string& text) {
  return text.substr(0, text.find('\0'));
}

std::string snapshot_table_text(std::span<const qcow2::Snapshot> snapshots) {
  if (snapshots.empty()) return {};
  std::string text = fmt::format("Snapshot list:\n{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}\n", "ID", "TAG", "VM SIZE",
                                 "DATE", "VM CLOCK", "ICOUNT");
  for (const qcow2::Snapshot& snapshot : snapshots) {
    text += pad_right(snapshot_word(snapshot.id), 9) + " " + pad_right(snapshot_word(snapshot.name), 16);
    // QEMU holds the instruction count in a signed number, of which -1 is none.
    const bool has_icount = snapshot.icount && *snapshot.icount != ~uint64_t{0};
    const std::string icount = has_icount ? fmt::format("{}", static_cast<int64_t>(*snapshot.icount)) : "";
    text += fmt::format(" {:>8}{:>20}{:>13}{:>11}\n", format_size(snapshot.vm_state_size),
                        format_local_time(snapshot.date_sec), format_vm_clock(snapshot.vm_clock_nsec), icount);
  }
  return text;
}

}  // namespace varve::cli
