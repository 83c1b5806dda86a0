// The table of an image's internal snapshots, byte for byte as qemu-img 7.2 prints it.
#pragma once

#include <span>
#include <string>

#include "qcow2/snapshot_table.h"

namespace varve::cli {

// An id or a name as QEMU has it: it ends where a NUL stands in it.
std::string snapshot_word(const std::string& text);

// Empty for no snapshots; else a title, a line of headings, and a line each. Dates are in the local time zone. Long ids
// and tags push what follows to the right.
std::string snapshot_table_text(std::span<const qcow2::Snapshot> snapshots);

}  // namespace varve::cli
