// The promise of one-sector commits: whatever happens to power or disk while snapshots are created, reverted, deleted
// or renamed, the image is afterwards exactly what it was before, or exactly what it was to become, without an error
// and without a leak. Every write and every flush of every change is tried, on every shape of image.
#include <gtest/gtest.h>

#include <cstdio>
#include <optional>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/snapshot_changes.h"
#include "support/process.h"

namespace varve::test {
namespace {

using qcow2::Image;
using qcow2::PreparedCommit;
using qcow2::SnapshotTransaction;
using Verdict = StateJudge::Verdict;

constexpr uint64_t kSeed = 20260;

class SnapshotCrash : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    shape_ = &image_shape(GetParam());
    if (shape_->needs_qemu) {
      REQUIRES_PROGRAM("qemu-img");
      REQUIRES_PROGRAM("qemu-io");
    }
    before_ = shape_->make(dir_);
    const Qcow2Scan scan = scan_qcow2(whole_contents(*before_));
    ASSERT_TRUE(scan.clean()) << scan.describe();
    ASSERT_TRUE(shape_->is_right(scan)) << scan.clusters << " clusters, " << scan.free_clusters << " free, "
                                        << scan.refcount_blocks << " refcount blocks, " << scan.shared_tables
                                        << " shared tables, " << scan.copied_in_snapshots
                                        << " COPIED flags in snapshots";
    const ImageUnderTest opened(*before_);
    ASSERT_TRUE(opened.image);
    changes_ = changes_for(*shape_, opened.image->snapshots().size());
  }
  void TearDown() override {
    std::printf("%zu different files (seed %llu)\n", distinct_, static_cast<unsigned long long>(kSeed));
  }

  // The image with the change made to it, undisturbed.
  std::shared_ptr<MemoryDevice> changed(const SnapshotChange& change) {
    ImageUnderTest t(*before_);
    const auto done = run_change(*t.image, change);
    EXPECT_TRUE(done) << done.error().message;
    t.image.reset();
    return t.disk->disk().clone();
  }

  // The change, or, where it is prepared already, what is left of it.
  static Result<void> attempt(Image& image, const SnapshotChange& change, std::optional<PreparedCommit>& prepared) {
    if (!prepared) prepared = TRY(prepare_change(image, change));
    TRY(SnapshotTransaction::commit(image, *prepared));
    (void)SnapshotTransaction::discard_freed(image, *prepared);
    return {};
  }

  TempDir dir_;
  const ImageShape* shape_ = nullptr;
  std::shared_ptr<MemoryDevice> before_;
  std::vector<SnapshotChange> changes_;
  size_t distinct_ = 0;
};

TEST_P(SnapshotCrash, PowerFailureLeavesTheOldOrTheNewState) {
  for (const SnapshotChange& change : changes_) {
    SCOPED_TRACE(change.name);
    ImageUnderTest t(*before_);
    uint64_t prepared = 0;
    uint64_t committed = 0;
    const auto done = run_change(*t.image, change, [&](Moment moment) {
      (moment == Moment::kPrepared ? prepared : committed) = t.control->recorded_operations();
    });
    ASSERT_TRUE(done) << done.error().message;
    t.image.reset();

    StateJudge judge(*before_, t.disk->disk());
    if (HasFailure()) return;
    // Where many operations wait for one flush, their number is squared.
    const bool many = t.control->recorded_operations() > 40;
    const CrashOptions options{.each_missing = !many, .random_states = many ? 2u : 4u, .seed = kSeed};
    examine_crash_states(*t.control, options, [&](CrashState& state) {
      SCOPED_TRACE(state.description);
      const Verdict verdict = judge.judge(*state.disks[0]);
      EXPECT_NE(verdict, Verdict::kBroken) << judge.last_complaint();
      if (state.completed <= prepared) {
        EXPECT_EQ(verdict, Verdict::kOld);
      } else if (state.completed >= committed) {
        EXPECT_EQ(verdict, judge.new_verdict());
      }
      return !HasFailure();
    });
    distinct_ += judge.distinct();
    judge.ask_qemu(4, dir_);
    expect_qemu_finds_clean(t.disk->disk(), dir_);
    if (HasFailure()) return;
  }
}

struct FaultKind {
  unsigned kinds;
  const char* name;
};

// Every call of every kind fails once, and from then on.
TEST_P(SnapshotCrash, AFailingDiskLeavesTheOldState) {
  const FaultKind kinds[] = {{kOpRead, "read"},       {kOpWrite, "write"},   {kOpWriteZeroes, "write_zeroes"},
                             {kOpDiscard, "discard"}, {kOpResize, "resize"}, {kOpFlush, "flush"}};
  for (const SnapshotChange& change : changes_) {
    SCOPED_TRACE(change.name);
    StateJudge judge(*before_, *changed(change));
    if (HasFailure()) return;
    for (const auto& [kind, kind_name] : kinds) {
      const unsigned k = kind;
      // How many calls there are, and how many before the sector that commits, and until it is durable.
      uint64_t calls_prepared = 0;
      uint64_t calls_committed = 0;
      ImageUnderTest undisturbed(*before_);
      ASSERT_TRUE(run_change(*undisturbed.image, change, [&](Moment moment) {
        (moment == Moment::kPrepared ? calls_prepared : calls_committed) = undisturbed.control->calls(k);
      }));
      const uint64_t calls = undisturbed.control->calls(k);

      for (uint64_t n = 0; n < calls; ++n) {
        for (const bool once : {true, false}) {
          const Fault fault{
              .at = n, .kinds = k, .error = once && k != kOpRead ? ENOSPC : EIO, .once = once, .half_done = once};
          SCOPED_TRACE(testing::Message()
                       << kind_name << " " << n << " of " << calls << " fails" << (once ? " once" : " for good"));
          ImageUnderTest t(*before_);
          t.control->inject(fault);
          std::optional<PreparedCommit> prepared;
          const auto done = attempt(*t.image, change, prepared);
          EXPECT_EQ(bool{done}, n >= calls_committed);
          EXPECT_EQ(prepared.has_value(), n >= calls_prepared);
          t.control->clear_fault();
          count_examined_states();

          const auto at_once = state_of(*t.image);
          ASSERT_TRUE(at_once) << at_once.error().message;
          const auto guest_sees = [](DiskState state) {
            state.bitmaps = state.bitmap_contents = state.machine_states = 0;
            return state;
          };
          const DiskState& seen = *at_once;
          const DiskState was = guest_sees(judge.old_state());
          const DiskState becomes = guest_sees(judge.new_state());
          const Verdict reopened = judge.judge(t.disk->disk());
          EXPECT_NE(reopened, Verdict::kBroken) << judge.last_complaint();
          if (n < calls_prepared) {
            EXPECT_EQ(seen, was);
            EXPECT_EQ(reopened, Verdict::kOld);
          } else if (n >= calls_committed) {
            EXPECT_EQ(seen, becomes);
          } else {
            EXPECT_TRUE(seen == was || seen == becomes) << seen;
          }
          if (n < calls_prepared && once && (k & (kOpRead | kOpWrite)) != 0) {
            EXPECT_EQ(*t.disk->size(), *before_->size()) << "the space is not given back";
          }

          if (!done && reopened == Verdict::kOld) {
            // Again, in a new process…
            ImageUnderTest later(t.disk->disk());
            ASSERT_TRUE(later.image);
            auto again = run_change(*later.image, change);
            EXPECT_TRUE(again) << again.error().message;
            EXPECT_EQ(judge.judge(later.disk->disk()), judge.new_verdict()) << judge.last_complaint();
            // …and in the same, unless a flush failed, for then the disk takes nothing any more.
            if (k != kOpFlush) {
              again = attempt(*t.image, change, prepared);
              EXPECT_TRUE(again) << again.error().message;
              EXPECT_EQ(judge.judge(t.disk->disk()), judge.new_verdict()) << judge.last_complaint();
            }
          }
          if (HasFailure()) return;
        }
      }
    }
    distinct_ += judge.distinct();
    judge.ask_qemu(2, dir_);
  }
}

// A disk whose flushes do nothing: what comes of an order that the engine does not keep.
class NeverFlushes final : public BlockDevice {
 public:
  explicit NeverFlushes(std::shared_ptr<BlockDevice> disk) : disk_(std::move(disk)) {}
  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override { return disk_->read_at(offset, buffer); }
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    return disk_->write_at(offset, data);
  }
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return disk_->write_zeroes(offset, length, mode);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return disk_->discard(offset, length); }
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override { return disk_->size(); }
  Result<void> resize(uint64_t new_size) override { return disk_->resize(new_size); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    return disk_->extents(offset, length);
  }
  DeviceCapabilities capabilities() const override { return disk_->capabilities(); }
  const std::string& name() const override { return disk_->name(); }

 private:
  std::shared_ptr<BlockDevice> disk_;
};

// These tests can fail: without flushes they do, for every change.
TEST(SnapshotCrashItself, NoticesMissingFlushes) {
  const TempDir dir;
  const ImageShape& shape = image_shape("shared_tables");
  const std::shared_ptr<MemoryDevice> before = shape.make(dir);
  for (const SnapshotChange& change : changes_for(shape, 3)) {
    SCOPED_TRACE(change.name);
    const auto disk = std::make_shared<FaultDevice>(before->clone());
    auto image = Image::open(std::make_shared<NeverFlushes>(disk), {.writable = true});
    ASSERT_TRUE(image);
    disk->control().start_over();
    ASSERT_TRUE(run_change(**image, change));
    image->reset();
    StateJudge judge(*before, disk->disk());
    size_t broken = 0;
    examine_crash_states(disk->control(), {.seed = kSeed}, [&](CrashState& state) {
      broken += judge.judge(*state.disks[0]) == Verdict::kBroken ? 1 : 0;
      return true;
    });
    EXPECT_GT(broken, 0u);
  }
}

std::vector<std::string> shape_names() {
  std::vector<std::string> names;
  for (const ImageShape& shape : image_shapes()) names.push_back(shape.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Shapes, SnapshotCrash, testing::ValuesIn(shape_names()),
                         [](const auto& parameter) { return parameter.param; });

}  // namespace
}  // namespace varve::test
