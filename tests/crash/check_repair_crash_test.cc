// A repair that loses power at any moment: the guest's disk and its snapshots are what they were, and a repair after
// the restart makes the image clean, even one that was itself cut short before.
#include <gtest/gtest.h>

#include "base/endian.h"
#include "check/check.h"
#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/image_shapes.h"
#include "io/fault_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/image_bytes.h"
#include "support/process.h"
#include "support/qcow2_scan.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using qcow2::Image;

constexpr uint64_t kCluster = 512;

struct RepairCase {
  const char* name;
  void (*damage)(MemoryDevice& disk);
  bool rebuilds = false;
};
void PrintTo(const RepairCase& c, std::ostream* out) {
  *out << c.name;
}

uint64_t word(MemoryDevice& disk, uint64_t at) {
  std::array<std::byte, 8> raw{};
  CHECK(disk.read_at(at, raw));
  return load_be<uint64_t>(raw.data());
}
uint64_t first_block(MemoryDevice& disk) {
  return word(disk, word(disk, 48));
}
uint64_t first_l2(MemoryDevice& disk) {
  return word(disk, word(disk, 40)) & 0x00fffffffffffe00;
}
void set_refcount(MemoryDevice& disk, uint64_t cluster, uint16_t value) {
  poke<uint16_t>(disk, first_block(disk) + 2 * cluster, value);
}
uint64_t data_cluster(MemoryDevice& disk, uint64_t index) {
  return (word(disk, first_l2(disk) + 8 * index) & 0x00fffffffffffe00) / kCluster;
}

const RepairCase kCases[] = {
    {"Leaks",
     [](MemoryDevice& disk) {
       const uint64_t end = *disk.size() / kCluster;
       ASSERT_TRUE(disk.resize((end + 4) * kCluster));
       for (uint64_t i = 0; i < 4; ++i) set_refcount(disk, end + i, 1);
     }},
    {"TooHighAndTooLow",
     [](MemoryDevice& disk) {
       set_refcount(disk, data_cluster(disk, 0), 7);
       set_refcount(disk, data_cluster(disk, 2), 1);  // shared with the snapshot
     }},
    {"CopiedFlags",
     [](MemoryDevice& disk) {
       for (uint64_t i = 0; i < 6; ++i) {
         const uint64_t at = first_l2(disk) + 8 * i;
         poke<uint64_t>(disk, at, word(disk, at) ^ uint64_t{1} << 63);
       }
     }},
    {"LostRefcountTable", [](MemoryDevice& disk) { poke<uint64_t>(disk, word(disk, 48), 0); }, true},
    {"LostRefcounts", [](MemoryDevice& disk) { set_refcount(disk, 0, 0); }, true},
    {"Dirty",
     [](MemoryDevice& disk) {
       poke<uint64_t>(disk, 72, 1);
       set_refcount(disk, data_cluster(disk, 1), 3);
     }},
};

// The active disk and the snapshot, through the engine, without a look at refcounts.
std::vector<std::byte> all_contents(std::unique_ptr<MemoryDevice> disk) {
  // A dirty image is refused; this is about what the tables say.
  poke<uint64_t>(*disk, 72, 0);
  auto image = Image::open(std::shared_ptr<MemoryDevice>(std::move(disk)), {.writable = false});
  EXPECT_TRUE(image) << image.error().message;
  if (!image) return {};
  return contents(**image);
}

class CheckRepairCrash : public testing::TestWithParam<RepairCase> {
 protected:
  static std::unique_ptr<MemoryDevice> make() {
    auto disk = std::make_unique<MemoryDevice>("repair.qcow2");
    qcow2::CreateOptions options;
    options.size = 64 * kCluster;
    options.cluster_size = kCluster;
    EXPECT_TRUE(Image::create(*disk, options));
    const std::shared_ptr<MemoryDevice> shared(disk.get(), [](MemoryDevice*) {});
    auto image = *Image::open(shared, {.writable = true});
    std::vector<std::byte> data(8 * kCluster);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i / kCluster + 1);
    EXPECT_TRUE(image->write_at(0, data));
    auto transaction = *qcow2::SnapshotTransaction::begin(*image);
    EXPECT_TRUE(transaction.create({.name = "one"}));
    const auto prepared = transaction.prepare();
    EXPECT_TRUE(prepared);
    EXPECT_TRUE(qcow2::SnapshotTransaction::commit(*image, *prepared));
    EXPECT_TRUE(image->write_at(0, std::span(data).subspan(kCluster, 2 * kCluster)));
    EXPECT_TRUE(image->flush());
    return disk;
  }

  static check::CheckResult repair(BlockDevice& disk, check::Repair how) {
    const check::Report silent{.line = [](const std::string&) {}, .error = [](const std::string&) {}};
    const auto result = check::check_image(disk, {.repair = how}, silent);
    EXPECT_TRUE(result) << result.error().message;
    return result ? *result : check::CheckResult{};
  }
};

TEST_P(CheckRepairCrash, LosesNoDataAtAnyMoment) {
  auto damaged = make();
  ASSERT_NO_FATAL_FAILURE(GetParam().damage(*damaged));
  const std::vector<std::byte> expected = all_contents(damaged->clone());
  auto control = std::make_shared<FaultControl>();
  FaultDevice device(damaged->clone(), control);
  const check::CheckResult done = repair(device, check::Repair::kAll);
  EXPECT_EQ(done.tally.error, 0);
  EXPECT_GT(done.tally.corruptions_fixed + done.tally.leaks_fixed, 0);
  EXPECT_GT(control->calls(kOpWrite), 0u);
  EXPECT_TRUE(scan_qcow2(contents(device.disk())).clean());

  size_t number = 0;
  const size_t states = examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    EXPECT_EQ(all_contents(state.disks[0]->clone()), expected);
    const auto expect_clean = [&](MemoryDevice& disk) {
      const Qcow2Scan scan = scan_qcow2(contents(disk));
      EXPECT_TRUE(scan.clean()) << scan.describe();
      EXPECT_EQ(all_contents(disk.clone()), expected);
    };
    auto later = std::make_shared<FaultControl>();
    FaultDevice repaired(state.disks[0]->clone(), later);
    EXPECT_EQ(repair(repaired, check::Repair::kAll).tally.error, 0);
    expect_clean(repaired.disk());
    if (number++ % (kSanitized ? 20 : 5) != 0) return !HasFailure();
    examine_crash_states(*later, {.all_subsets_up_to = 4, .random_states = 1}, [&](CrashState& interrupted) {
      SCOPED_TRACE("the repair after that: " + interrupted.description);
      EXPECT_EQ(all_contents(interrupted.disks[0]->clone()), expected);
      EXPECT_EQ(repair(*interrupted.disks[0], check::Repair::kAll).tally.error, 0);
      expect_clean(*interrupted.disks[0]);
      return !HasFailure();
    });
    return !HasFailure();
  });
  EXPECT_GT(states, control->calls(kOpWrite));
}

TEST_P(CheckRepairCrash, SurvivesADiskThatFails) {
  auto damaged = make();
  ASSERT_NO_FATAL_FAILURE(GetParam().damage(*damaged));
  const std::vector<std::byte> expected = all_contents(damaged->clone());
  auto control = std::make_shared<FaultControl>();
  {
    FaultDevice device(damaged->clone(), control);
    repair(device, check::Repair::kAll);
  }
  const uint64_t calls = control->calls(kOpMutations);
  const check::Report silent{.line = [](const std::string&) {}, .error = [](const std::string&) {}};
  for (uint64_t n = 0; n < calls; ++n) {
    SCOPED_TRACE(n);
    auto failing = std::make_shared<FaultControl>();
    FaultDevice device(damaged->clone(), failing);
    failing->inject({.at = n, .error = ENOSPC});
    count_examined_states();
    EXPECT_FALSE(check::check_image(device, {.repair = check::Repair::kAll}, silent));
    EXPECT_EQ(all_contents(device.disk().clone()), expected);
  }
}

// The same for images of every shape, whose first refcount block has lost its first half, or claims too much in its
// second.
class CheckRepairShapesCrash : public testing::TestWithParam<std::string> {
 protected:
  enum class Damage { kLost, kTooHigh };
  static void damage(MemoryDevice& disk, Damage how) {
    // Of the clusters that the file has; what is said of others is nobody's business.
    const uint64_t cluster = uint64_t{1} << (word(disk, 16) & 31);
    const bool version_2 = (word(disk, 0) & 0xffffffff) == 2;
    const uint64_t refcount_bits = version_2 ? 16 : uint64_t{1} << (word(disk, 92) & 7);
    const uint64_t half = std::min(cluster, *disk.size() / cluster * refcount_bits / 8) / 2;
    const uint64_t at = first_block(disk) + (how == Damage::kLost ? 0 : half);
    ASSERT_TRUE(disk.write_at(at, std::vector<std::byte>(half, how == Damage::kLost ? std::byte{0} : std::byte{0x55})));
  }
  // The disk and all snapshots, whatever the refcounts say, and although a repair has begun.
  static DiskState state(const MemoryDevice& file) {
    const std::shared_ptr<MemoryDevice> disk = file.clone();
    if ((word(*disk, 0) & 0xffffffff) != 2) poke<uint64_t>(*disk, 72, word(*disk, 72) & ~uint64_t{3});
    const auto image = Image::open(disk, {.writable = false});
    EXPECT_TRUE(image) << image.error().message;
    const auto found = image ? state_of(**image) : Result<DiskState>(DiskState{});
    EXPECT_TRUE(found) << found.error().message;
    return found ? *found : DiskState{};
  }
  static void repair(BlockDevice& disk) {
    const check::Report silent{.line = [](const std::string&) {}, .error = [](const std::string&) {}};
    const auto result = check::check_image(disk, {.repair = check::Repair::kAll}, silent);
    EXPECT_TRUE(result) << result.error().message;
    EXPECT_TRUE(result && result->tally.error == 0);
  }
};

TEST_P(CheckRepairShapesCrash, LosesNoDataAtAnyMoment) {
  const ImageShape& shape = image_shape(GetParam());
  if (shape.needs_qemu) {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
  }
  const TempDir dir;
  const std::shared_ptr<MemoryDevice> original = shape.make(dir);
  const DiskState expected = state(*original);
  for (const Damage how : {Damage::kLost, Damage::kTooHigh}) {
    SCOPED_TRACE(how == Damage::kLost ? "refcounts are lost" : "refcounts are too high");
    const auto damaged = original->clone();
    ASSERT_NO_FATAL_FAILURE(damage(*damaged, how));
    const auto control = std::make_shared<FaultControl>();
    FaultDevice disk(damaged->clone(), control);
    repair(disk);
    const auto expect_repaired = [&](MemoryDevice& repaired) {
      const Qcow2Scan scan = scan_qcow2(whole_contents(repaired));
      EXPECT_TRUE(scan.clean()) << scan.describe();
      EXPECT_EQ(state(repaired), expected);
    };
    expect_repaired(disk.disk());
    size_t number = 0;
    // Where many operations wait for one flush, their number is squared.
    const bool few = control->recorded_operations() <= 60;
    const size_t repaired_once_more = (few ? size_t{10} : size_t{100}) * (kSanitized ? 4 : 1);
    const CrashOptions of_repairs{
        .all_subsets_up_to = 4, .each_missing = few, .each_alone = few, .torn = few, .random_states = 1};
    const CrashOptions options{.each_missing = few, .each_alone = few, .torn = few, .random_states = few ? 4u : 1u};
    examine_crash_states(*control, options, [&](CrashState& crashed) {
      SCOPED_TRACE(crashed.description);
      EXPECT_EQ(state(*crashed.disks[0]), expected);
      const auto later = std::make_shared<FaultControl>();
      FaultDevice again(crashed.disks[0]->clone(), later);
      repair(again);
      expect_repaired(again.disk());
      if (number++ % repaired_once_more != 0) return !HasFailure();
      examine_crash_states(*later, of_repairs, [&](CrashState& interrupted) {
        SCOPED_TRACE("the repair after that: " + interrupted.description);
        EXPECT_EQ(state(*interrupted.disks[0]), expected);
        repair(*interrupted.disks[0]);
        expect_repaired(*interrupted.disks[0]);
        return !HasFailure();
      });
      return !HasFailure();
    });
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CheckRepairShapesCrash, testing::ValuesIn([] {
                           std::vector<std::string> names;
                           for (const ImageShape& shape : image_shapes()) names.push_back(shape.name);
                           if (kSanitized) std::erase(names, "full_refcount_table");  // thousands of clusters
                           return names;
                         }()),
                         [](const auto& instance) { return instance.param; });

INSTANTIATE_TEST_SUITE_P(All, CheckRepairCrash, testing::ValuesIn(kCases),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace varve::test
