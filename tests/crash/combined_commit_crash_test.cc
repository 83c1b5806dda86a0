// One snapshot change on one disk, or on three at once: all are prepared, a journal record (a mark, here) becomes
// durable, all are committed. Whenever the power fails, they are all in the old state or, after recovery, all in the
// new one; and recovery itself may be cut short at each of its writes.
#include <gtest/gtest.h>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/snapshot_changes.h"
#include "support/process.h"
#include "support/sanitizer.h"

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

struct Disks {
  std::string name;
  std::vector<std::string> shapes;
};
void PrintTo(const Disks& disks, std::ostream* out) {
  *out << disks.name;
}

class CombinedCommitCrash : public testing::TestWithParam<Disks> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    for (const std::string& name : GetParam().shapes) {
      const ImageShape& shape = image_shape(name);
      before_.push_back(shape.make(dir_));
      can_create_ = can_create_ && shape.can_create;
    }
  }

  // The disks, on one clock.
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
      EXPECT_EQ(judges[i].judge(*files[i]), verdict == Verdict::kNew ? judges[i].new_verdict() : verdict)
          << "disk " << i << ": " << judges[i].last_complaint();
  }

  TempDir dir_;
  std::vector<std::shared_ptr<MemoryDevice>> before_;
  bool can_create_ = true;  // all refcounts are wide enough

  // What all the shapes allow; each has a snapshot at least.
  std::vector<SnapshotChange> changes() const {
    std::vector<SnapshotChange> changes = {
        {"revert", [](SnapshotTransaction& t) { return t.revert(0); }},
        {"delete", [](SnapshotTransaction& t) { return t.remove(std::vector<size_t>{0}); }},
        {"rename", [](SnapshotTransaction& t) { return t.rename(t.snapshots().size() - 1, "by another name"); }}};
    if (!can_create_) return changes;
    changes.push_back({"create", [](SnapshotTransaction& t) { return t.create({.name = "all"}); }});
    changes.push_back({"create safety, revert, delete old safety", [](SnapshotTransaction& t) -> Result<void> {
                         const size_t old_safety = t.snapshots().size() - 1;
                         TRY(t.create({.name = "safety"}));
                         TRY(t.revert(0));
                         return t.remove(std::vector<size_t>{old_safety});
                       }});
    return changes;
  }
};

TEST_P(CombinedCommitCrash, PowerFailureAndRecoveryLeaveAllDisksOldOrAllNew) {
  for (const SnapshotChange& change : changes()) {
    SCOPED_TRACE(change.name);
    std::vector<StateJudge> judge = judges(change);
    if (HasFailure()) return;
    Machine m = machine(before_);
    const auto record = prepare_all(m, change);
    ASSERT_TRUE(record) << record.error().message;
    m.control->mark();  // the record is durable
    ASSERT_TRUE(commit_all(m, *record));
    m.images.clear();

    // Where many operations wait for one flush, their number is squared.
    const bool few = m.control->recorded_operations() <= 60;
    const CrashOptions options{.each_missing = few, .each_alone = few, .random_states = few ? 6u : 2u, .seed = kSeed};
    examine_crash_states(*m.control, options, [&](CrashState& state) {
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
      examine_crash_states(*next.control, {.seed = kSeed}, [&](CrashState& again) {
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
}

TEST_P(CombinedCommitCrash, AFailingDiskLeavesAllDisksOldOrAllNew) {
  for (const SnapshotChange& change : changes()) {
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
      count_examined_states();
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
}

// Every shape with a snapshot by itself, and three at a time.
std::vector<Disks> disks_of_all_shapes() {
  std::vector<Disks> result;
  for (const ImageShape& shape : image_shapes()) {
    if (shape.name == "empty" || shape.name == "fresh_tables") continue;
    if (kSanitized && shape.name == "full_refcount_table") continue;  // thousands of clusters; it is among the threes
    result.push_back({shape.name, {shape.name}});
  }
  const std::vector<std::vector<std::string>> triples = {{"made_by_qemu", "stale_copied", "compressed"},
                                                         {"shared_tables", "bitmaps", "full_refcount_block"},
                                                         {"extended_l2", "zero_clusters", "refcount_bits_64"},
                                                         {"holes", "another_size", "version_2"},
                                                         {"full_refcount_table", "smallest_clusters", "compressed"},
                                                         {"refcount_bits_1", "refcount_bits_2", "bitmaps"},
                                                         {"machine_state", "refcount_bits_8", "shared_tables"}};
  for (const std::vector<std::string>& triple : triples)
    result.push_back({triple[0] + "_" + triple[1] + "_" + triple[2], triple});
  return result;
}
INSTANTIATE_TEST_SUITE_P(Shapes, CombinedCommitCrash, testing::ValuesIn(disks_of_all_shapes()),
                         [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace varve::test
