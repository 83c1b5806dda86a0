#include "qcow2/snapshot_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "support/image_bytes.h"
#include "support/qcow2_scan.h"

namespace varve::qcow2 {
namespace {

using test::contents;
using test::poke;
using test::poke_bytes;
using testing::HasSubstr;
using testing::StartsWith;

// Clusters of 4 KiB, a disk of 1 MiB, snapshots "first" and "second" with a little data in each.
class SnapshotTableTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Image::create(*file_, {.size = 1 << 20, .cluster_size = 4096}));
    const auto image = *Image::open(file_, {.writable = true});
    for (const char* name : {"first", "second"}) {
      ASSERT_TRUE(image->write_at(10000, std::vector<std::byte>(10000, static_cast<std::byte>(name[0]))));
      auto t = SnapshotTransaction::begin(*image);
      ASSERT_TRUE(t);
      ASSERT_TRUE(t->create({.name = name, .date_sec = 1700000000, .date_nsec = 5}));
      const auto prepared = t->prepare();
      ASSERT_TRUE(prepared);
      ASSERT_TRUE(SnapshotTransaction::commit(*image, *prepared));
    }
    ASSERT_TRUE(image->flush());
    table_ = image->header().snapshots_offset;
    header_ = image->header();
    snapshots_ = image->snapshots();
  }

  // Reading, opening for writing: the same refusal, and nothing is written.
  void expect_refused(const std::string& message, std::optional<uint64_t> offset = std::nullopt) {
    const auto before = contents(*file_);
    for (const bool writable : {false, true}) {
      const auto image = Image::open(file_, {.writable = writable});
      ASSERT_FALSE(image) << message;
      EXPECT_EQ(image.error().kind, ErrorKind::kCorrupt) << image.error().message;
      EXPECT_THAT(image.error().message, StartsWith("disk.qcow2: "));
      EXPECT_THAT(image.error().message, HasSubstr(message));
      EXPECT_EQ(image.error().path, "disk.qcow2");
      ASSERT_TRUE(image.error().offset.has_value());
      if (offset) {
        EXPECT_EQ(*image.error().offset, *offset);
      }
    }
    EXPECT_EQ(contents(*file_), before);
  }

  static std::vector<std::byte> disk(BlockDevice& device) {
    std::vector<std::byte> bytes(*device.size());
    EXPECT_TRUE(device.read_at(0, bytes));
    return bytes;
  }

  // The first snapshot is listed and not used; the second one and the disk read as before; nothing is written.
  void expect_unusable(const std::string& message) {
    SCOPED_TRACE(message);
    const auto before = contents(*file_);
    const auto image = Image::open(file_, {.writable = true});
    ASSERT_TRUE(image) << image.error().message;
    ASSERT_EQ((*image)->snapshots().size(), 2u);
    const Snapshot& first = (*image)->snapshots()[0];
    EXPECT_EQ(first.name, "first");
    ASSERT_TRUE(first.fault);
    EXPECT_THAT(first.fault->what, HasSubstr(message));
    EXPECT_FALSE((*image)->snapshots()[1].fault);
    EXPECT_EQ(disk(**image)[10000], std::byte{'s'});
    EXPECT_EQ(disk(**(*image)->open_snapshot(1))[10000], std::byte{'s'});
    const auto view = (*image)->open_snapshot(0);
    ASSERT_FALSE(view);
    expect_fault(view.error());
    if (auto t = SnapshotTransaction::begin(**image)) {
      const auto reverted = t->revert(0);
      ASSERT_FALSE(reverted);
      expect_fault(reverted.error());
    }
    EXPECT_EQ(contents(*file_), before);
  }
  // And nobody can tell what it refers to: no snapshot is changed at all.
  void expect_unknown(const std::string& message) {
    expect_unusable(message);
    const auto before = contents(*file_);
    const auto image = *Image::open(file_, {.writable = true});
    EXPECT_FALSE(image->snapshots()[0].fault->table_is_known);
    const auto t = SnapshotTransaction::begin(*image);
    ASSERT_FALSE(t);
    expect_fault(t.error());
    EXPECT_THAT(t.error().message, HasSubstr("no snapshot is created, reverted to or deleted"));
    const auto usage = image->snapshot_usage(0);
    ASSERT_FALSE(usage);
    expect_fault(usage.error());
    EXPECT_TRUE(image->snapshot_usage(1));
    EXPECT_EQ(contents(*file_), before);
  }
  void expect_fault(const Error& error) const {
    EXPECT_EQ(error.kind, ErrorKind::kCorrupt);
    EXPECT_THAT(error.message, StartsWith("disk.qcow2: snapshot 'first' (id 1) is damaged: its L1 table"));
    EXPECT_EQ(error.path, "disk.qcow2");
    EXPECT_EQ(error.offset, table_);
    ASSERT_FALSE(error.notes.empty());
    EXPECT_THAT(error.notes[0], HasSubstr("`qemu-img "));
  }

  // Puts a table of our own into the place of the image's, at its end where there is room.
  void replace_table(const std::vector<std::byte>& bytes, uint32_t count) {
    const uint64_t at = (*file_->size() + 4095) / 4096 * 4096;
    ASSERT_TRUE(file_->write_at(at, bytes));
    table_ = at;
    poke(*file_, 60, count);
    poke(*file_, 64, at);
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("disk.qcow2");
  uint64_t table_ = 0;  // where it is; an entry: 40 bytes, 24 of extra data, id, name
  Header header_;
  std::vector<Snapshot> snapshots_;
};

TEST_F(SnapshotTableTest, WhatIsWrittenIsReadBack) {
  ASSERT_EQ(snapshots_.size(), 2u);
  EXPECT_EQ(snapshots_[0].name, "first");
  EXPECT_EQ(snapshots_[0].id, "1");
  EXPECT_EQ(snapshots_[0].date_sec, 1700000000u);
  EXPECT_EQ(snapshots_[0].date_nsec, 5u);
  EXPECT_EQ(snapshots_[0].disk_size, 1u << 20);
  EXPECT_EQ(snapshots_[1].id, "2");
  const auto again = serialize_snapshot_table(snapshots_);
  EXPECT_EQ(again.size() % 8, 0u);
  std::vector<std::byte> on_disk(again.size());
  ASSERT_TRUE(file_->read_at(table_, on_disk));
  EXPECT_EQ(again, on_disk);
}

TEST_F(SnapshotTableTest, TheL1TableOfASnapshotMustBeAligned) {
  poke(*file_, table_, snapshots_[0].l1_table_offset + 512);
  expect_unknown("is not cluster-aligned");
}

TEST_F(SnapshotTableTest, TheL1TableOfASnapshotMustNotOverlapTheHeader) {
  poke(*file_, table_, uint64_t{0});
  expect_unknown("its L1 table (offset 0x0, 1 entries) overlaps the header");
}

TEST_F(SnapshotTableTest, TheL1TableOfASnapshotMustLieInTheFile) {
  poke(*file_, table_, uint64_t{1} << 40);
  expect_unknown("(offset 0x10000000000, 1 entries) lies outside of the file");
  poke(*file_, table_, ~uint64_t{0} - 4095);
  expect_unknown("(offset 0xfffffffffffff000, 1 entries) lies outside of the file");
  poke(*file_, table_ + 8, uint32_t{4 << 20});
  expect_unknown("4194304 entries) lies outside of the file");
}

TEST_F(SnapshotTableTest, TheL1TableOfASnapshotIsLimited) {
  poke(*file_, table_ + 8, uint32_t{(4 << 20) + 1});
  expect_unknown("4194305 entries) is too large");
  poke(*file_, table_ + 8, ~uint32_t{0});
  expect_unknown("4294967295 entries) is too large");
}

TEST_F(SnapshotTableTest, TheL1TableOfASnapshotMustFitItsDisk) {
  poke(*file_, table_ + 40 + 8, uint64_t{1} << 40);
  expect_unusable("is too small for its disk size");
  poke(*file_, table_ + 40 + 8, ~uint64_t{0});
  expect_unusable("belongs to a disk of impossible size");
  // Without any table, a size would be an order to allocate: a revert makes an L1 table for it.
  poke(*file_, table_ + 8, uint32_t{0});
  expect_unusable("belongs to a disk of impossible size");
  poke(*file_, table_ + 40 + 8, uint64_t{1} << 61);
  expect_unusable("0 entries) is too small for its disk size");
}

TEST_F(SnapshotTableTest, ASnapshotWhoseTableIsKnownIsDeletedAndTakesItsFaultAlong) {
  poke(*file_, table_ + 40 + 8, uint64_t{1} << 40);
  const auto image = *Image::open(file_, {.writable = true});
  const auto kept = disk(*image);
  auto t = SnapshotTransaction::begin(*image);
  ASSERT_TRUE(t) << t.error().message;
  ASSERT_TRUE(t->create({.name = "third"}));  // not concerned
  const size_t first = 0;
  ASSERT_TRUE(t->remove(std::span(&first, 1)));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared) << prepared.error().message;
  ASSERT_TRUE(SnapshotTransaction::commit(*image, *prepared));
  ASSERT_EQ(image->snapshots().size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_FALSE(image->snapshots()[i].fault);
    EXPECT_EQ(disk(**image->open_snapshot(i)), kept);
  }
  const test::Qcow2Scan scan = test::scan_qcow2(contents(*file_));
  EXPECT_TRUE(scan.clean()) << scan.describe();
}

TEST_F(SnapshotTableTest, AGuestWritesBesideADamagedSnapshotAndLosesNoneOfTheOthers) {
  const auto second = [&] { return disk(**(*Image::open(file_, {}))->open_snapshot(1)); };
  const auto before = second();
  poke(*file_, table_, uint64_t{1} << 40);
  const auto image = *Image::open(file_, {.writable = true});
  ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(1 << 19, std::byte{'w'})));
  ASSERT_TRUE(image->discard(1 << 18, 1 << 18));
  ASSERT_TRUE(image->flush());
  EXPECT_EQ(second(), before);
  EXPECT_EQ((*Image::open(file_, {}))->snapshots()[0].name, "first");
}

TEST_F(SnapshotTableTest, AnImageWithASnapshotThatNobodyKnowsDoesNotBecomeOneOfVersion2) {
  poke(*file_, table_, uint64_t{1} << 40);
  const auto image = *Image::open(file_, {.writable = true});
  const auto before = contents(*file_);
  const auto done = image->downgrade({});
  ASSERT_FALSE(done);
  EXPECT_THAT(done.error().message, HasSubstr("the image does not become one of version 2"));
  EXPECT_EQ(contents(*file_), before);
}

TEST_F(SnapshotTableTest, ExtraDataIsLimited) {
  poke(*file_, table_ + 36, uint32_t{1025});
  expect_refused("snapshot 0 has 1025 bytes of extra data (limit 1024)");
  poke(*file_, table_ + 36, ~uint32_t{0});
  expect_refused("snapshot 0 has 4294967295 bytes of extra data");
}

TEST_F(SnapshotTableTest, NamesIdsAndEntriesMustEndBeforeTheFileDoes) {
  // The table becomes the last thing in the file, cut exactly behind its last entry.
  const auto table = serialize_snapshot_table(snapshots_);
  replace_table(table, 2);
  const uint64_t end = table_ + table.size();
  ASSERT_TRUE(Image::open(file_, {}));
  const uint64_t second = table_ + 40 + 24 + 1 + 5 + 2;
  poke(*file_, second + 14, uint16_t{0xffff});  // name
  expect_refused("snapshot table runs past the end of the file");
  poke(*file_, second + 14, uint16_t{6});
  poke(*file_, second + 12, uint16_t{0xffff});  // id
  expect_refused("snapshot table runs past the end of the file");
  poke(*file_, second + 12, uint16_t{1});
  ASSERT_TRUE(Image::open(file_, {}));
  // At every length the file is refused, or the table is whole: padding behind the last entry may be missing.
  for (uint64_t length = table_ + 1; length < end; ++length) {
    const auto cut = std::shared_ptr<MemoryDevice>(file_->clone());
    ASSERT_TRUE(cut->resize(length));
    const auto image = Image::open(cut, {});
    ASSERT_EQ(image.has_value(), length >= second + 40 + 24 + 1 + 6) << length;
    if (image) {
      EXPECT_EQ((*image)->snapshots()[1].name, "second");
    }
  }
}

TEST_F(SnapshotTableTest, ACountBeyondTheEntriesIsRefused) {
  const auto table = serialize_snapshot_table(snapshots_);
  replace_table(table, 3);
  expect_refused("runs past the end of the file");
}

TEST_F(SnapshotTableTest, TheTableAsAWholeIsLimited) {
  // 65,536 entries of 1,024 + 40 + 65,535 × 2 bytes would be 8 GiB: the sum counts, not only each entry.
  Snapshot big = snapshots_[0];
  big.name = std::string(65535, 'n');
  big.id = std::string(65535, '1');
  const auto table = serialize_snapshot_table(std::vector<Snapshot>(520, big));
  replace_table(table, 520);
  expect_refused("snapshot table exceeds 67108864 bytes");
}

TEST_F(SnapshotTableTest, OldAndNewEntriesKeepWhatTheyHave) {
  std::vector<Snapshot> odd(6, snapshots_[0]);
  odd[0].disk_size.reset();  // version 2 images of old: no extra data at all
  odd[0].icount.reset();
  odd[1].icount.reset();  // 16 bytes of it
  odd[1].vm_state_size = 123;
  odd[2].icount = 77;
  odd[2].vm_state_size = uint64_t{5} << 32;
  odd[3].unknown_extra_data.assign(1000, std::byte{0xee});  // the most there can be
  odd[4].name.clear();
  odd[4].id.clear();
  odd[5].name = std::string(65535, 'x');
  const auto table = serialize_snapshot_table(odd);
  replace_table(table, 6);
  const auto image = Image::open(file_, {});
  ASSERT_TRUE(image) << image.error().message;
  const auto& read = (*image)->snapshots();
  ASSERT_EQ(read.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(read[i].disk_size, odd[i].disk_size);
    EXPECT_EQ(read[i].icount, odd[i].icount);
    EXPECT_EQ(read[i].vm_state_size, odd[i].vm_state_size);
    EXPECT_EQ(read[i].unknown_extra_data, odd[i].unknown_extra_data);
    EXPECT_EQ(read[i].name, odd[i].name);
    EXPECT_EQ(read[i].id, odd[i].id);
  }
  EXPECT_EQ(serialize_snapshot_table(read), table);
}

// A snapshot of an image that was larger, or had no size noted, does not make the present disk lie about itself.
TEST_F(SnapshotTableTest, ARevertToAnEntryWithoutADiskSizeKeepsThePresentOne) {
  std::vector<Snapshot> odd = snapshots_;
  for (Snapshot& s : odd) {
    s.disk_size.reset();
    s.icount.reset();
  }
  const auto table = serialize_snapshot_table(odd);
  ASSERT_TRUE(file_->write_at(table_, table));
  const auto image = Image::open(file_, {.writable = true});
  ASSERT_TRUE(image) << image.error().message;
  auto t = SnapshotTransaction::begin(**image);
  ASSERT_TRUE(t) << t.error().message;
  ASSERT_TRUE(t->revert(0));
  const auto prepared = t->prepare();
  ASSERT_TRUE(prepared) << prepared.error().message;
  ASSERT_TRUE(SnapshotTransaction::commit(**image, *prepared));
  EXPECT_EQ(*(*image)->size(), 1u << 20);
  std::byte b{};
  ASSERT_TRUE((*image)->read_at(10000, std::span(&b, 1)));
  EXPECT_EQ(b, std::byte{'f'});
}

TEST(SnapshotIds, TheNextIdIsOneMoreThanTheHighest) {
  std::vector<Snapshot> snapshots(4);
  snapshots[0].id = "7";
  snapshots[1].id = "not a number";
  snapshots[2].id = "3";
  snapshots[3].id = "12x";
  EXPECT_EQ(next_snapshot_id(snapshots), "13");
  EXPECT_EQ(next_snapshot_id({}), "1");
}

TEST(SnapshotIds, AnIdThatCannotGrowDoesNotMakeTwoSnapshotsAlike) {
  std::vector<Snapshot> snapshots(2);
  snapshots[0].id = "18446744073709551615";
  snapshots[1].id = "1";
  const std::string next = next_snapshot_id(snapshots);
  for (const Snapshot& s : snapshots) EXPECT_NE(next, s.id);
  snapshots.push_back({});
  snapshots.back().id = next;
  const std::string after = next_snapshot_id(snapshots);
  for (const Snapshot& s : snapshots) EXPECT_NE(after, s.id);
}

TEST(SnapshotSearch, AnIdWinsOverANameWhereBothAreAskedFor) {
  std::vector<Snapshot> snapshots(3);
  snapshots[0].id = "1";
  snapshots[0].name = "2";
  snapshots[1].id = "2";
  snapshots[1].name = "1";
  snapshots[2].id = "3";
  snapshots[2].name = "2";
  EXPECT_EQ(find_by_id_or_name(snapshots, "1"), 0u);
  EXPECT_EQ(find_by_id_or_name(snapshots, "2"), 1u);
  EXPECT_EQ(find_by_name(snapshots, "2"), 0u);
  EXPECT_EQ(find_by_name(snapshots, "3"), std::nullopt);
  EXPECT_EQ(find_by_id_or_name(snapshots, "three"), std::nullopt);
}

}  // namespace
}  // namespace varve::qcow2
