// Commit and rebase on disks that lose power at any moment: the overlay shows what it showed, by its old backing file
// or its new one, full or emptied; and there are leaks at worst.
#include <gtest/gtest.h>

#include <random>

#include "crash/disk_state.h"
#include "crash/examined_states.h"
#include "image/commit.h"
#include "image/rebase.h"
#include "io/crash_states.h"
#include "qcow2/snapshot_transaction.h"
#include "support/qcow2_scan.h"

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

// What overlay and base are like.
struct Shape {
  const char* name;
  CreateOptions overlay;
  CreateOptions base = {.size = kSize, .cluster_size = 4096};
  bool snapshots = false;  // in both, so that their tables are shared
  bool compressed = false;
};

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  return out << shape.name;
}

CreateOptions over_base(CreateOptions options) {
  options.size = kSize;
  options.backing_file = "base";
  options.backing_format = "qcow2";
  return options;
}

const Shape kShapes[] = {
    {"Standard", over_base({.cluster_size = 4096})},
    {"ExtendedL2", over_base({.cluster_size = 16384, .extended_l2 = true})},
    {"Version2", over_base({.version = 2, .cluster_size = 4096}), {.size = kSize, .version = 2, .cluster_size = 4096}},
    {"SmallestClusters", over_base({.cluster_size = 512}), {.size = kSize, .cluster_size = 512}},
    {"WideRefcounts",
     over_base({.cluster_size = 512, .refcount_bits = 64}),
     {.size = kSize, .cluster_size = 512, .refcount_bits = 64}},
    {.name = "SharedTables", .overlay = over_base({.cluster_size = 4096}), .snapshots = true},
    {.name = "Compressed", .overlay = over_base({.cluster_size = 4096}), .compressed = true},
};

// An image with data, zeroes and gaps at random places.
std::unique_ptr<MemoryDevice> make_layer(const std::string& name, const CreateOptions& options, uint64_t seed,
                                         const Shape& shape) {
  auto device = std::make_unique<MemoryDevice>(name);
  EXPECT_TRUE(Image::create(*device, options));
  const std::shared_ptr<BlockDevice> view(device.get(), [](BlockDevice*) {});
  const auto image = *Image::open(view, {.writable = true});
  std::mt19937_64 random(seed);
  const uint64_t cluster = options.cluster_size;
  for (int i = 0; i < 8; ++i) {
    const uint64_t offset = random() % (kSize / 512) * 512;
    const uint64_t length = std::min<uint64_t>(kSize - offset, (1 + random() % 20) * 512);
    if (i % 3 == 2) {
      EXPECT_TRUE(image->write_zeroes(offset, length, ZeroMode::kMayUnmap));
    } else if (shape.compressed && i % 3 == 1) {
      EXPECT_TRUE(image->write_compressed(offset / cluster * cluster, Bytes(cluster, static_cast<std::byte>(i))));
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

class OverlayCrash : public testing::TestWithParam<Shape> {};

TEST_P(OverlayCrash, CommitLeavesTheOverlayShowingTheSame) {
  const auto base_disk = make_layer("base", GetParam().base, 1, GetParam());
  const auto top_disk = make_layer("top", GetParam().overlay, 2, GetParam());
  const auto control = std::make_shared<FaultControl>();
  const auto base_file = std::make_shared<FaultDevice>(base_disk->clone(), control);
  const auto top_file = std::make_shared<FaultDevice>(top_disk->clone(), control);
  Bytes seen;
  {
    const std::shared_ptr<Image> base = open_over(base_file, nullptr, true);
    const std::shared_ptr<Image> top = open_over(top_file, base, true);
    seen = whole_contents(*top);
    const std::vector<std::shared_ptr<BlockDevice>> layers = {top, base};
    ASSERT_TRUE(image::commit_to(layers, 1, {}));
    ASSERT_TRUE(top->make_empty());
    EXPECT_EQ(whole_contents(*top), seen);
    EXPECT_EQ(whole_contents(*base), seen);
  }
  const size_t states = for_each_crash_state(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    expect_no_errors(*state.disks[0]);
    expect_no_errors(*state.disks[1]);
    const std::shared_ptr<Image> base = open_over(state.disks[0], nullptr);
    const std::shared_ptr<Image> top = open_over(state.disks[1], base);
    EXPECT_TRUE(top != nullptr && whole_contents(*top) == seen);
    return !testing::Test::HasFailure();
  });
  EXPECT_GT(states, 50u);
  report_examined_states(states, std::string("commit, ") + GetParam().name);
}

TEST_P(OverlayCrash, RebaseLeavesTheOverlayShowingTheSame) {
  const auto old_base = std::shared_ptr<MemoryDevice>(make_layer("base", GetParam().base, 3, GetParam()));
  const auto new_base = std::shared_ptr<MemoryDevice>(make_layer("other", GetParam().base, 4, GetParam()));
  const auto top_disk = make_layer("top", GetParam().overlay, 5, GetParam());
  const auto control = std::make_shared<FaultControl>();
  const auto top_file = std::make_shared<FaultDevice>(top_disk->clone(), control);
  const std::string new_name = "a/rather/long/name/of/another/file/in/another/directory/other.qcow2";
  Bytes seen;
  const auto old_image = open_over(old_base, nullptr);
  const auto new_image = open_over(new_base, nullptr);
  {
    const std::shared_ptr<Image> top = open_over(top_file, old_image, true);
    seen = whole_contents(*top);
    const std::vector<image::ChainLayer> before = {{old_image.get(), {{1, 1}}}};
    const std::vector<image::ChainLayer> after = {{new_image.get(), {{1, 2}}}};
    ASSERT_TRUE(image::copy_for_rebase(*top, before, after, {}));
    ASSERT_TRUE(top->flush());
    ASSERT_TRUE(top->change_backing_name(new_name, "qcow2"));
  }
  size_t with_new = 0;
  const size_t states = for_each_crash_state(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    expect_no_errors(*state.disks[0]);
    const std::shared_ptr<Image> top = open_over(state.disks[0], nullptr);
    if (top == nullptr) return false;
    const std::string name = top->header().backing_file.value_or("");
    EXPECT_TRUE(name == "base" || name == new_name) << name;
    EXPECT_EQ(top->header().backing_format, "qcow2");
    top->set_backing(name == new_name ? new_image : old_image);
    if (name == new_name) ++with_new;
    EXPECT_TRUE(whole_contents(*top) == seen);
    return !testing::Test::HasFailure();
  });
  EXPECT_GT(with_new, 0u);
  report_examined_states(states, std::string("rebase, ") + GetParam().name);
}

INSTANTIATE_TEST_SUITE_P(Shapes, OverlayCrash, testing::ValuesIn(kShapes),
                         [](const auto& instance) { return std::string(instance.param.name); });

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
        for_each_crash_state(*control, {}, [&](CrashState& state) {
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
