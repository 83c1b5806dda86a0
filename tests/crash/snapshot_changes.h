// The snapshot changes that are tried on every shape of image, and how one is run on a disk that records or fails.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "crash/image_shapes.h"
#include "io/fault_device.h"
#include "qcow2/snapshot_transaction.h"

namespace varve::test {

struct SnapshotChange {
  std::string name;
  std::function<Result<void>(qcow2::SnapshotTransaction&)> apply;
};

// All that can be done to an image of this shape that holds so many snapshots.
std::vector<SnapshotChange> changes_for(const ImageShape& shape, size_t snapshots);

// Until nothing but the commit is left to do.
Result<qcow2::PreparedCommit> prepare_change(qcow2::Image& image, const SnapshotChange& change);

enum class Moment {
  kPrepared,   // the new state is written, nothing says so yet
  kCommitted,  // the new state is durable
};

// The whole change as a command does it: prepare, commit, give back what is free now. The last is allowed to fail.
Result<void> run_change(
    qcow2::Image& image, const SnapshotChange& change, const std::function<void(Moment)>& at = [](Moment) {});

// An image on a disk that records and fails.
struct ImageUnderTest {
  explicit ImageUnderTest(const MemoryDevice& contents);

  std::shared_ptr<FaultControl> control;
  std::shared_ptr<FaultDevice> disk;
  std::unique_ptr<qcow2::Image> image;  // open for writing; recorded and counted is what follows
};

}  // namespace varve::test
