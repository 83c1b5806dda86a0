// Storing dirty bitmaps, and writing to a disk that has some: a power failure at any moment leaves the old bitmaps, the
// new ones, or none that anybody would trust. Never bitmaps that miss a write.
#include <gtest/gtest.h>

#include "crash/examined_states.h"
#include "qcow2/image.h"
#include "support/image_bytes.h"
#include "support/qcow2_scan.h"

namespace varve::qcow2 {
namespace {

constexpr uint64_t kSize = 1 << 20;

DirtyBitmap bitmap(const std::string& name, uint64_t offset, uint64_t length) {
  DirtyBitmap b = *make_bitmap(name, 512, kSize, 512);
  b.insert(offset, length);
  return b;
}

std::unique_ptr<MemoryDevice> image_with(const std::vector<DirtyBitmap>& bitmaps,
                                         const std::optional<std::string>& backing_format) {
  auto memory = std::make_shared<MemoryDevice>("disk");
  CreateOptions options{.size = kSize, .cluster_size = 1024};
  if (backing_format) options.backing_file = "base";
  options.backing_format = backing_format;
  EXPECT_TRUE(Image::create(*memory, options));
  EXPECT_TRUE((*Image::open(memory, {.writable = true}))->store_bitmaps(bitmaps));
  return memory->clone();
}

// What a program finds: the bitmaps that it would trust.
std::vector<DirtyBitmap> trusted(const std::shared_ptr<MemoryDevice>& disk) {
  const auto image = Image::open(disk, {});
  EXPECT_TRUE(image) << image.error().message;
  if (!image) return {};
  auto found = (*image)->bitmaps();
  EXPECT_TRUE(found) << found.error().message;
  if (!found) return {};
  std::erase_if(*found, [](const DirtyBitmap& b) { return b.inconsistent; });
  return *found;
}

bool same(const std::vector<DirtyBitmap>& a, const std::vector<DirtyBitmap>& b) {
  return std::ranges::equal(
      a, b, [](const DirtyBitmap& x, const DirtyBitmap& y) { return x.name == y.name && x.bits == y.bits; });
}

struct Change {
  const char* name;
  std::vector<DirtyBitmap> before;
  std::vector<DirtyBitmap> after;
  std::optional<std::string> backing_format = std::nullopt;
};

std::ostream& operator<<(std::ostream& out, const Change& c) {
  return out << c.name;
}

class BitmapCrash : public testing::TestWithParam<Change> {};

TEST_P(BitmapCrash, StoringLeavesTheOldOnesTheNewOnesOrNone) {
  const Change& p = GetParam();
  auto control = std::make_shared<FaultControl>();
  auto file = std::make_shared<FaultDevice>(image_with(p.before, p.backing_format), control);
  control->start_over();
  {
    const auto image = *Image::open(file, {.writable = true});
    ASSERT_TRUE(image->store_bitmaps(p.after));
  }
  const size_t states = test::examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    const auto found = trusted(state.disks[0]);
    const bool fine = found.empty() || same(found, p.before) || same(found, p.after);
    EXPECT_TRUE(fine) << found.size();
    const auto scan = test::scan_qcow2(test::contents(*state.disks[0]));
    EXPECT_TRUE(scan.errors.empty()) << scan.describe();
    return fine && scan.errors.empty();
  });
  EXPECT_GT(states, 10u);
  EXPECT_TRUE(same(trusted(std::shared_ptr<MemoryDevice>(file->disk().clone())), p.after));
}

INSTANTIATE_TEST_SUITE_P(
    All, BitmapCrash,
    testing::Values(Change{"First", {}, {bitmap("one", 0, 5000)}},
                    Change{"Changed", {bitmap("one", 0, 5000)}, {bitmap("one", 0, 90000)}},
                    Change{"More", {bitmap("one", 0, 5000)}, {bitmap("one", 0, 5000), bitmap("two", 0, kSize)}},
                    Change{"Fewer", {bitmap("one", 0, 5000), bitmap("two", 0, kSize)}, {bitmap("two", 0, kSize)}},
                    Change{"Last", {bitmap("one", 0, 5000)}, {}},
                    Change{"FirstBesideABackingFile", {}, {bitmap("one", 0, 5000)}, "qcow2"},
                    Change{"ChangedBesideABackingFile", {bitmap("one", 0, 1)}, {bitmap("one", 9000, 9000)}, "raw"}),
    [](const auto& instance) { return std::string(instance.param.name); });

TEST(BitmapCrash, NoTrustedBitmapMissesAWrite) {
  auto control = std::make_shared<FaultControl>();
  auto file = std::make_shared<FaultDevice>(image_with({bitmap("one", 0, 1000)}, {}), control);
  control->start_over();
  {
    const auto image = *Image::open(file, {.writable = true});
    ASSERT_TRUE(image->write_at(500000, std::vector<std::byte>(3000, std::byte{1})));
    ASSERT_TRUE(image->flush());
    ASSERT_TRUE(image->write_at(700000, std::vector<std::byte>(3000, std::byte{2})));
  }
  size_t trusted_at_all = 0;
  test::examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    const auto found = trusted(state.disks[0]);
    if (found.empty()) return true;
    ++trusted_at_all;
    const auto image = *Image::open(state.disks[0], {});
    for (const uint64_t at : {uint64_t{500000}, uint64_t{700000}}) {
      std::byte b{};
      EXPECT_TRUE(image->read_at(at + 1500, std::span(&b, 1)));
      if (b != std::byte{0} && !found[0].contains(at + 1500)) {
        ADD_FAILURE() << "a write at " << at << " is not in the bitmap";
        return false;
      }
    }
    return true;
  });
  EXPECT_GT(trusted_at_all, 1u);
  EXPECT_EQ(trusted(std::shared_ptr<MemoryDevice>(file->disk().clone())).size(), 1u);
}

}  // namespace
}  // namespace varve::qcow2
