// Another version, another width of refcounts, another size, on a disk that loses power at any moment: the image is the
// old one or the new one, shows the same, and there are leaks at worst. The same change, repeated, then succeeds.
#include <gtest/gtest.h>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/image_shapes.h"
#include "support/process.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using qcow2::Image;

struct Change {
  const char* name;
  bool resizes;  // bitmaps may be lost meanwhile; what is cut off may read as zeroes before it is
  std::function<Result<void>(Image&, uint64_t)> make;  // with the size at first
};

const Change kChanges[] = {
    {"upgrade", false, [](Image& i, uint64_t) { return i.upgrade(); }},
    {"downgrade", false, [](Image& i, uint64_t) { return i.downgrade(nullptr); }},
    {"refcounts_of_64_bits", false, [](Image& i, uint64_t) { return i.change_refcount_bits(64); }},
    {"refcounts_of_8_bits", false, [](Image& i, uint64_t) { return i.change_refcount_bits(8); }},
    {"grow", true, [](Image& i, uint64_t size) { return i.resize(size + (300 << 10)); }},
    {"grow_with_places", true, [](Image& i, uint64_t size) { return i.grow_preallocated(size + (100 << 10)); }},
    {"shrink", true, [](Image& i, uint64_t size) { return i.resize(size / 2 / 512 * 512); }},
};

class AmendCrash : public testing::TestWithParam<std::string> {
 protected:
  static DiskState comparable(MemoryDevice& file, DiskState state, const Change& change, uint64_t common) {
    if (!change.resizes) return state;
    state.bitmaps = state.bitmap_contents = 0;
    const std::shared_ptr<BlockDevice> view(&file, [](BlockDevice*) {});
    const auto image = Image::open(view, {});
    EXPECT_TRUE(image);
    std::vector<std::byte> bytes(common);
    EXPECT_TRUE((*image)->read_at(0, bytes));
    state.contents = hash_of(bytes);
    return state;
  }
};

TEST_P(AmendCrash, LeavesTheOldImageOrTheNewOne) {
  const ImageShape& shape = image_shape(GetParam());
  if (shape.needs_qemu) REQUIRES_PROGRAM("qemu-img");
  const TempDir dir;
  const std::shared_ptr<MemoryDevice> original = shape.make(dir);
  for (const Change& change : kChanges) {
    SCOPED_TRACE(change.name);
    const auto control = std::make_shared<FaultControl>();
    const auto disk = std::make_shared<FaultDevice>(original->clone(), control);
    bool possible = false;
    {
      const auto image = Image::open(disk, {.writable = true});
      ASSERT_TRUE(image) << image.error().message;
      const Result<void> made = change.make(**image, *(*image)->size());
      possible = bool{made};
      if (!made) {  // the format has no place for what is in the image; nothing is half done
        EXPECT_TRUE(made.error().kind == ErrorKind::kUnsupported) << made.error().message;
      }
    }
    MemoryDevice after("after");
    std::vector<std::byte> bytes(*disk->size());
    ASSERT_TRUE(disk->read_at(0, bytes));
    ASSERT_TRUE(after.write_at(0, bytes));
    const auto before_state = state_of(*original);
    const auto after_state = state_of(after);
    ASSERT_TRUE(before_state && after_state);
    if (!change.resizes) {
      EXPECT_EQ(*before_state, *after_state);
    }
    const uint64_t common = std::min(before_state->size, after_state->size);
    const DiskState old_one = comparable(*original, *before_state, change, common);
    const DiskState new_one = comparable(after, *after_state, change, common);
    const Qcow2Scan clean = scan_qcow2(bytes);
    EXPECT_TRUE(clean.errors.empty() && clean.leaks.empty()) << clean.describe();
    // Thousands of clusters of 512 bytes: every moment, but not every tearing of it.
    CrashOptions options;
    if (GetParam().starts_with("full_refcount"))
      options = {.each_missing = false, .each_alone = true, .torn = false, .random_states = 1};
    size_t number = 0;
    examine_crash_states(*control, options, [&](CrashState& state) {
      SCOPED_TRACE(state.description);
      std::vector<std::byte> found(*state.disks[0]->size());
      EXPECT_TRUE(state.disks[0]->read_at(0, found));
      const Qcow2Scan scan = scan_qcow2(found);
      EXPECT_TRUE(scan.errors.empty()) << scan.describe();
      const auto now = state_of(*state.disks[0]);
      EXPECT_TRUE(now) << now.error().message;
      if (!now) return false;
      const DiskState seen = comparable(*state.disks[0], *now, change, common);
      EXPECT_TRUE(seen == old_one || seen == new_one) << seen << "before: " << old_one << "after: " << new_one;
      if (!possible || number++ % (kSanitized ? 64 : 8) != 0) return !testing::Test::HasFailure();
      {
        const auto image = Image::open(state.disks[0], {.writable = true});
        EXPECT_TRUE(image && change.make(**image, before_state->size));
      }
      const auto again = state_of(*state.disks[0]);
      EXPECT_TRUE(again) << again.error().message;
      if (!again) return false;
      EXPECT_EQ(comparable(*state.disks[0], *again, change, common), new_one);
      const Qcow2Scan scan_again = scan_qcow2(whole_contents(*state.disks[0]));
      EXPECT_TRUE(scan_again.errors.empty()) << "repeated: " << scan_again.describe();
      return !testing::Test::HasFailure();
    });
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, AmendCrash, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const ImageShape& shape : image_shapes()) names.push_back(shape.name);
                           return names;
                         }()),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace varve::test
