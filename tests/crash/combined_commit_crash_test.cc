// One snapshot change on three disks at once: all are prepared, a journal record (a mark, here) becomes durable, all
// are committed. Whenever the power fails, the three are all in the old state or, after recovery, all in the new one;
// and recovery itself may be cut short at each of its writes.
#include <gtest/gtest.h>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/snapshot_changes.h"
#include "io/crash_states.h"
#include "support/process.h"

namespace varve::test {
namespace {

using qcow2::Image;
using qcow2::PreparedCommit;
using qcow2::SnapshotTransaction;
using Verdict = StateJudge::Verdict;

constexpr uint64_t kSeed = 3;

// What the journal's record holds.
using Record = std::vector<PreparedCommit>;

Result<void> recover(const Record& record, const std::vector<std::shared_ptr<BlockDevice>>& disks) {
  for (size_t i = 0; i < disks.size(); ++i)
    TRY(SnapshotTransaction::commit_sector(*disks[i], record[i].before, record[i].after));
  return {};
}

// Three images of different shapes, all of which hold a snapshot at least.
using Shapes = std::vector<const char*>;

class CombinedCommitCrash : public testing::TestWithParam<Shapes> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    for (const char* shape : GetParam()) before_.push_back(image_shape(shape).make(dir_));
  }

  // Three disks on one clock.
  struct Machine {
    std::shared_ptr<FaultControl> control = std::make_shared<FaultControl>();
    std::vector<std::shared_ptr<FaultDevice>> disks;
    std::vector<std::unique_ptr<Image>> images;

    std::vector<std::shared_ptr<BlockDevice>> devices() const { return {disks.begin(), disks.end()}; }
  };
  template <typename Files>
  static Machine machine(const Files& files) {
    Machine m;
    for (const auto& file : files) m.disks.push_back(std::make_shared<FaultDevice>(file->clone(), m.control));
    for (const auto& disk : m.disks) {
      auto image = Image::open(disk, {.writable = true});
      EXPECT_TRUE(image) << image.error().message;
      m.images.push_back(std::move(*image));
    }
    m.control->start_over();
    return m;
  }

  // As an operation does it. What was prepared when one of the disks fails is given back.
  static Result<Record> prepare_all(Machine& m, const SnapshotChange& change) {
    Record record;
    for (const auto& image : m.images) {
      auto prepared = prepare_change(*image, change);
      if (!prepared) {
        for (size_t i = 0; i < record.size(); ++i) SnapshotTransaction::abandon(*m.images[i], record[i]);
        return std::move(prepared).error();
      }
      record.push_back(std::move(*prepared));
    }
    return record;
  }
  static Result<void> commit_all(Machine& m, const Record& record) {
    for (size_t i = 0; i < m.images.size(); ++i) TRY(SnapshotTransaction::commit(*m.images[i], record[i]));
    for (size_t i = 0; i < m.images.size(); ++i) (void)SnapshotTransaction::discard_freed(*m.images[i], record[i]);
    return {};
  }

  std::vector<StateJudge> judges(const SnapshotChange& change) const {
    Machine m = machine(before_);
    const auto record = prepare_all(m, change);
    EXPECT_TRUE(record) << record.error().message;
    EXPECT_TRUE(record && commit_all(m, *record));
    m.images.clear();
    std::vector<StateJudge> judges;
    for (size_t i = 0; i < before_.size(); ++i) judges.emplace_back(*before_[i], m.disks[i]->disk());
    return judges;
  }

  template <typename Files>
  static void expect_all(Verdict verdict, std::vector<StateJudge>& judges, const Files& files) {
    for (size_t i = 0; i < judges.size(); ++i)
      EXPECT_EQ(judges[i].judge(*files[i]), verdict) << "disk " << i << ": " << judges[i].last_complaint();
  }

  TempDir dir_;
  std::vector<std::shared_ptr<MemoryDevice>> before_;
  const std::vector<SnapshotChange> changes_ = {
      {"create", [](SnapshotTransaction& t) { return t.create({.name = "all"}); }},
      {"revert", [](SnapshotTransaction& t) { return t.revert(0); }},
      {"delete", [](SnapshotTransaction& t) { return t.remove(std::vector<size_t>{0}); }},
      {"rename", [](SnapshotTransaction& t) { return t.rename(t.snapshots().size() - 1, "by another name"); }},
      {"create safety, revert, delete old safety", [](SnapshotTransaction& t) -> Result<void> {
         TRY(t.create({.name = "safety"}));
         TRY(t.revert(0));
         return t.remove(std::vector<size_t>{1});
       }}};
};

TEST_P(CombinedCommitCrash, PowerFailureAndRecoveryLeaveAllDisksOldOrAllNew) {
  size_t states = 0;
  size_t recoveries = 0;
  for (const SnapshotChange& change : changes_) {
    SCOPED_TRACE(change.name);
    std::vector<StateJudge> judge = judges(change);
    if (HasFailure()) return;
    Machine m = machine(before_);
    const auto record = prepare_all(m, change);
    ASSERT_TRUE(record) << record.error().message;
    m.control->mark();  // the record is durable
    ASSERT_TRUE(commit_all(m, *record));
    m.images.clear();

    states += for_each_crash_state(*m.control, {.random_states = 6, .seed = kSeed}, [&](CrashState& state) {
      SCOPED_TRACE(state.description);
      if (state.marks_passed == 0) {
        expect_all(Verdict::kOld, judge, state.disks);
        return !HasFailure();
      }
      Machine next;
      for (const auto& disk : state.disks)
        next.disks.push_back(std::make_shared<FaultDevice>(disk->clone(), next.control));
      const auto recovered = recover(*record, next.devices());
      EXPECT_TRUE(recovered) << recovered.error().message;
      std::vector<std::shared_ptr<MemoryDevice>> files;
      for (const auto& disk : next.disks) files.push_back(disk->disk().clone());
      expect_all(Verdict::kNew, judge, files);
      // The power fails in recovery, too; the recovery after that has to do.
      recoveries += for_each_crash_state(*next.control, {.seed = kSeed}, [&](CrashState& again) {
        SCOPED_TRACE("recovery: " + again.description);
        const auto finished = recover(*record, {again.disks.begin(), again.disks.end()});
        EXPECT_TRUE(finished) << finished.error().message;
        expect_all(Verdict::kNew, judge, again.disks);
        return !HasFailure();
      });
      return !HasFailure();
    });
    for (const StateJudge& j : judge) j.ask_qemu(2, dir_);
    if (HasFailure()) return;
  }
  report_examined_states(states, "three disks");
  report_examined_states(recoveries, "interrupted recoveries of three disks");
}

TEST_P(CombinedCommitCrash, AFailingDiskLeavesAllDisksOldOrAllNew) {
  size_t states = 0;
  for (const SnapshotChange& change : changes_) {
    SCOPED_TRACE(change.name);
    std::vector<StateJudge> judge = judges(change);
    Machine undisturbed = machine(before_);
    const auto prepared = prepare_all(undisturbed, change);
    const uint64_t calls_prepared = undisturbed.control->calls(kOpAny);
    ASSERT_TRUE(prepared && commit_all(undisturbed, *prepared));
    const uint64_t calls = undisturbed.control->calls(kOpAny);

    for (uint64_t n = 0; n < calls && !HasFailure(); ++n) {
      SCOPED_TRACE(testing::Message() << "call " << n << " of " << calls << " fails");
      Machine m = machine(before_);
      m.control->inject({.at = n, .kinds = kOpAny, .error = ENOSPC, .once = true, .half_done = true});
      ++states;
      std::vector<std::shared_ptr<MemoryDevice>> files;
      const auto take_files = [&] {
        m.control->clear_fault();
        m.images.clear();
        files.clear();
        for (const auto& disk : m.disks) files.push_back(disk->disk().clone());
      };
      const auto record = prepare_all(m, change);
      ASSERT_EQ(bool{record}, n >= calls_prepared);
      if (!record) {
        take_files();
        expect_all(Verdict::kOld, judge, files);
        continue;
      }
      const bool committed = bool{commit_all(m, *record)};
      take_files();
      if (!committed) {
        const auto finished = recover(*record, {files.begin(), files.end()});
        EXPECT_TRUE(finished) << finished.error().message;
      }
      expect_all(Verdict::kNew, judge, files);
    }
    if (HasFailure()) return;
  }
  report_examined_states(states, "failing calls of three disks");
}

INSTANTIATE_TEST_SUITE_P(Disks, CombinedCommitCrash,
                         testing::Values(Shapes{"made_by_qemu", "stale_copied", "compressed"},
                                         Shapes{"shared_tables", "bitmaps", "full_refcount_block"},
                                         Shapes{"refcount_bits_8", "extended_l2", "another_size"}),
                         [](const auto& instance) { return std::string(instance.param.front()); });

}  // namespace
}  // namespace varve::test
