// The same for documents: what is done to text and journal records that nobody vouches for (entry_points.h).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace varve::fuzz {

// A domain definition: parsed, asked for everything, edited, written. Promised: what was not changed comes back byte
// for byte; what we write we can read.
void domain_xml(std::string_view text);

// Snapshot metadata, likewise. Promised besides: an edit is what is read back.
void snapshot_xml(std::string_view text);

// A journal record, as it is and with a checksum that fits, so that what stands behind the checksum is reached.
// Promised: what is accepted is written again as the very same bytes, and its paths are absolute.
void journal(std::span<const std::byte> bytes);

}  // namespace varve::fuzz
