// Guest writes, and snapshot changes between them, on a disk that loses power at any moment: what was flushed is there,
// what was not is there or is what it was before, sector by sector; snapshots are never touched; the image has leaks at
// worst.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "crash/snapshot_changes.h"
#include "crash/write_history.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using qcow2::CreateOptions;
using qcow2::Image;
using qcow2::SnapshotTransaction;

constexpr uint64_t kSector = 512;
using Bytes = std::vector<std::byte>;

struct GuestShape {
  std::string name;
  CreateOptions options;
  bool backing = false;
  bool data_file = false;  // on a disk of its own, which may lose other writes than the image's
};
void PrintTo(const GuestShape& shape, std::ostream* out) {
  *out << shape.name;
}

class GuestWriteCrash : public testing::TestWithParam<GuestShape> {
 protected:
  void SetUp() override {
    const GuestShape& shape = GetParam();
    MemoryDevice fresh("guest.qcow2");
    CreateOptions options = shape.options;
    if (shape.data_file) options.data_file = "data";
    if (shape.backing) {
      options.backing_file = "base";
      options.backing_format = "raw";
      backing_ = std::make_shared<MemoryDevice>("base");
      ASSERT_TRUE(backing_->write_at(0, random_bytes(options.size / kSector * kSector)));
    }
    const auto made = Image::create(fresh, options);
    ASSERT_TRUE(made) << made.error().message;
    control_ = std::make_shared<FaultControl>();
    disk_ = std::make_shared<FaultDevice>(fresh.clone(), control_);
    if (shape.data_file) {
      const MemoryDevice empty("data", options.size);
      data_ = std::make_shared<FaultDevice>(empty.clone(), control_);
    }
    image_ = *Image::open(disk_, {.writable = true, .data = data_});
    image_->set_backing(backing_);
  }

  Bytes random_bytes(size_t length) {
    Bytes bytes(length);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random_());
    return bytes;
  }

  void note(const std::string& what, bool durable) { history_.note(what, *control_, *image_, durable); }

  // One thing that a guest, or the host, does to the disk.
  void act() {
    const uint64_t sectors = GetParam().options.size / kSector;
    const uint64_t first = random_() % sectors;
    const uint64_t count = 1 + random_() % std::min<uint64_t>(sectors - first, 40);
    const uint64_t offset = first * kSector;
    const uint64_t length = count * kSector;
    const auto range = [&] { return " " + std::to_string(offset) + "+" + std::to_string(length); };
    switch (random_() % 12) {
      case 0:
      case 1:
        ASSERT_TRUE(image_->flush());
        return note("flush", true);
      case 2:
        ASSERT_TRUE(image_->discard(offset, length));
        return note("discard" + range(), false);
      case 3:
        ASSERT_TRUE(image_->write_zeroes(offset, length, ZeroMode::kMayUnmap));
        return note("zero" + range(), false);
      case 4:
        ASSERT_TRUE(image_->write_zeroes(offset, length, ZeroMode::kKeepAllocated));
        return note("zero, keep allocated" + range(), false);
      case 5:
        return change_snapshots();
      case 7: {  // compressed where the format allows, whole clusters of the disk
        if (data_ != nullptr) return;
        const uint64_t cluster = GetParam().options.cluster_size;
        const uint64_t begin = offset / cluster * cluster;
        Bytes bytes(std::min(GetParam().options.size - begin, (1 + random_() % 3) * cluster));
        for (size_t at = 0; at < bytes.size(); ++at) bytes[at] = static_cast<std::byte>(history_.size() + at / 100);
        ASSERT_TRUE(image_->write_compressed(begin, bytes));
        return note("compressed" + range(), false);
      }
      case 6: {  // and somebody else writes what follows at the same time
        const uint64_t behind = std::min(length, GetParam().options.size / kSector * kSector - offset - length);
        const Bytes theirs = random_bytes(behind);
        std::thread other([&] { EXPECT_TRUE(image_->write_at(offset + length, theirs)); });
        EXPECT_TRUE(image_->write_at(offset, random_bytes(length)));
        other.join();
        return note("two writes" + range(), false);
      }
      default:
        ASSERT_TRUE(image_->write_at(offset, random_bytes(length)));
        return note("write" + range(), false);
    }
  }

  void change_snapshots() {
    if (data_ != nullptr) return;  // such images hold none
    const size_t there = image_->snapshots().size();
    SnapshotChange change;
    const size_t index = there == 0 ? 0 : random_() % there;
    if (there == 0 || random_() % 3 == 0)
      change = {"create", [&](SnapshotTransaction& t) { return t.create({.name = std::to_string(history_.size())}); }};
    else if (random_() % 2 == 0)
      change = {"revert", [&](SnapshotTransaction& t) { return t.revert(index); }};
    else
      change = {"delete", [&](SnapshotTransaction& t) { return t.remove(std::span(&index, 1)); }};
    const auto done = run_change(*image_, change);
    ASSERT_TRUE(done) << done.error().message;
    note(change.name, true);
  }

  void check(CrashState& state) {
    const Qcow2Scan scan = scan_qcow2(whole_contents(*state.disks[0]));
    ASSERT_TRUE(scan.errors.empty()) << scan.describe();
    const auto data = data_ != nullptr ? state.disks[1] : nullptr;
    const auto image = Image::open(state.disks[0], {.writable = true, .data = data});
    ASSERT_TRUE(image) << image.error().message;
    (*image)->set_backing(backing_);
    if (GetParam().options.data_file_raw) {
      SCOPED_TRACE("the data file as a raw image");
      history_.check_raw(state, *data);
    }
    history_.check(state, **image);
  }

  void live_and_die(unsigned seed, unsigned length) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    random_.seed(seed);
    ASSERT_TRUE(image_->flush());
    control_->start_over();
    history_.clear();
    note("begin", true);
    for (unsigned i = 0; i < length && !HasFatalFailure(); ++i) act();
    if (HasFailure()) return;
    const CrashOptions options{.each_missing = false, .each_alone = false, .random_states = 3, .seed = seed};
    examine_crash_states(*control_, options, [&](CrashState& state) {
      SCOPED_TRACE(state.description);
      check(state);
      return !HasFailure();
    });
  }

  std::mt19937 random_{1};
  std::shared_ptr<MemoryDevice> backing_;
  std::shared_ptr<FaultControl> control_;
  std::shared_ptr<FaultDevice> disk_;
  std::shared_ptr<FaultDevice> data_;
  std::unique_ptr<Image> image_;
  WriteHistory history_;
};

TEST_P(GuestWriteCrash, WhatWasFlushedIsThereAndTheRestIsLeaks) {
  // Each goes on where the one before ended, so that later ones begin with shared tables, holes and freed clusters.
  for (unsigned seed = 1; seed <= (kSanitized ? 2u : 4u) && !HasFailure(); ++seed) live_and_die(seed, 25);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, GuestWriteCrash,
    testing::Values(
        GuestShape{"small_clusters", {.size = 96 << 10, .cluster_size = 512}},
        GuestShape{"usual_refcounts", {.size = 128 << 10, .cluster_size = 4096}},
        GuestShape{"wide_refcounts", {.size = 96 << 10, .cluster_size = 512, .refcount_bits = 64}},
        GuestShape{"narrow_refcounts", {.size = 64 << 10, .cluster_size = 1024, .refcount_bits = 8}},
        GuestShape{"version_2", {.size = 96 << 10, .version = 2, .cluster_size = 1024}},
        GuestShape{"extended_l2", {.size = 128 << 10, .cluster_size = 16384, .extended_l2 = true}},
        GuestShape{"backing_file", {.size = 96 << 10, .cluster_size = 2048}, true},
        GuestShape{"backing_file_version_2", {.size = 96 << 10, .version = 2, .cluster_size = 2048}, true},
        GuestShape{"odd_size", {.size = 70 * 1024 + 512, .cluster_size = 4096}},
        GuestShape{"data_file", {.size = 96 << 10, .cluster_size = 2048}, false, true},
        GuestShape{"data_file_backing_file", {.size = 96 << 10, .cluster_size = 2048}, true, true},
        GuestShape{
            "data_file_extended_l2", {.size = 128 << 10, .cluster_size = 16384, .extended_l2 = true}, false, true},
        GuestShape{
            "raw_data_file", {.size = 70 * 1024 + 512, .cluster_size = 4096, .data_file_raw = true}, false, true}),
    [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace varve::test
