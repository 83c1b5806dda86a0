// Long random lives of an image, in which Varve and QEMU take turns: writes, zeroes, discards, snapshots created,
// reverted and deleted by either. After each step the other one reads the disk, and `qemu-img check` must be content.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

#include "io/file_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/process.h"
#include "support/sanitizer.h"
#include "support/temp_dir.h"

namespace varve::qcow2 {
namespace {

using test::run;
using test::run_ok;
using Bytes = std::string;

struct Shape {
  const char* name;
  const char* options;  // of qemu-img create -o, or…
  CreateOptions ours;   // …of Image::create, where `options` is empty
  uint64_t cluster_size;
  uint64_t size;
  bool backing = false;
};

class EngineSequences : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    path_ = dir_ / "image.qcow2";
    const Shape& shape = GetParam();
    model_.assign(shape.size, '\0');
    if (shape.backing) {
      Bytes base(shape.size / 2 + 1000, 'b');
      std::memcpy(model_.data(), base.data(), base.size());
      base_path_ = dir_.write("base.raw", base);
    }
    if (*shape.options != '\0') {
      std::vector<std::string> argv = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", shape.options};
      if (shape.backing) argv.insert(argv.end(), {"-b", base_path_, "-F", "raw"});
      argv.insert(argv.end(), {path_, std::to_string(shape.size)});
      run_ok(argv);
    } else {
      CreateOptions options = shape.ours;
      options.size = shape.size;
      options.cluster_size = shape.cluster_size;
      if (shape.backing) {
        options.backing_file = base_path_;
        options.backing_format = "raw";
      }
      auto file = FileDevice::create(path_, LockRequest::format_writer());
      ASSERT_TRUE(file) << file.error().message;
      const auto created = Image::create(**file, options);
      ASSERT_TRUE(created) << created.error().message;
    }
  }

  std::unique_ptr<Image> open(bool writable) {
    auto file = FileDevice::open(path_, writable ? Access::kReadWrite : Access::kReadOnly,
                                 writable ? LockRequest::format_writer() : LockRequest::format_reader());
    EXPECT_TRUE(file) << file.error().message;
    auto image = Image::open(std::move(*file), {.writable = writable});
    EXPECT_TRUE(image) << image.error().message;
    if (GetParam().backing) {
      auto base = FileDevice::open(base_path_, Access::kReadOnly, LockRequest::raw_reader());
      EXPECT_TRUE(base) << base.error().message;
      (*image)->set_backing(std::move(*base));
    }
    return std::move(*image);
  }

  static Bytes read_all(BlockDevice& device) {
    Bytes out(*device.size(), '?');
    const auto r = device.read_at(0, std::as_writable_bytes(std::span(out)));
    EXPECT_TRUE(r) << r.error().message;
    return out;
  }

  Bytes qemu_reads(const std::string& snapshot = {}) {
    std::vector<std::string> argv = {"qemu-img", "convert", "-O", "raw"};
    if (!snapshot.empty()) argv.insert(argv.end(), {"-l", "snapshot.name=" + snapshot});
    argv.insert(argv.end(), {"-f", "qcow2", path_, dir_ / "out.raw"});
    run_ok(argv);
    return test::read_whole_file(dir_ / "out.raw");
  }

  void varve_snapshot(char what, const std::string& name) {
    const auto image = open(true);
    const auto result = [&]() -> Result<void> {
      SnapshotTransaction t = TRY(SnapshotTransaction::begin(*image));
      if (what == 'c') {
        TRY(t.create({.name = name, .date_sec = 1700000000, .date_nsec = 5}));
      } else {
        const size_t index = find_by_name(t.snapshots(), name).value();
        if (what == 'a') TRY(t.revert(index));
        if (what == 'd') TRY(t.remove(std::span(&index, 1)));
      }
      const PreparedCommit prepared = TRY(t.prepare());
      TRY(SnapshotTransaction::commit(*image, prepared));
      return SnapshotTransaction::discard_freed(*image, prepared);
    }();
    ASSERT_TRUE(result) << result.error().message;
  }

  void snapshot(char what, const std::string& name, bool ours) {
    if (ours)
      varve_snapshot(what, name);
    else
      run_ok({"qemu-img", "snapshot", std::string("-") + what, name, path_});
    if (what == 'c') snapshots_[name] = model_;
    if (what == 'a') model_ = snapshots_.at(name);
    if (what == 'd') snapshots_.erase(name);
  }

  void guest_io(uint64_t choice, uint64_t offset, uint64_t length, unsigned char fill, bool ours) {
    const uint64_t cluster = GetParam().cluster_size;
    const std::string range = std::to_string(offset) + " " + std::to_string(length);
    if (choice == 0) {  // zeroes
      if (ours) {
        ASSERT_TRUE(
            open(true)->write_zeroes(offset, length, fill % 2 != 0 ? ZeroMode::kMayUnmap : ZeroMode::kKeepAllocated));
      } else {
        run_ok({"qemu-io", "-f", "qcow2", "-c", (fill % 2 != 0 ? "write -z -u " : "write -z ") + range, path_});
      }
      std::memset(&model_[offset], 0, length);
      return;
    }
    const bool v2_backed =
        GetParam().backing && std::string(GetParam().options).find("compat=0.10") != std::string::npos;
    if (choice == 1 && !v2_backed) {  // discard of whole clusters: zeroes (there, a hint without a promise)
      const uint64_t begin = offset / cluster * cluster;
      const uint64_t bytes = std::min(model_.size() - begin, (length + cluster - 1) / cluster * cluster);
      if (ours)
        ASSERT_TRUE(open(true)->discard(begin, bytes));
      else
        run_ok({"qemu-io", "-d", "unmap", "-f", "qcow2", "-c",
                "discard " + std::to_string(begin) + " " + std::to_string(bytes), path_});
      std::memset(&model_[begin], 0, bytes);
      return;
    }
    if (ours) {
      const Bytes data(length, static_cast<char>(fill));
      const auto image = open(true);
      const auto r = image->write_at(offset, std::as_bytes(std::span(data)));
      ASSERT_TRUE(r) << r.error().message;
      ASSERT_TRUE(image->flush());
    } else {
      run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P " + std::to_string(fill) + " " + range, path_});
    }
    std::memset(&model_[offset], fill, length);
  }

  void check(bool ours, bool everything) {
    const auto result = run({"qemu-img", "check", "-f", "qcow2", path_});
    ASSERT_EQ(result.exit_code, 0) << result.out << result.err;
    ASSERT_TRUE((ours ? qemu_reads() : read_all(*open(false))) == model_) << "the active disk differs";
    if (!everything) return;
    const auto image = open(false);
    ASSERT_EQ(image->snapshots().size(), snapshots_.size());
    for (size_t i = 0; i < image->snapshots().size(); ++i) {
      const std::string& name = image->snapshots()[i].name;
      auto view = image->open_snapshot(i);
      ASSERT_TRUE(view) << view.error().message;
      ASSERT_TRUE(read_all(**view) == snapshots_.at(name)) << "snapshot " << name << " differs for Varve";
      ASSERT_TRUE(qemu_reads(name) == snapshots_.at(name)) << "snapshot " << name << " differs for QEMU";
    }
  }

  test::TempDir dir_;
  std::string path_;
  std::string base_path_;
  Bytes model_;
  std::map<std::string, Bytes> snapshots_;
};

TEST_P(EngineSequences, VarveAndQemuAgreeAfterEveryStep) {
  const unsigned seed = 911;
  std::mt19937_64 random(seed);
  const uint64_t size = model_.size();
  int serial = 0;
  for (int step = 0; step < (test::kSanitized ? 80 : 200); ++step) {
    SCOPED_TRACE(testing::Message() << GetParam().name << " seed " << seed << " step " << step);
    const bool ours = random() % 2 == 0;
    std::vector<std::string> names;
    for (const auto& [name, contents] : snapshots_) names.push_back(name);
    const auto any = [&] { return names[random() % names.size()]; };
    const uint64_t choice = random() % 10;
    if (choice <= 1 && names.size() < 3) {
      snapshot('c', "snap-" + std::to_string(serial++), ours);
    } else if (choice == 2 && !names.empty()) {
      snapshot('a', any(), ours);
    } else if (choice <= 4 && !names.empty()) {
      snapshot('d', any(), ours);
    } else {
      const uint64_t offset = random() % (size / 512) * 512;
      const uint64_t length = std::min(size - offset, (random() % (GetParam().cluster_size * 5 / 512 + 8) + 1) * 512);
      guest_io(random() % 6, offset, length, static_cast<unsigned char>(random()), ours);
    }
    if (HasFatalFailure()) return;
    check(ours, step % 20 == 19);
    if (HasFatalFailure()) return;
  }
}

CreateOptions v2() {
  return {.version = 2};
}
CreateOptions width(uint32_t bits) {
  return {.refcount_bits = bits};
}
CreateOptions extended() {
  return {.extended_l2 = true};
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EngineSequences,
    testing::Values(Shape{"512", "cluster_size=512", {}, 512, 300 << 10},
                    Shape{"512ours", "", width(4), 512, 300 << 10},
                    Shape{"4k8bit", "cluster_size=4096,refcount_bits=8", {}, 4096, 1 << 20, true},
                    Shape{"4k64bit", "cluster_size=4096,refcount_bits=64,preallocation=metadata", {}, 4096, 1 << 20},
                    Shape{"64k", "cluster_size=65536", {}, 65536, 4 << 20, true},
                    Shape{"64kv2", "compat=0.10", {}, 65536, 4 << 20}, Shape{"64kv2ours", "", v2(), 65536, 4 << 20},
                    Shape{"64kv2backed", "compat=0.10", {}, 65536, 4 << 20, true},
                    Shape{"extended", "extended_l2=on", {}, 65536, 4 << 20, true},
                    Shape{"extendedours", "", extended(), 16384, 2 << 20},
                    Shape{"lazy32bit", "lazy_refcounts=on,refcount_bits=32", {}, 65536, 4 << 20},
                    Shape{"2m", "cluster_size=2M,refcount_bits=4", {}, 2 << 20, (5 << 20) + 512}),
    [](const testing::TestParamInfo<Shape>& shape) { return std::string(shape.param.name); });

}  // namespace
}  // namespace varve::qcow2
