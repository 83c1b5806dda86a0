// What is done to bytes that nobody vouches for. The libFuzzer targets and the replay of the corpus in the normal test
// suite call the same functions. They end the process where a promise is broken; a refusal is never one.
#pragma once

#include <cstddef>
#include <span>

namespace varve::fuzz {

// Opens an image for reading, lists its snapshots, writes header and snapshot table again.
void open_image(std::span<const std::byte> bytes);

// A whole life on a copy in memory: reads, guest writes, zeroes, discards, snapshots created, reverted, renamed and
// deleted. Promised for whatever an image contains: what a commit accepts reads the same before and after it.
void live(std::span<const std::byte> bytes);

// Checked, repaired, checked again, and looked at deeply. Promised: a check changes nothing; a repair leaves a
// sound image sound.
void check_image(std::span<const std::byte> bytes);

// Byte 0: how many snapshots; the rest is a snapshot table. Promised: what was read is written so that it reads the
// same.
void snapshot_table(std::span<const std::byte> bytes);

// Byte 0: how many bitmaps; bytes 1 to 3: the size of the directory, which follows in a cluster of its own; tables and
// bits lie wherever the entries say. Promised: as above; and what goes into a bitmap is in it.
void bitmaps(std::span<const std::byte> bytes);

// Byte 0: compression type and cluster size; the rest is the compressed cluster.
void decompress(std::span<const std::byte> bytes);

// A LUKS header. Promised: key material of an accepted one lies before its payload, and what is written again reads the
// same.
void luks_header(std::span<const std::byte> bytes);

}  // namespace varve::fuzz
