// The tests' own scanner finds what qemu-img check finds, in images that are whole and in images that are broken.
#include "support/qcow2_scan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "crash/disk_state.h"
#include "crash/image_shapes.h"
#include "support/process.h"

namespace varve::test {
namespace {

using Bytes = std::vector<std::byte>;

constexpr uint64_t kCopied = 1ull << 63;
constexpr uint64_t kOffset = 0x00fffffffffffe00ull;

class Qcow2ScanTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    bytes_ = whole_contents(*image_shape("made_by_qemu").make(dir_));
  }

  uint64_t get(uint64_t at, unsigned size) const {
    uint64_t value = 0;
    for (unsigned i = 0; i < size; ++i) value = value << 8 | std::to_integer<uint64_t>(bytes_.at(at + i));
    return value;
  }
  void put(uint64_t at, unsigned size, uint64_t value) {
    for (unsigned i = 0; i < size; ++i) bytes_.at(at + i) = static_cast<std::byte>(value >> 8 * (size - 1 - i));
  }
  uint64_t l1() const { return get(40, 8); }
  uint64_t l2() const { return get(l1(), 8) & kOffset; }
  uint64_t snapshot_l1() const { return get(get(64, 8), 8); }
  uint64_t refcount_of(uint64_t offset) const {  // where it stands; 16 bits wide, in the first block
    return (get(get(48, 8), 8) & kOffset) + offset / 4096 * 2;
  }

  // Both say the same; what they say.
  int exit_code_of_both() {
    const Qcow2Scan scan = scan_qcow2(bytes_);
    const int ours = !scan.errors.empty() ? 2 : !scan.leaks.empty() ? 3 : 0;
    MemoryDevice file("broken");
    EXPECT_TRUE(file.write_at(0, bytes_));
    const ProcessResult check = run({"qemu-img", "check", "-f", "qcow2", store_file(file, dir_ / "broken.qcow2")});
    EXPECT_EQ(ours, check.exit_code) << scan.describe() << "qemu-img check:\n" << check.out << check.err;
    return check.exit_code;
  }

  TempDir dir_;
  Bytes bytes_;
};

TEST_F(Qcow2ScanTest, FindsNothingInWholeImages) {
  for (const ImageShape& shape : image_shapes()) {
    SCOPED_TRACE(shape.name);
    bytes_ = whole_contents(*shape.make(dir_));
    EXPECT_EQ(exit_code_of_both(), 0);
  }
}

TEST_F(Qcow2ScanTest, FindsLeaks) {
  put(refcount_of(l2()), 2, 7);
  // The table's COPIED flag contradicts that; it has none where it is shared.
  put(l1(), 8, l2());
  EXPECT_EQ(exit_code_of_both(), 3);
}

TEST_F(Qcow2ScanTest, FindsRefcountsThatAreTooSmall) {
  put(refcount_of(snapshot_l1()), 2, 0);
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, FindsASharedClusterThatCountsOne) {
  put(refcount_of(get(l2(), 8) & kOffset), 2, 1);
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, FindsACopiedFlagTooMany) {
  ASSERT_EQ(get(l2(), 8) & kCopied, 0u) << "the first cluster is shared with the snapshots";
  put(l2(), 8, get(l2(), 8) | kCopied);
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, FindsAMissingCopiedFlag) {
  ASSERT_NE(get(l1(), 8) & kCopied, 0u);
  put(l1(), 8, l2());
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, DoesNotMindCopiedFlagsOfSnapshots) {
  const uint64_t table = get(snapshot_l1(), 8) & kOffset;
  ASSERT_NE(table, l2());
  put(table, 8, get(table, 8) | kCopied);
  EXPECT_EQ(exit_code_of_both(), 0);
}

TEST_F(Qcow2ScanTest, FindsAClusterThatBelongsToTwo) {
  put(l2() + 8, 8, get(l2(), 8));
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, FindsReferencesThatLeadNowhere) {
  put(l2() + 8, 8, (bytes_.size() + (1 << 20)) / 4096 * 4096);
  EXPECT_EQ(exit_code_of_both(), 2);
}

TEST_F(Qcow2ScanTest, FindsMisalignedClusters) {
  put(l2() + 8, 8, get(l2() + 8, 8) + 512);
  EXPECT_EQ(exit_code_of_both(), 2);
}

// Any refcount, and any entry of a table in use, replaced: the verdicts stay the same.
TEST_F(Qcow2ScanTest, AgreesOnRandomDamage) {
  const unsigned seed = 8;
  std::mt19937 random(seed);
  const Bytes whole = bytes_;
  for (int i = 0; i < 60; ++i) {
    bytes_ = whole;
    std::string what;
    if (i % 2 == 0) {
      const uint64_t cluster = random() % (bytes_.size() / 4096);
      const uint64_t value = random() % 5;
      put(refcount_of(cluster * 4096), 2, value);
      what = fmt::format("refcount of cluster {} becomes {}", cluster, value);
    } else {
      const uint64_t entry = l2() + random() % 64 * 8;
      const uint64_t value = random() % (bytes_.size() / 4096) * 4096 | (random() % 2 == 0 ? kCopied : 0);
      put(entry, 8, value);
      what = fmt::format("the L2 entry at {:#x} becomes {:#x}", entry, value);
    }
    SCOPED_TRACE(fmt::format("{} (seed {})", what, seed));
    // A header or a table without refcount is more than qemu-img check starts with.
    exit_code_of_both();
  }
}

}  // namespace
}  // namespace varve::test
