#include "qcow2/header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "qcow2/image.h"
#include "support/hostile_headers.h"
#include "support/image_bytes.h"

namespace varve::qcow2 {
namespace {

using test::contents;
using test::peek;
using test::poke;
using test::poke_bytes;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

std::unique_ptr<MemoryDevice> new_file(const CreateOptions& options = test::kGoodImage) {
  auto file = std::make_unique<MemoryDevice>("disk.qcow2");
  const auto r = Image::create(*file, options);
  EXPECT_TRUE(r) << r.error().message;
  return file;
}

Header good_header(BlockDevice& file) {
  auto header = read_header(file);
  EXPECT_TRUE(header) << header.error().message;
  return header ? *header : Header{};
}

void put_extension(BlockDevice& file, uint64_t at, uint32_t type, std::string_view data) {
  poke_bytes(file, at, std::string(800, '\0'));
  poke(file, at, type);
  poke(file, at + 4, static_cast<uint32_t>(data.size()));
  poke_bytes(file, at + 8, data);
}

class HostileHeaderTest : public testing::TestWithParam<test::HostileHeader> {};

TEST_P(HostileHeaderTest, IsRefusedWithTheReasonAndNothingIsWritten) {
  const test::HostileHeader& hostile = GetParam();
  const std::shared_ptr<MemoryDevice> file = new_file();
  for (const test::Patch& p : hostile.patches) test::apply(*file, p);
  const auto before = contents(*file);
  for (const bool writable : {false, true}) {
    const auto image = Image::open(file, {.writable = writable});
    ASSERT_FALSE(image);
    const Error& e = image.error();
    EXPECT_EQ(e.kind, hostile.kind) << e.message;
    EXPECT_THAT(e.message, StartsWith("disk.qcow2: "));
    EXPECT_THAT(e.message, HasSubstr(hostile.message));
    EXPECT_EQ(e.path, "disk.qcow2");
    EXPECT_EQ(e.offset, hostile.offset) << e.message;
  }
  EXPECT_EQ(contents(*file), before);
}

INSTANTIATE_TEST_SUITE_P(All, HostileHeaderTest, testing::ValuesIn(test::hostile_headers()),
                         [](const auto& instance) { return instance.param.name; });

// An image that is cut anywhere is refused, or opens and shows the same disk: no length in between makes a difference
// that nobody notices.
TEST(Header, AFileCutAnywhereIsRefusedOrReadsTheSame) {
  const CreateOptions options{.size = 64 << 10, .cluster_size = 512};
  const auto whole = [&] {
    std::shared_ptr<MemoryDevice> file = new_file(options);
    const auto image = *Image::open(file, {.writable = true});
    EXPECT_TRUE(image->write_at(1000, std::vector<std::byte>(3000, std::byte{0x5a})));
    EXPECT_TRUE(image->flush());
    return file;
  }();
  const auto disk = contents(**Image::open(whole, {}));
  const uint64_t size = *whole->size();
  unsigned refused = 0;
  for (uint64_t length = 0; length < size; length += length % 512 < 8 || length % 512 > 500 ? 1 : 61) {
    SCOPED_TRACE(length);
    const std::shared_ptr<MemoryDevice> cut = whole->clone();
    ASSERT_TRUE(cut->resize(length));
    const auto image = Image::open(cut, {});
    if (!image) {
      ++refused;
      EXPECT_EQ(image.error().kind, ErrorKind::kCorrupt);
      continue;
    }
    std::vector<std::byte> now(disk.size());
    const auto read = (*image)->read_at(0, now);
    if (!read) {
      ++refused;
      EXPECT_EQ(read.error().kind, ErrorKind::kCorrupt) << read.error().message;
      continue;
    }
    // Data that is gone reads as zeroes, as QEMU reads it; everything else as before.
    for (size_t i = 0; i < now.size(); ++i) ASSERT_TRUE(now[i] == disk[i] || now[i] == std::byte{0}) << i;
  }
  EXPECT_GT(refused, 10u);
}

TEST(Header, UnknownFeaturesAreNamedFromTheImagesOwnTable) {
  const auto file = new_file();
  poke(*file, 72, uint64_t{1} << 5 | uint64_t{1} << 40);
  std::string entry(48, '\0');
  entry[0] = 0;
  entry[1] = 5;
  entry.replace(2, 12, "time machine");
  put_extension(*file, 112, kExtensionFeatureNames, entry);
  const auto header = read_header(*file);
  ASSERT_FALSE(header);
  EXPECT_EQ(header.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(header.error().message, HasSubstr("time machine (bit 5), bit 40"));
}

TEST(Header, FeatureNamesThatWantToPaintOnTheTerminalAreMadeHarmless) {
  const auto file = new_file();
  poke(*file, 72, uint64_t{1} << 63);
  // All 46 bytes used, no NUL: an escape sequence, a delete, half a UTF-8 sequence; and an entry that is cut off.
  std::string entry(48, 'x');
  entry[0] = 0;
  entry[1] = 63;
  entry.replace(2, 10, "\x1b[2J\x7f\r\n\xc3\x28\xff");
  put_extension(*file, 112, kExtensionFeatureNames, entry + std::string(20, '\0'));
  const auto header = read_header(*file);
  ASSERT_FALSE(header);
  for (const char c : header.error().message) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << static_cast<int>(c);
  EXPECT_THAT(header.error().message, HasSubstr(std::string(1, '?') + "[2J" + std::string(4, '?') + "(" + "?xxx"));
  EXPECT_THAT(header.error().message, HasSubstr("(bit 63)"));
}

TEST(Header, ANameTableWithoutNamesLeavesTheBitNumbers) {
  for (const std::string& table : {std::string(), std::string(47, '\1'), std::string(48, '\0')}) {
    const auto file = new_file();
    poke(*file, 72, uint64_t{1} << 62);
    put_extension(*file, 112, kExtensionFeatureNames, table);
    const auto header = read_header(*file);
    ASSERT_FALSE(header);
    EXPECT_THAT(header.error().message, HasSubstr("bit 62"));
  }
}

TEST(Header, UnknownExtensionsAreKeptInOrderWhenTheHeaderIsWrittenAgain) {
  const auto file = new_file();
  poke_bytes(*file, 112, std::string(512, '\0'));
  put_extension(*file, 112, 0x11223344, "odd");
  put_extension(*file, 128, 0x55667788, "");
  put_extension(*file, 136, 0x11223344, "twice");
  const Header header = good_header(*file);
  ASSERT_EQ(header.extensions.size(), 3u);
  const auto again = serialize_header(header);
  ASSERT_TRUE(again) << again.error().message;
  ASSERT_TRUE(file->write_at(0, again->cluster));
  Header reread = good_header(*file);
  std::erase_if(reread.extensions, [](const HeaderExtension& e) { return e.type == kExtensionFeatureNames; });
  ASSERT_EQ(reread.extensions.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(reread.extensions[i].type, header.extensions[i].type);
    EXPECT_EQ(reread.extensions[i].data, header.extensions[i].data);
  }
}

TEST(Header, ExtensionsEndAtTheBackingFileName) {
  auto options = test::kGoodImage;
  options.backing_file = "base.img";
  options.backing_format = "raw";
  const auto file = new_file(options);
  EXPECT_EQ(good_header(*file).backing_file, "base.img");
  // The last extension claims the name's bytes for itself.
  const uint64_t name_at = peek<uint64_t>(*file, 8);
  poke(*file, 116, static_cast<uint32_t>(name_at - 120 + 1));
  const auto header = read_header(*file);
  ASSERT_FALSE(header);
  EXPECT_THAT(header.error().message, HasSubstr("runs past the header"));
  // To the last byte before the name it is fine; what it says is another matter.
  poke(*file, 112, uint32_t{0x12345678});
  poke(*file, 116, static_cast<uint32_t>(name_at - 120));
  EXPECT_EQ(good_header(*file).backing_file, "base.img");
}

TEST(Header, HeadersAndNamesThatFillTheirClusterToTheLastByteOpen) {
  const auto file = new_file({.size = 4096, .cluster_size = 512});
  poke_bytes(*file, 112, std::string(400, '\0'));
  poke_bytes(*file, 500, "base12345678");
  poke(*file, 8, uint64_t{500});
  poke(*file, 16, uint32_t{12});
  EXPECT_EQ(good_header(*file).backing_file, "base12345678");
  // A header that fills the cluster leaves no room for extensions.
  poke(*file, 8, uint64_t{0});
  poke(*file, 100, uint32_t{512});
  EXPECT_TRUE(good_header(*file).extensions.empty());
}

TEST(Header, WhatDoesNotFitIntoTheFirstClusterIsNotWritten) {
  Header header = good_header(*new_file({.size = 4096, .cluster_size = 512}));
  header.backing_file = std::string(1000, 'b');
  const auto too_long = serialize_header(header);
  ASSERT_FALSE(too_long);
  EXPECT_EQ(too_long.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_THAT(too_long.error().message, HasSubstr("1000 bytes does not fit"));
  header.backing_file.reset();
  header.extensions.push_back({0x11223344, std::vector<std::byte>(500)});
  const auto too_many = serialize_header(header);
  ASSERT_FALSE(too_many);
  EXPECT_THAT(too_many.error().message, HasSubstr("do not fit into a cluster of 512 bytes"));
}

TEST(Header, PatchingTheSectorChangesNothingButItsFields) {
  for (const uint32_t version : {2u, 3u}) {
    const auto file = new_file({.size = 1 << 20, .version = version});
    if (version == 2) poke_bytes(*file, 72, "extension bytes of a version 2 image");
    std::array<std::byte, kHeaderSectorSize> before{};
    ASSERT_TRUE(file->read_at(0, before));
    Header header;
    header.version = version;
    header.size = 0x1111111111111111;
    header.l1_size = 0x22222222;
    header.l1_table_offset = 0x3333333333333333;
    header.refcount_table_offset = 0x4444444444444444;
    header.refcount_table_clusters = 0x55555555;
    header.nb_snapshots = 0x66666666;
    header.snapshots_offset = 0x7777777777777777;
    header.autoclear_features = 0x8888888888888888;
    auto after = before;
    patch_header_sector(header, after);
    for (size_t i = 0; i < after.size(); ++i) {
      const bool may_change = (i >= 24 && i < 32) || (i >= 36 && i < 72) || (version == 3 && i >= 88 && i < 96);
      if (!may_change) {
        EXPECT_EQ(after[i], before[i]) << i;
      }
    }
    EXPECT_EQ(load_be<uint64_t>(&after[64]), 0x7777777777777777u);
    EXPECT_EQ(load_be<uint32_t>(&after[36]), 0x22222222u);
  }
}

struct HostileBitmaps {
  const char* name;
  uint32_t length;
  uint32_t count;
  uint64_t directory_size;
  uint64_t directory_offset;
  const char* message;
  uint64_t offset = 112;
};

class HostileBitmapsExtension : public testing::TestWithParam<HostileBitmaps> {};

TEST_P(HostileBitmapsExtension, IsRefusedWhereTheAutoclearBitVouchesForIt) {
  const HostileBitmaps& h = GetParam();
  const auto file = new_file();
  poke_bytes(*file, 112, std::string(64, '\0'));
  poke(*file, 112, uint32_t{kExtensionBitmaps});
  poke(*file, 116, h.length);
  poke(*file, 120, h.count);
  poke(*file, 128, h.directory_size);
  poke(*file, 136, h.directory_offset);
  // Without the bit nobody believes a word of it.
  EXPECT_FALSE(good_header(*file).bitmaps);
  poke(*file, 88, uint64_t{kAutoclearBitmaps});
  const auto header = read_header(*file);
  ASSERT_FALSE(header);
  EXPECT_EQ(header.error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(header.error().message, HasSubstr(h.message));
  EXPECT_EQ(header.error().offset, h.offset);
}

INSTANTIATE_TEST_SUITE_P(
    All, HostileBitmapsExtension,
    testing::Values(
        HostileBitmaps{"WrongLength", 16, 1, 32, 0x30000, "bitmaps extension of 16 bytes, not 24"},
        HostileBitmaps{"NoBitmaps", 24, 0, 32, 0x30000, "with 0 bitmaps"},
        HostileBitmaps{"TooManyBitmaps", 24, 65536, 32, 0x30000, "with 65536 bitmaps (1 to 65535)"},
        HostileBitmaps{"EmptyDirectory", 24, 1, 0, 0x30000, "bitmap directory of 0 bytes"},
        HostileBitmaps{"HugeDirectory", 24, 1, uint64_t{1} << 63, 0x30000, "bitmap directory of 9223372036854775808"},
        HostileBitmaps{"Misaligned", 24, 1, 32, 0x30008, "bitmap directory at offset 0x30008 is not cluster-aligned"},
        HostileBitmaps{"Outside", 24, 1, 32, 0x400000, "lies outside of the file of 196616 bytes"},
        HostileBitmaps{"Overflow", 24, 1, 65536, 0xffffffffffff0000, "lies outside of the file"},
        HostileBitmaps{"InTheHeader", 24, 1, 32, 0, "bitmap directory at offset 0x0 overlaps the header"},
        HostileBitmaps{"OnTheL1Table", 24, 1, 32, 0x30000, "L1 table and bitmap directory overlap", 40}),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace varve::qcow2
