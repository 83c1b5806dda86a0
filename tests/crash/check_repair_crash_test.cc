// A repair that loses power at any moment: the guest's disk and its snapshots are what they were, and a repair after
// the restart makes the image clean.
#include <gtest/gtest.h>

#include "base/endian.h"
#include "check/check.h"
#include "crash/examined_states.h"
#include "io/crash_states.h"
#include "io/fault_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/image_bytes.h"
#include "support/qcow2_scan.h"

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

  size_t interrupted = 0;
  const size_t states = for_each_crash_state(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    MemoryDevice& disk = *state.disks[0];
    EXPECT_EQ(all_contents(disk.clone()), expected);
    const auto second = std::make_shared<FaultControl>();
    FaultDevice second_device(disk.clone(), second);
    const check::CheckResult again = repair(second_device, check::Repair::kAll);
    EXPECT_EQ(again.tally.error, 0);
    // The power fails in the second repair, too: at each of its writes.
    const CrashOptions few{.all_subsets_up_to = 0, .each_missing = false, .each_alone = false, .random_states = 0};
    interrupted += for_each_crash_state(*second, few, [&](CrashState& later) {
      SCOPED_TRACE("second repair: " + later.description);
      EXPECT_EQ(all_contents(later.disks[0]->clone()), expected);
      return !HasFailure();
    });
    repair(disk, check::Repair::kAll);
    const Qcow2Scan scan = scan_qcow2(contents(disk));
    EXPECT_TRUE(scan.clean()) << scan.describe();
    EXPECT_EQ(all_contents(disk.clone()), expected);
    return !HasFailure();
  });
  EXPECT_GT(states, control->calls(kOpWrite));
  report_examined_states(states, "check -r");
  report_examined_states(interrupted, "check -r, interrupted again");
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
    EXPECT_FALSE(check::check_image(device, {.repair = check::Repair::kAll}, silent));
    EXPECT_EQ(all_contents(device.disk().clone()), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(All, CheckRepairCrash, testing::ValuesIn(kCases),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace varve::test
