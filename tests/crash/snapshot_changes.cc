#include "crash/snapshot_changes.h"

#include <gtest/gtest.h>

#include <numeric>

namespace varve::test {

using qcow2::Image;
using qcow2::PreparedCommit;
using qcow2::SnapshotTransaction;

std::vector<SnapshotChange> changes_for(const ImageShape& shape, size_t snapshots) {
  std::vector<SnapshotChange> changes;
  const auto create = [](SnapshotTransaction& t, const char* name) {
    return t.create({.name = name, .date_sec = 1'700'000'000, .date_nsec = 5});
  };
  const auto remove = [](SnapshotTransaction& t, std::vector<size_t> indexes) { return t.remove(indexes); };
  if (shape.can_create) {
    changes.push_back({"create", [=](SnapshotTransaction& t) { return create(t, "fresh"); }});
    changes.push_back({"create, and revert to what is there", [=](SnapshotTransaction& t) -> Result<void> {
                         TRY(create(t, "fresh"));
                         return t.revert(t.snapshots().size() - 1);
                       }});
  }
  if (snapshots == 0) return changes;

  const size_t last = snapshots - 1;
  changes.push_back({"rename", [=](SnapshotTransaction& t) { return t.rename(last, "by another name"); }});
  changes.push_back({"delete first", [=](SnapshotTransaction& t) { return remove(t, {0}); }});
  changes.push_back({"revert to first", [=](SnapshotTransaction& t) { return t.revert(0); }});
  if (snapshots >= 2) {
    changes.push_back({"revert to last", [=](SnapshotTransaction& t) { return t.revert(last); }});
    changes.push_back({"delete last", [=](SnapshotTransaction& t) { return remove(t, {last}); }});
    changes.push_back({"delete all", [=](SnapshotTransaction& t) {
                         std::vector<size_t> all(snapshots);
                         std::iota(all.begin(), all.end(), size_t{0});
                         return remove(t, all);
                       }});
  }
  if (shape.can_create) {
    changes.push_back({"create safety, revert, delete old safety", [=](SnapshotTransaction& t) -> Result<void> {
                         TRY(create(t, "safety"));
                         TRY(t.revert(0));
                         return remove(t, {last});
                       }});
  }
  return changes;
}

Result<PreparedCommit> prepare_change(Image& image, const SnapshotChange& change) {
  SnapshotTransaction t = TRY(SnapshotTransaction::begin(image));
  TRY(change.apply(t));
  return t.prepare();
}

Result<void> run_change(Image& image, const SnapshotChange& change, const std::function<void(Moment)>& at) {
  const PreparedCommit prepared = TRY(prepare_change(image, change));
  at(Moment::kPrepared);
  TRY(SnapshotTransaction::commit(image, prepared));
  at(Moment::kCommitted);
  (void)SnapshotTransaction::discard_freed(image, prepared);  // loses space at worst
  return {};
}

ImageUnderTest::ImageUnderTest(const MemoryDevice& contents)
    : control(std::make_shared<FaultControl>()), disk(std::make_shared<FaultDevice>(contents.clone(), control)) {
  auto opened = Image::open(disk, {.writable = true});
  EXPECT_TRUE(opened) << opened.error().message;
  if (opened) image = std::move(*opened);
  control->start_over();
}

}  // namespace varve::test
