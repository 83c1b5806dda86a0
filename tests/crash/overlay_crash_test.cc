// Commit and rebase on disks that lose power at any moment: the overlay shows what it showed, by its old backing file
// or its new one, full or emptied; there are leaks at worst; and the same command, repeated, does what is left to do,
// also when it is cut short once more.
#include <gtest/gtest.h>

#include <random>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "image/commit.h"
#include "image/rebase.h"
#include "qcow2/snapshot_transaction.h"
#include "support/qcow2_scan.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using qcow2::CreateOptions;
using qcow2::Image;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kSize = 96 << 10;

Bytes random_bytes(std::mt19937_64& random, size_t length) {
  Bytes bytes(length);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

Bytes bytes_of(MemoryDevice& device) {
  Bytes bytes(*device.size());
  EXPECT_TRUE(device.read_at(0, bytes));
  return bytes;
}

struct OverlayShape {
  std::string name;
  CreateOptions options;  // of every layer, but for its size
  bool compressed = false;
  bool snapshots = false;  // in every layer, so that its tables are shared
};
void PrintTo(const OverlayShape& shape, std::ostream* out) {
  *out << shape.name;
}

// An image with data, zeroes and gaps at random places.
std::unique_ptr<MemoryDevice> make_layer(const OverlayShape& shape, const std::string& name,
                                         const std::string& backing_file, uint64_t seed) {
  CreateOptions options = shape.options;
  options.size = kSize;
  if (!backing_file.empty()) {
    options.backing_file = backing_file;
    options.backing_format = "qcow2";
  }
  auto device = std::make_unique<MemoryDevice>(name);
  EXPECT_TRUE(Image::create(*device, options));
  const std::shared_ptr<BlockDevice> view(device.get(), [](BlockDevice*) {});
  const auto image = *Image::open(view, {.writable = true});
  std::mt19937_64 random(seed);
  for (int i = 0; i < 8; ++i) {
    const uint64_t offset = random() % (kSize / 512) * 512;
    const uint64_t length = std::min<uint64_t>(kSize - offset, (1 + random() % 20) * 512);
    if (i % 3 == 2) {
      EXPECT_TRUE(image->write_zeroes(offset, length, ZeroMode::kMayUnmap));
    } else if (shape.compressed && i % 2 == 0) {
      const Bytes bytes(options.cluster_size, static_cast<std::byte>(random()));
      EXPECT_TRUE(image->write_compressed(offset / options.cluster_size * options.cluster_size, bytes));
    } else {
      EXPECT_TRUE(image->write_at(offset, random_bytes(random, length)));
    }
    if (shape.snapshots && i == 5) {
      EXPECT_TRUE(image->flush());
      auto transaction = qcow2::SnapshotTransaction::begin(*image);
      EXPECT_TRUE(transaction && transaction->create({.name = "kept"}));
      const auto prepared = transaction->prepare();
      EXPECT_TRUE(prepared && qcow2::SnapshotTransaction::commit(*image, *prepared));
    }
  }
  EXPECT_TRUE(image->flush());
  return device;
}

void expect_no_errors(MemoryDevice& device) {
  const Qcow2Scan scan = scan_qcow2(bytes_of(device));
  EXPECT_TRUE(scan.errors.empty()) << scan.describe();
}

std::shared_ptr<Image> open_over(const std::shared_ptr<BlockDevice>& file, const std::shared_ptr<BlockDevice>& backing,
                                 bool writable = false) {
  auto opened = Image::open(file, {.writable = writable});
  EXPECT_TRUE(opened) << opened.error().message;
  if (!opened) return nullptr;
  std::shared_ptr<Image> image = std::move(*opened);
  image->set_backing(backing);
  return image;
}

class OverlayCrash : public testing::TestWithParam<OverlayShape> {
 protected:
  static std::shared_ptr<MemoryDevice> layer(const std::string& name, const std::string& backing, uint64_t seed) {
    return make_layer(GetParam(), name, backing, seed);
  }
  // Some of the states are gone on from; all of them would take too long.
  bool goes_on() { return ++states_ % (kSanitized ? 120 : 30) == 0; }
  static CrashOptions of_recoveries() {
    return {.all_subsets_up_to = 3, .each_missing = false, .each_alone = false, .random_states = 1};
  }

 private:
  unsigned states_ = 0;
};

// As `varve image commit` does it. What the top then shows.
Result<Bytes> commit(const std::shared_ptr<BlockDevice>& base_file, const std::shared_ptr<BlockDevice>& top_file) {
  const std::shared_ptr<Image> base = open_over(base_file, nullptr, true);
  const std::shared_ptr<Image> top = open_over(top_file, base, true);
  const std::vector<std::shared_ptr<BlockDevice>> layers = {top, base};
  TRY(image::commit_to(layers, 1, {}));
  TRY(top->make_empty());
  EXPECT_EQ(whole_contents(*top), whole_contents(*base));
  return whole_contents(*top);
}

TEST_P(OverlayCrash, CommitLeavesTheOverlayShowingTheSame) {
  const auto base_disk = layer("base", "", 1);
  const auto top_disk = layer("top", "base", 2);
  const Bytes seen = whole_contents(*open_over(top_disk, open_over(base_disk, nullptr)));
  const auto expect_seen = [&seen](const CrashState& state) {
    expect_no_errors(*state.disks[0]);
    expect_no_errors(*state.disks[1]);
    const std::shared_ptr<Image> base = open_over(state.disks[0], nullptr);
    const std::shared_ptr<Image> top = open_over(state.disks[1], base);
    EXPECT_TRUE(top != nullptr && whole_contents(*top) == seen);
  };
  const auto control = std::make_shared<FaultControl>();
  const auto base_file = std::make_shared<FaultDevice>(base_disk->clone(), control);
  const auto top_file = std::make_shared<FaultDevice>(top_disk->clone(), control);
  const auto committed = commit(base_file, top_file);
  ASSERT_TRUE(committed) << committed.error().message;
  EXPECT_EQ(*committed, seen);
  const size_t states = examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    expect_seen(state);
    if (!goes_on() || HasFailure()) return !HasFailure();
    const auto later = std::make_shared<FaultControl>();
    const auto base_again = std::make_shared<FaultDevice>(state.disks[0]->clone(), later);
    const auto top_again = std::make_shared<FaultDevice>(state.disks[1]->clone(), later);
    const auto again = commit(base_again, top_again);
    EXPECT_TRUE(again && *again == seen);
    examine_crash_states(*later, of_recoveries(), [&](CrashState& interrupted) {
      SCOPED_TRACE("repeated: " + interrupted.description);
      expect_seen(interrupted);
      const auto finally = commit(interrupted.disks[0], interrupted.disks[1]);
      EXPECT_TRUE(finally && *finally == seen);
      return !HasFailure();
    });
    return !HasFailure();
  });
  EXPECT_GT(states, 50u);
}

// Into the lowest of three, with one in between.
TEST_P(OverlayCrash, CommitPastALayerLeavesAllOverlaysShowingTheSame) {
  const std::vector<std::shared_ptr<MemoryDevice>> disks = {layer("base", "", 6), layer("middle", "base", 7),
                                                            layer("top", "middle", 8)};
  const auto chain = [](const auto& files, bool writable) {
    std::vector<std::shared_ptr<BlockDevice>> layers;
    for (size_t i = 0; i < files.size(); ++i)
      layers.insert(layers.begin(), open_over(files[i], i == 0 ? nullptr : layers.front(), writable && i == 0));
    return layers;
  };
  const Bytes seen = whole_contents(*chain(disks, false).front());
  const auto control = std::make_shared<FaultControl>();
  std::vector<std::shared_ptr<FaultDevice>> files;
  for (const auto& disk : disks) files.push_back(std::make_shared<FaultDevice>(disk->clone(), control));
  {
    const auto layers = chain(files, true);
    ASSERT_TRUE(image::commit_to(layers, 2, {}));
    EXPECT_EQ(whole_contents(*layers[0]), seen);
    EXPECT_EQ(whole_contents(*layers[2]), seen);
  }
  examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    for (const auto& disk : state.disks) expect_no_errors(*disk);
    EXPECT_EQ(whole_contents(*chain(state.disks, false).front()), seen);
    if (!goes_on()) return !HasFailure();
    const auto layers = chain(state.disks, true);
    EXPECT_TRUE(image::commit_to(layers, 2, {}));
    EXPECT_EQ(whole_contents(*layers[0]), seen);
    EXPECT_EQ(whole_contents(*layers[2]), seen);
    return !HasFailure();
  });
}

TEST_P(OverlayCrash, RebaseLeavesTheOverlayShowingTheSame) {
  const auto old_image = open_over(layer("base", "", 3), nullptr);
  const auto new_image = open_over(layer("other", "", 4), nullptr);
  const auto top_disk = layer("top", "base", 5);
  const std::string new_name = "a/rather/long/name/of/another/file/in/another/directory/other.qcow2";
  // As `varve image rebase` does it.
  const auto rebase = [&](const std::shared_ptr<BlockDevice>& file) -> Result<void> {
    const std::shared_ptr<Image> top = open_over(file, nullptr, true);
    const auto& backing = top->header().backing_file == new_name ? new_image : old_image;
    top->set_backing(backing);
    const std::vector<image::ChainLayer> before = {{backing.get(), {{1, 1}}}};
    const std::vector<image::ChainLayer> after = {{new_image.get(), {{1, 2}}}};
    if (backing != new_image) TRY(image::copy_for_rebase(*top, before, after, {}));
    TRY(top->flush());
    return top->change_backing_name(new_name, "qcow2");
  };
  const Bytes seen = whole_contents(*open_over(top_disk, old_image));
  // Whether it has its new backing file.
  const auto expect_seen = [&](const std::shared_ptr<MemoryDevice>& disk) {
    expect_no_errors(*disk);
    const std::shared_ptr<Image> top = open_over(disk, nullptr);
    if (top == nullptr) return false;
    const std::string name = top->header().backing_file.value_or("");
    EXPECT_TRUE(name == "base" || name == new_name) << name;
    EXPECT_EQ(top->header().backing_format, "qcow2");
    top->set_backing(name == new_name ? new_image : old_image);
    EXPECT_TRUE(whole_contents(*top) == seen);
    return name == new_name;
  };
  const auto control = std::make_shared<FaultControl>();
  ASSERT_TRUE(rebase(std::make_shared<FaultDevice>(top_disk->clone(), control)));
  size_t with_new = 0;
  examine_crash_states(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    if (expect_seen(state.disks[0])) ++with_new;
    if (!goes_on() || HasFailure()) return !HasFailure();
    const auto later = std::make_shared<FaultControl>();
    EXPECT_TRUE(rebase(std::make_shared<FaultDevice>(state.disks[0]->clone(), later)));
    examine_crash_states(*later, of_recoveries(), [&](CrashState& interrupted) {
      SCOPED_TRACE("repeated: " + interrupted.description);
      expect_seen(interrupted.disks[0]);
      EXPECT_TRUE(rebase(interrupted.disks[0]));
      EXPECT_TRUE(expect_seen(interrupted.disks[0]));
      return !HasFailure();
    });
    return !HasFailure();
  });
  EXPECT_GT(with_new, 0u);
}

INSTANTIATE_TEST_SUITE_P(Shapes, OverlayCrash,
                         testing::Values(OverlayShape{"Standard", {.cluster_size = 4096}},
                                         OverlayShape{"ExtendedL2", {.cluster_size = 16384, .extended_l2 = true}},
                                         OverlayShape{"Version2", {.version = 2, .cluster_size = 4096}},
                                         OverlayShape{"SmallClusters", {.cluster_size = 512}},
                                         OverlayShape{"WideRefcounts", {.cluster_size = 512, .refcount_bits = 64}},
                                         OverlayShape{"NarrowRefcounts", {.cluster_size = 1024, .refcount_bits = 1}},
                                         OverlayShape{"Compressed", {.cluster_size = 4096}, true},
                                         OverlayShape{"SharedTables", {.cluster_size = 4096}, false, true}),
                         [](const auto& shape) { return shape.param.name; });

TEST(BackingNameCrash, IsTheOldOneOrTheNewOne) {
  struct Name {
    std::optional<std::string> file;
    std::optional<std::string> format;
  };
  const std::vector<Name> names = {
      {std::nullopt, std::nullopt},     {"base", std::nullopt},          {"base", "raw"},
      {std::string(700, 'x'), "qcow2"}, {std::string(1023, 'y'), "raw"}, {"another/one", "qcow2"}};
  for (const uint32_t version : {2u, 3u}) {
    for (size_t from = 0; from < names.size(); ++from) {
      for (size_t to = 0; to < names.size(); ++to) {
        SCOPED_TRACE(testing::Message() << "v" << version << " from " << from << " to " << to);
        MemoryDevice fresh("image");
        ASSERT_TRUE(Image::create(fresh, {.size = 1 << 20,
                                          .version = version,
                                          .cluster_size = 4096,
                                          .backing_file = names[from].file,
                                          .backing_format = names[from].format}));
        const auto control = std::make_shared<FaultControl>();
        const auto disk = std::make_shared<FaultDevice>(fresh.clone(), control);
        {
          const auto image = open_over(disk, nullptr, true);
          ASSERT_TRUE(image->change_backing_name(names[to].file, names[to].format));
        }
        examine_crash_states(*control, {}, [&](CrashState& state) {
          SCOPED_TRACE(state.description);
          const auto header = qcow2::read_header(*state.disks[0]);
          EXPECT_TRUE(header) << header.error().message;
          if (!header) return false;
          const auto is = [&](const Name& name) {
            return header->backing_file == name.file && header->backing_format == name.format;
          };
          EXPECT_TRUE(is(names[from]) || is(names[to])) << header->backing_file.value_or("none");
          return !testing::Test::HasFailure();
        });
        const auto header = qcow2::read_header(*disk);
        ASSERT_TRUE(header);
        EXPECT_EQ(header->backing_file, names[to].file);
        EXPECT_EQ(header->backing_format, names[to].format);
        ASSERT_FALSE(testing::Test::HasFailure());
      }
    }
  }
}

}  // namespace
}  // namespace varve::test
