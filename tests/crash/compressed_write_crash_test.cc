// Compressed clusters written into an image, as `convert -c` does, and what guests and snapshots make of them, on a
// disk that loses power at any moment or refuses any write: what was flushed is there, the rest is there or is what it
// was before, snapshots are whole, the image has leaks at worst. Compressed clusters share clusters of the file with
// each other, so the refcounts of what is written anew and of what is let go of are the same ones.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <random>

#include "crash/examined_states.h"
#include "crash/snapshot_changes.h"
#include "crash/write_history.h"
#include "image/convert.h"
#include "support/process.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using qcow2::CompressionType;
using qcow2::CreateOptions;
using qcow2::Image;
using qcow2::SnapshotTransaction;
using Bytes = std::vector<std::byte>;

struct CompressedShape {
  std::string name;
  CreateOptions options;
  bool backing = false;
};
void PrintTo(const CompressedShape& shape, std::ostream* out) {
  *out << shape.name;
}

struct Action {
  std::string what;
  bool durable = false;  // when it has returned, so is everything before it
  std::function<Result<void>(Image&)> run;
};

class CompressedWriteCrash : public testing::TestWithParam<CompressedShape> {
 protected:
  void SetUp() override {
    const CompressedShape& shape = GetParam();
    CreateOptions options = shape.options;
    if (shape.backing) {
      options.backing_file = "base";
      options.backing_format = "raw";
      backing_ = std::make_shared<MemoryDevice>("base");
      ASSERT_TRUE(backing_->write_at(0, noise(options.size)));
      store_file(*backing_, dir_ / "base");
    }
    const auto made = Image::create(empty_, options);
    ASSERT_TRUE(made) << made.error().message;
  }

  uint64_t cluster_size() const { return GetParam().options.cluster_size; }
  uint64_t clusters() const { return (GetParam().options.size + cluster_size() - 1) / cluster_size(); }
  uint64_t length_of(uint64_t cluster, uint64_t count) const {
    return std::min(count * cluster_size(), GetParam().options.size - cluster * cluster_size());
  }

  Bytes noise(size_t length) {
    Bytes bytes(length);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random_());
    return bytes;
  }
  // An eighth to a half of it can't be compressed; no two are alike.
  Bytes text(size_t length) {
    Bytes bytes(length, static_cast<std::byte>(random_()));
    const size_t part = length >> (1 + random_() % 3);
    for (size_t at = 0; at < part; ++at) bytes[at] = static_cast<std::byte>(random_());
    return bytes;
  }

  Action compressed(uint64_t cluster, uint64_t count, bool compressible = true) {
    const uint64_t length = length_of(cluster, count);
    Bytes bytes;
    for (uint64_t at = 0; at < length; at += cluster_size()) {
      const Bytes piece = compressible ? text(std::min(cluster_size(), length - at)) : noise(length - at);
      bytes.insert(bytes.end(), piece.begin(), piece.end());
    }
    bytes.resize(length);
    return {"compressed " + std::to_string(cluster) + "+" + std::to_string(count), false,
            [this, cluster, bytes](Image& image) { return image.write_compressed(cluster * cluster_size(), bytes); }};
  }
  Action plain(uint64_t cluster, uint64_t count) {
    // Neither end is that of a cluster, where there is room for that.
    const uint64_t offset = cluster * cluster_size() + cluster_size() / 4 / 512 * 512;
    const uint64_t end = cluster * cluster_size() + length_of(cluster, count);
    Bytes bytes = noise(std::max<uint64_t>(512, (end - offset) * 3 / 4 / 512 * 512));
    return {"plain " + std::to_string(offset) + "+" + std::to_string(bytes.size()), false,
            [offset, bytes](Image& image) { return image.write_at(offset, bytes); }};
  }
  Action zeroes(uint64_t cluster, uint64_t count) const {
    return {"zeroes " + std::to_string(cluster), false, [this, cluster, count](Image& image) {
              return image.write_zeroes(cluster * cluster_size(), length_of(cluster, count), ZeroMode::kMayUnmap);
            }};
  }
  Action discard(uint64_t cluster, uint64_t count) const {
    return {"discard " + std::to_string(cluster), false, [this, cluster, count](Image& image) {
              return image.discard(cluster * cluster_size(), length_of(cluster, count));
            }};
  }
  static Action flush() {
    return {"flush", true, [](Image& image) { return image.flush(); }};
  }
  static Action snapshots(const std::string& what, const std::function<Result<void>(SnapshotTransaction&)>& change) {
    return {what, true, [what, change](Image& image) { return run_change(image, {what, change}); }};
  }

  // A whole copy with flushes in it, and then everything that can be done to its clusters.
  std::vector<Action> life() {
    std::vector<Action> actions;
    const uint64_t n = clusters();
    for (uint64_t c = 0; c < n; ++c) {
      if (c % 6 == 5)
        actions.push_back(zeroes(c, 1));
      else
        actions.push_back(compressed(c, 1, c % 6 != 3));
      if (c % 7 == 6) actions.push_back(flush());
    }
    actions.push_back(flush());
    for (int i = 0; i < 3; ++i) {
      const uint64_t cluster = random_() % n;                     // in turn: compilers order arguments as they like
      actions.push_back(compressed(cluster, 1 + random_() % 3));  // over compressed ones
    }
    actions.push_back(plain(random_() % n, 2));  // copies on write
    actions.push_back(flush());
    actions.push_back(snapshots("create", [](SnapshotTransaction& t) { return t.create({.name = "one"}); }));
    actions.push_back(compressed(0, 3));  // what only the snapshot has from now on
    actions.push_back(plain(random_() % n, 1));
    actions.push_back(discard(1, 2));
    actions.push_back(compressed(1, 1));
    actions.push_back(flush());
    actions.push_back(snapshots("revert", [](SnapshotTransaction& t) { return t.revert(0); }));
    actions.push_back(compressed(random_() % n, 2));
    actions.push_back(compressed(n - 1, 1));
    actions.push_back(snapshots("delete", [](SnapshotTransaction& t) {
      const size_t first = 0;
      return t.remove(std::span(&first, 1));
    }));
    actions.push_back(plain(0, 2));
    actions.push_back(compressed(0, 1));
    actions.push_back(compressed(0, 1));  // twice without a flush: the first one is let go of before anybody saw it
    actions.push_back(discard(random_() % n, 1));
    actions.push_back(compressed(n / 2, 2));
    actions.push_back(flush());
    return actions;
  }

  std::unique_ptr<Image> open(std::shared_ptr<BlockDevice> file) const {
    auto image = Image::open(std::move(file), {.writable = true});
    EXPECT_TRUE(image) << image.error().message;
    if (!image) return nullptr;
    (*image)->set_backing(backing_);
    return std::move(*image);
  }

  // Runs all of it undisturbed; the history says what may be seen when.
  void record(const std::vector<Action>& actions) {
    control_ = std::make_shared<FaultControl>();
    const auto disk = std::make_shared<FaultDevice>(empty_.clone(), control_);
    const auto image = open(disk);
    ASSERT_NE(image, nullptr);
    ASSERT_TRUE(image->flush());
    control_->start_over();
    history_.note("begin", *control_, *image, true);
    for (const Action& action : actions) {
      const auto done = action.run(*image);
      ASSERT_TRUE(done) << action.what << ": " << done.error().message;
      history_.note(action.what, *control_, *image, action.durable);
    }
  }

  void check(const CrashState& state) {
    check_disk(state.disks[0], [&](Image& image) { history_.check(state, image); });
  }

  void check_disk(const std::shared_ptr<MemoryDevice>& disk, const std::function<void(Image&)>& compare) {
    const Qcow2Scan scan = scan_qcow2(whole_contents(*disk));
    ASSERT_TRUE(scan.errors.empty()) << scan.describe();
    most_compressed_ = std::max(most_compressed_, scan.compressed);
    const auto as_it_was = disk->clone();
    const auto image = open(disk);
    ASSERT_NE(image, nullptr);
    compare(*image);
    if (states_++ % 701 == 0) ask_qemu(*as_it_was, whole_contents(*image));
  }

  // QEMU finds leaks at worst, and reads what we read.
  void ask_qemu(const MemoryDevice& file, const Bytes& contents) {
    if (find_program("qemu-img").empty()) return;
    const std::string path = store_file(file, dir_ / "disk.qcow2");
    const ProcessResult found = run({"qemu-img", "check", "-f", "qcow2", path});
    EXPECT_TRUE(found.exit_code == 0 || found.exit_code == 3) << found.out << found.err;
    run_ok({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, dir_ / "disk.raw"});
    const std::string theirs = read_whole_file(dir_ / "disk.raw");
    EXPECT_TRUE(std::ranges::equal(contents, std::as_bytes(std::span(theirs)))) << "QEMU reads another disk";
  }

  TempDir dir_;
  std::mt19937_64 random_{7};
  MemoryDevice empty_{"compressed.qcow2"};
  std::shared_ptr<MemoryDevice> backing_;
  std::shared_ptr<FaultControl> control_;
  WriteHistory history_;
  uint64_t most_compressed_ = 0;
  size_t states_ = 0;
};

TEST_P(CompressedWriteCrash, WhatWasFlushedIsThereAndTheRestIsLeaks) {
  ASSERT_NO_FATAL_FAILURE(record(life()));
  const size_t states = examine_crash_states(*control_, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    check(state);
    return !HasFailure();
  });
  EXPECT_GT(states, kSanitized ? 100u : 400u);
  EXPECT_GT(most_compressed_, clusters() / 3);
}

// The copy itself, by as many threads as there are; the order of its writes is their affair.
TEST_P(CompressedWriteCrash, ACopyIsThereAsFarAsItGot) {
  const uint64_t size = GetParam().options.size;
  MemoryDevice source("source");
  ASSERT_TRUE(source.resize(size));
  for (uint64_t c = 0; c < clusters(); ++c) {
    if (c % 5 == 4) continue;
    const uint64_t length = length_of(c, 1);
    ASSERT_TRUE(source.write_at(c * cluster_size(), c % 5 == 2 ? noise(length) : text(length)));
  }
  record({{"copy", false,
           [&](Image& image) {
             return image::convert({{.layers = {&source}, .size = size}}, image,
                                   {.target_zero_from = backing_ != nullptr ? UINT64_MAX : 0, .compress_into = &image});
           }},
          flush()});
  if (HasFailure()) return;
  const size_t states = examine_crash_states(*control_, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    check(state);
    return !HasFailure();
  });
  EXPECT_GT(states, 20u);
  EXPECT_GT(most_compressed_, clusters() / 3);
}

// No space, half of a write done: from any moment on.
TEST_P(CompressedWriteCrash, AWriteThatFailsLeavesWhatWasFlushed) {
  const std::vector<Action> actions = life();
  ASSERT_NO_FATAL_FAILURE(record(actions));
  const uint64_t mutations = control_->calls(kOpMutations);
  uint64_t failures = 0;
  for (uint64_t n = 0; n < mutations && !HasFailure(); ++n) {
    SCOPED_TRACE("from the mutation " + std::to_string(n) + " on");
    const auto control = std::make_shared<FaultControl>();
    const auto disk = std::make_shared<FaultDevice>(empty_.clone(), control);
    auto image = open(disk);
    ASSERT_NE(image, nullptr);
    ASSERT_TRUE(image->flush());
    control->start_over();
    control->inject({.at = n, .error = ENOSPC, .half_done = true});
    size_t done = 0;
    while (done < actions.size() && actions[done].run(*image)) ++done;
    image.reset();
    control->clear_fault();
    count_examined_states();
    failures += done < actions.size() ? 1 : 0;  // else only discards failed
    check_disk(disk->disk().clone(), [&](Image& after) { history_.check_after_failure(done, after); });
  }
  EXPECT_GT(failures, mutations / 2);  // all but those that only give space back
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CompressedWriteCrash,
    testing::Values(CompressedShape{"zlib", {.size = 96 << 10, .cluster_size = 4096}},
                    CompressedShape{
                        "zstd", {.size = 96 << 10, .cluster_size = 4096, .compression_type = CompressionType::kZstd}},
                    CompressedShape{"small_clusters", {.size = 20 << 10, .cluster_size = 512}},
                    CompressedShape{"usual_clusters", {.size = 5 << 17, .cluster_size = 65536}},
                    CompressedShape{"narrow_refcounts", {.size = 48 << 10, .cluster_size = 2048, .refcount_bits = 8}},
                    CompressedShape{"four_bit_refcounts", {.size = 48 << 10, .cluster_size = 2048, .refcount_bits = 4}},
                    CompressedShape{"wide_refcounts", {.size = 24 << 10, .cluster_size = 1024, .refcount_bits = 64}},
                    CompressedShape{"version_2", {.size = 48 << 10, .version = 2, .cluster_size = 2048}},
                    CompressedShape{"extended_l2", {.size = 256 << 10, .cluster_size = 16384, .extended_l2 = true}},
                    CompressedShape{"backing_file", {.size = 64 << 10, .cluster_size = 4096}, true},
                    CompressedShape{"odd_size", {.size = 70 * 1024 + 512, .cluster_size = 4096}}),
    [](const auto& parameter) { return parameter.param.name; });

}  // namespace
}  // namespace varve::test
