#include "store/journal_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/endian.h"

namespace varve {
namespace {

qcow2::HeaderSector sector_with(uint8_t fill) {
  qcow2::HeaderSector sector;
  sector.fill(std::byte{fill});
  store_be(sector.data(), qcow2::kMagic);
  return sector;
}

JournalRecord example() {
  JournalRecord record;
  record.domain = "Büro PC";
  record.domain_uuid = "8c3d1f9e-4a52-4a43-9e57-1c5ed2b5bd0a";
  record.operation = "snapshot create 'Büro PC' vorher";
  record.snapshot = "vorher";
  for (const char* target : {"vda", "vdb"}) {
    JournalImage image;
    image.target = target;
    image.path = std::string("/var/lib/libvirt/images/") + target + ".qcow2";
    image.before = sector_with(1);
    image.after = sector_with(2);
    image.prepared = {.device = 2049, .inode = 77, .size = 1 << 20, .mtime_sec = -5, .mtime_nsec = 999'999'999};
    record.images.push_back(image);
  }
  record.changes.push_back({.path = "/etc/libvirt/qemu/x.xml", .contents = std::string("a\0b", 3), .mode = 0600});
  record.changes.push_back({.path = "/etc/libvirt/qemu/empty.xml", .contents = "", .mode = 0644});
  record.changes.push_back({.path = "/etc/libvirt/qemu/y.xml", .contents = std::nullopt, .mode = 0600});
  record.removed_images.emplace_back("/var/lib/libvirt/images/old.qcow2");
  record.removed_directories.emplace_back("/var/lib/libvirt/qemu/snapshot/x");
  return record;
}

// The checksum is made to fit, so that what stands behind it is reached.
std::vector<std::byte> with_byte(std::vector<std::byte> bytes, size_t offset, uint8_t value) {
  bytes[offset] = std::byte{value};
  uint32_t crc = 0xffffffff;
  for (size_t i = 24; i < bytes.size(); ++i) {
    crc ^= std::to_integer<uint32_t>(bytes[i]);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
  }
  store_be(bytes.data() + 12, ~crc);
  return bytes;
}

TEST(JournalRecordTest, ComesBackAsItWasWritten) {
  const JournalRecord record = example();
  const auto parsed = parse_record(serialize_record(record));
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed, record);
}

TEST(JournalRecordTest, ARecordWithoutAnythingToDoComesBackToo) {
  JournalRecord record;
  record.purpose = RecordPurpose::kUndo;
  record.domain = "d";
  const auto parsed = parse_record(serialize_record(record));
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed, record);
}

TEST(JournalRecordTest, EveryTruncationIsCorrupt) {
  const std::vector<std::byte> bytes = serialize_record(example());
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto parsed = parse_record(std::span(bytes).first(length));
    ASSERT_FALSE(parsed) << length;
    ASSERT_EQ(parsed.error().kind, ErrorKind::kCorrupt) << length;
  }
}

TEST(JournalRecordTest, EveryFlippedByteIsNoticed) {
  const std::vector<std::byte> bytes = serialize_record(example());
  for (size_t offset = 0; offset < bytes.size(); ++offset) {
    std::vector<std::byte> flipped = bytes;
    flipped[offset] ^= std::byte{0x40};
    ASSERT_FALSE(parse_record(flipped)) << offset;
  }
}

// Whoever can write a record can also give it a checksum: no byte of the payload may lead out of the buffer, and what
// parses is again a record that can be written.
TEST(JournalRecordTest, EveryForgedByteIsRefusedOrHarmless) {
  const std::vector<std::byte> bytes = serialize_record(example());
  for (size_t offset = 24; offset < bytes.size(); ++offset) {
    for (const int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      const std::vector<std::byte> forged = with_byte(bytes, offset, static_cast<uint8_t>(value));
      const auto parsed = parse_record(forged);
      if (!parsed) continue;
      ASSERT_EQ(serialize_record(*parsed), forged) << offset;
    }
  }
}

TEST(JournalRecordTest, ALaterVersionIsUnsupportedAndSaysSo) {
  std::vector<std::byte> bytes = serialize_record(example());
  store_be<uint32_t>(bytes.data() + 8, 3);
  const auto parsed = parse_record(bytes);
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(parsed.error().message, testing::HasSubstr("version 3"));
}

TEST(JournalRecordTest, TheFirstVersionIsReadAndHasNoUuid) {
  JournalRecord record = example();
  record.domain_uuid.clear();
  std::vector<std::byte> bytes = serialize_record(record);
  const size_t uuid = 24 + 1 + 8 + record.domain.size();
  bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(uuid), bytes.begin() + static_cast<std::ptrdiff_t>(uuid + 8));
  store_be<uint32_t>(bytes.data() + 8, 1);
  store_be<uint64_t>(bytes.data() + 16, bytes.size() - 24);
  const auto parsed = parse_record(with_byte(bytes, 24, 1));
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(*parsed, record);
}

TEST(JournalRecordTest, RelativePathsAreRefused) {
  JournalRecord record = example();
  record.changes[0].path = "etc/passwd";
  const auto parsed = parse_record(serialize_record(record));
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message, testing::HasSubstr("not absolute"));
}

TEST(JournalRecordTest, HeaderSectorsOfSomethingElseAreRefused) {
  JournalRecord record = example();
  record.images[1].after.fill(std::byte{0});
  const auto parsed = parse_record(serialize_record(record));
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message, testing::HasSubstr("header sector"));
}

}  // namespace
}  // namespace varve
