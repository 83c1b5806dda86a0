#include "crash/image_shapes.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "crash/disk_state.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "support/process.h"

namespace varve::test {
namespace {

using File = std::shared_ptr<MemoryDevice>;

// An image that qemu-img and qemu-io make, command by command.
class QemuImage {
 public:
  QemuImage(const TempDir& dir, const std::string& options, const std::string& size) : path_(dir / "shape.qcow2") {
    run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path_, size});
  }
  QemuImage& io(const std::vector<std::string>& commands) {
    std::vector<std::string> argv = {"qemu-io", "-f", "qcow2", "-d", "unmap"};
    for (const std::string& c : commands) {
      argv.push_back("-c");
      argv.push_back(c);
    }
    argv.push_back(path_);
    run_ok(argv);
    return *this;
  }
  QemuImage& snapshot(const std::string& option, const std::string& name) {
    run_ok({"qemu-img", "snapshot", option, name, path_});
    return *this;
  }
  QemuImage& resize(const std::string& size) {
    run_ok({"qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path_, size});
    return *this;
  }
  QemuImage& bitmap(const std::vector<std::string>& options, const std::string& name) {
    std::vector<std::string> argv = {"qemu-img", "bitmap", "-f", "qcow2"};
    argv.insert(argv.end(), options.begin(), options.end());
    argv.insert(argv.end(), {path_, name});
    run_ok(argv);
    return *this;
  }
  // Replaces the image by a compressed copy of itself (which has no snapshots).
  QemuImage& compress(const std::string& options) {
    run_ok({"qemu-img", "convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, path_, path_ + ".new"});
    run_ok({"mv", path_ + ".new", path_});
    return *this;
  }
  File load() const { return load_file(path_); }

 private:
  std::string path_;
};

// Three points in time, which share some of their tables and clusters.
File three_points(const TempDir& dir, const std::string& options) {
  QemuImage image(dir, options, "256k");
  image.io({"write -P 1 0 40k", "write -P 2 100k 20k", "write -P 3 250k 6k"}).snapshot("-c", "one");
  image.io({"write -P 4 8k 4k", "write -P 5 110k 30k"}).snapshot("-c", "two");
  return image.io({"write -P 6 12k 1k", "discard 100k 8k", "write -P 7 200k 10k"}).load();
}

std::vector<std::byte> pattern(size_t bytes, unsigned seed) {
  std::vector<std::byte> out(bytes);
  std::mt19937 random(seed);
  for (std::byte& b : out) b = static_cast<std::byte>(random());
  return out;
}

// The same for images that we make: no QEMU, other places for everything.
class OwnImage {
 public:
  explicit OwnImage(const qcow2::CreateOptions& options) : file_(std::make_shared<MemoryDevice>("own.qcow2")) {
    EXPECT_TRUE(qcow2::Image::create(*file_, options));
    auto image = qcow2::Image::open(file_, {.writable = true});
    EXPECT_TRUE(image) << image.error().message;
    image_ = std::move(*image);
  }
  OwnImage& write(uint64_t offset, size_t bytes, unsigned seed) {
    const auto written = image_->write_at(offset, pattern(bytes, seed));
    EXPECT_TRUE(written) << written.error().message;
    return *this;
  }
  OwnImage& snapshot(const std::string& name) {
    EXPECT_TRUE(change([&](qcow2::SnapshotTransaction& t) { return t.create({.name = name, .date_sec = 7}); }));
    return *this;
  }
  OwnImage& remove(size_t index) {
    EXPECT_TRUE(change([&](qcow2::SnapshotTransaction& t) { return t.remove(std::span(&index, 1)); }));
    return *this;
  }
  Qcow2Scan scan() {
    EXPECT_TRUE(image_->flush());
    return scan_qcow2(whole_contents(*file_));
  }
  File close() {
    EXPECT_TRUE(image_->flush());
    image_.reset();
    return file_;
  }

 private:
  template <typename Change>
  Result<void> change(Change what) {
    auto t = TRY(qcow2::SnapshotTransaction::begin(*image_));
    TRY(what(t));
    const qcow2::PreparedCommit prepared = TRY(t.prepare());
    TRY(qcow2::SnapshotTransaction::commit(*image_, prepared));
    return qcow2::SnapshotTransaction::discard_freed(*image_, prepared);
  }

  File file_;
  std::unique_ptr<qcow2::Image> image_;
};

// As many clusters in use as the refcount structure covers, less `spare`.
File full_refcounts(const qcow2::CreateOptions& options, uint64_t covered_clusters, uint64_t spare) {
  OwnImage image(options);
  image.write(0, options.size, 1).snapshot("one");
  for (uint64_t offset = 0; offset < options.size; offset += options.cluster_size) {
    const Qcow2Scan scan = image.scan();
    if (scan.clusters - scan.free_clusters + spare >= covered_clusters) break;
    image.write(offset, options.cluster_size, static_cast<unsigned>(offset));
  }
  return image.close();
}

std::vector<ImageShape> make_shapes() {
  const auto snapshots_share = [](const Qcow2Scan& s) { return s.shared_tables > 0; };
  std::vector<ImageShape> shapes;
  shapes.push_back({.name = "empty", .needs_qemu = false, .make = [](const TempDir&) {
                      return OwnImage({.size = 256 << 10, .cluster_size = 4096}).close();
                    }});
  shapes.push_back({.name = "fresh_tables", .needs_qemu = false, .make = [](const TempDir&) {
                      OwnImage image({.size = 256 << 10, .cluster_size = 1024});
                      return image.write(0, 70000, 1).write(140000, 3000, 2).write(250000, 12144, 3).close();
                    }});
  shapes.push_back({.name = "shared_tables",
                    .needs_qemu = false,
                    .make =
                        [](const TempDir&) {
                          OwnImage image({.size = 256 << 10, .cluster_size = 1024});
                          image.write(0, 70000, 1).write(200000, 3000, 2).snapshot("one").write(500, 2000, 3);
                          return image.snapshot("two").snapshot("three").write(200000, 1000, 4).close();
                        },
                    .is_right = snapshots_share});
  shapes.push_back({.name = "holes",
                    .needs_qemu = false,
                    .make =
                        [](const TempDir&) {
                          OwnImage image({.size = 256 << 10, .cluster_size = 512});
                          image.write(0, 60000, 1).snapshot("one").write(0, 50000, 2).snapshot("two");
                          return image.write(0, 40000, 3).remove(0).write(100000, 700, 4).close();
                        },
                    .is_right = [](const Qcow2Scan& s) { return s.free_clusters > 50; }});
  shapes.push_back(
      {.name = "made_by_qemu", .make = [](const TempDir& dir) { return three_points(dir, "cluster_size=4k"); }});
  shapes.push_back(
      {.name = "smallest_clusters", .make = [](const TempDir& dir) { return three_points(dir, "cluster_size=512"); }});
  shapes.push_back({.name = "usual_clusters", .make = [](const TempDir& dir) {
                      QemuImage image(dir, "cluster_size=64k", "1M");
                      return image.io({"write -P 1 0 100k"}).snapshot("-c", "one").io({"write -P 2 90k 1k"}).load();
                    }});
  shapes.push_back({.name = "version_2",
                    .make = [](const TempDir& dir) { return three_points(dir, "compat=0.10,cluster_size=4k"); }});
  for (const unsigned bits : {8u, 32u, 64u})
    shapes.push_back({.name = fmt::format("refcount_bits_{}", bits), .make = [bits](const TempDir& dir) {
                        return three_points(dir, fmt::format("cluster_size=1k,refcount_bits={}", bits));
                      }});
  // Refcounts up to 3: one snapshot, and room for the reference that a revert holds for a moment.
  shapes.push_back({.name = "refcount_bits_2",
                    .make =
                        [](const TempDir& dir) {
                          QemuImage image(dir, "cluster_size=1k,refcount_bits=2", "256k");
                          image.io({"write -P 1 0 100k"}).snapshot("-c", "one");
                          return image.io({"write -P 2 50k 20k"}).load();
                        },
                    .can_create = false});
  shapes.push_back({.name = "refcount_bits_1",
                    .make =
                        [](const TempDir& dir) {
                          QemuImage image(dir, "cluster_size=4k,refcount_bits=1", "256k");
                          image.snapshot("-c", "empty").snapshot("-c", "also_empty");
                          return image.io({"write -P 1 4k 50k"}).load();
                        },
                    .can_create = false});
  shapes.push_back({.name = "extended_l2", .make = [](const TempDir& dir) {
                      QemuImage image(dir, "extended_l2=on,cluster_size=16k", "256k");
                      image.io({"write -P 1 0 3k", "write -P 2 40k 20k", "write -z 44k 2k"}).snapshot("-c", "one");
                      image.io({"write -P 3 1k 1k", "write -z -u 16k 16k"}).snapshot("-c", "two");
                      return image.io({"write -P 4 50k 1k", "discard 0 16k"}).load();
                    }});
  shapes.push_back({.name = "compressed",
                    .make =
                        [](const TempDir& dir) {
                          QemuImage image(dir, "cluster_size=4k", "256k");
                          image.io({"write -P 1 0 60k", "write -P 2 100k 50k"}).compress("cluster_size=4k");
                          image.snapshot("-c", "one").io({"write -P 3 10k 9k"}).snapshot("-c", "two");
                          return image.io({"write -c -P 4 200k 4k", "write -P 5 100k 5k"}).load();
                        },
                    .is_right = [](const Qcow2Scan& s) { return s.compressed > 40; }});
  shapes.push_back({.name = "zero_clusters", .make = [](const TempDir& dir) {
                      QemuImage image(dir, "cluster_size=2k", "256k");
                      image.io({"write -P 1 0 60k", "write -z 10k 10k", "write -z -u 30k 8k"}).snapshot("-c", "one");
                      return image.io({"write -z 0 20k", "write -P 2 12k 3k", "discard 40k 10k"}).load();
                    }});
  shapes.push_back({.name = "bitmaps",
                    .make =
                        [](const TempDir& dir) {
                          QemuImage image(dir, "cluster_size=4k", "256k");
                          image.bitmap({"--add", "-g", "512"}, "since_backup");
                          image.io({"write -P 1 0 60k", "write -P 2 200k 3k"}).snapshot("-c", "one");
                          image.bitmap({"--add", "--disable"}, "old").io({"write -P 3 50k 20k"});
                          return image.snapshot("-c", "two").load();
                        },
                    .is_right = [](const Qcow2Scan& s) { return s.bitmaps == 2; }});
  shapes.push_back({.name = "another_size", .make = [](const TempDir& dir) {
                      QemuImage image(dir, "cluster_size=1k", "100k");
                      image.io({"write -P 1 0 90k"}).snapshot("-c", "small").resize("400k");
                      image.io({"write -P 2 80k 50k", "write -P 3 399k 1k"}).snapshot("-c", "large").resize("200k");
                      return image.io({"write -P 4 150k 3k"}).load();
                    }});
  shapes.push_back({.name = "stale_copied",
                    .make =
                        [](const TempDir& dir) {
                          QemuImage image(dir, "cluster_size=1k", "256k");
                          image.io({"write -P 1 0 200k"}).snapshot("-c", "one").snapshot("-c", "two");
                          image.io({"write -P 2 0 200k"}).snapshot("-c", "three").io({"write -P 3 4k 4k"});
                          return image.snapshot("-d", "one").load();
                        },
                    .is_right = [](const Qcow2Scan& s) { return s.copied_in_snapshots > 0; }});
  shapes.push_back({.name = "machine_state",
                    .needs_qemu = false,
                    .make = [](const TempDir&) { return load_file(VARVE_CORPUS_DIR "/qcow2/machine_state"); },
                    .is_right = [](const Qcow2Scan& s) { return s.machine_states != 0; }});
  shapes.push_back(
      {.name = "full_refcount_block",
       .needs_qemu = false,
       .make = [](const TempDir&) { return full_refcounts({.size = 64 << 10, .cluster_size = 512}, 256, 0); },
       .is_right =
           [](const Qcow2Scan& s) {
             return s.refcount_blocks == 1 && s.clusters - s.free_clusters >= s.refcounts_per_block;
           }});
  shapes.push_back({.name = "full_refcount_table",
                    .needs_qemu = false,
                    .make =
                        [](const TempDir&) {
                          return full_refcounts({.size = 1 << 20, .cluster_size = 512, .refcount_bits = 64}, 64 * 64,
                                                20);
                        },
                    .is_right =
                        [](const Qcow2Scan& s) {
                          const uint64_t covered = s.refcount_table_entries * s.refcounts_per_block;
                          return s.clusters <= covered && s.clusters - s.free_clusters + 64 > covered;
                        }});
  return shapes;
}

}  // namespace

const std::vector<ImageShape>& image_shapes() {
  static const std::vector<ImageShape> shapes = make_shapes();
  return shapes;
}

const ImageShape& image_shape(const std::string& name) {
  for (const ImageShape& shape : image_shapes())
    if (shape.name == name) return shape;
  ADD_FAILURE() << "no image shape '" << name << "'";
  return image_shapes().front();
}

}  // namespace varve::test
