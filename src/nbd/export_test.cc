#include "nbd/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "image/create.h"
#include "qcow2/snapshot_transaction.h"
#include "support/temp_dir.h"

namespace varve::nbd {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class ExportTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(image::create_qcow2(path_, {.size = 16 * kMiB})); }

  void fill(uint8_t byte, uint64_t offset, uint64_t length) const {
    const auto opened = image::open_image(path_, {.format = image::Format::kQcow2, .use = image::Use::kWrite});
    ASSERT_TRUE(opened) << opened.error().message;
    const std::vector<std::byte> data(length, std::byte{byte});
    ASSERT_TRUE(opened->device()->write_at(offset, data));
    ASSERT_TRUE(opened->device()->flush());
  }
  void take_snapshot(const std::string& name) const {
    const auto opened = image::open_image(path_, {.format = image::Format::kQcow2, .use = image::Use::kWrite});
    auto transaction = qcow2::SnapshotTransaction::begin(*opened->qcow2());
    ASSERT_TRUE(transaction);
    ASSERT_TRUE(transaction->create({.name = name}));
    const auto prepared = transaction->prepare();
    ASSERT_TRUE(prepared);
    ASSERT_TRUE(qcow2::SnapshotTransaction::commit(*opened->qcow2(), *prepared));
  }
  static bool is_all(OpenExport& disk, uint8_t byte, uint64_t offset, uint64_t length) {
    std::vector<std::byte> data(length);
    EXPECT_TRUE(disk.read(offset, data));
    return std::ranges::all_of(data, [&](std::byte b) { return b == std::byte{byte}; });
  }
  ExportSpec spec(std::optional<std::string> snapshot = std::nullopt) const {
    return {.name = "vda", .point = {.path = path_, .snapshot = std::move(snapshot)}, .overlay = {}};
  }

  test::TempDir dir_;
  std::string path_ = dir_ / "disk.qcow2";
};

TEST_F(ExportTest, ASnapshotIsServedForReading) {
  fill(1, 0, kMiB);
  take_snapshot("s");
  fill(2, 0, kMiB);
  Export served(spec("s"));
  ASSERT_TRUE(served.prepare());
  const auto client = served.connect(false);
  ASSERT_TRUE(client);
  EXPECT_FALSE((*client)->is_writable());
  EXPECT_EQ((*client)->size(), 16 * kMiB);
  EXPECT_TRUE(is_all(**client, 1, 0, kMiB));
  const auto extents = (*client)->extents(0, 16 * kMiB);
  ASSERT_TRUE(extents);
  EXPECT_THAT(*extents,
              testing::ElementsAre(Extent{0, kMiB, ExtentKind::kData}, Extent{kMiB, 15 * kMiB, ExtentKind::kZero}));
  EXPECT_FALSE((*client)->write(0, std::array<std::byte, 1>{}));
  std::vector<std::byte> beyond(2);
  EXPECT_FALSE((*client)->read(16 * kMiB - 1, beyond));
}

TEST_F(ExportTest, WhatIsWrongIsSaidBeforeAClientComes) {
  Export no_snapshot(spec("nope"));
  const auto prepared = no_snapshot.prepare();
  ASSERT_FALSE(prepared);
  EXPECT_EQ(prepared.error().kind, ErrorKind::kNotFound);
  ExportSpec missing = spec();
  missing.point.path = dir_ / "missing.qcow2";
  EXPECT_EQ(Export(missing).prepare().error().kind, ErrorKind::kNotFound);
  ExportSpec not_qcow2 = spec();
  not_qcow2.point.path = dir_.write("disk.raw", std::string(65536, 'x'));
  EXPECT_EQ(Export(not_qcow2).prepare().error().kind, ErrorKind::kCorrupt);
}

TEST_F(ExportTest, TheActiveStateIsLockedAsItIsUsed) {
  const auto others_read = [&] { return image::Point::open({.path = path_}, Access::kReadOnly).has_value(); };
  const auto others_write = [&] { return image::Point::open({.path = path_}, Access::kReadWrite).has_value(); };
  Export served(spec());
  ASSERT_TRUE(served.prepare());
  EXPECT_TRUE(others_read());
  EXPECT_FALSE(others_write());
  {
    const auto reader = served.connect(true);
    ASSERT_TRUE(reader);
    EXPECT_FALSE((*reader)->is_writable());
    EXPECT_TRUE(others_read());
  }
  auto writer = served.connect(false);
  ASSERT_TRUE(writer) << writer.error().message;
  EXPECT_TRUE((*writer)->is_writable());
  EXPECT_FALSE(others_read());
  ASSERT_TRUE((*writer)->write(kMiB, std::vector<std::byte>(5, std::byte{7})));
  const auto second = served.connect(false);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->get(), writer->get());  // all clients have one image: what one has flushed all have
  writer = second;
  writer = make_error(ErrorKind::kInternal, "gone");
  ASSERT_TRUE(served.finish());
}

TEST_F(ExportTest, WritesToAnOverlayAreSeenByAllAndKeptByNone) {
  fill(1, 0, kMiB);
  take_snapshot("s");
  ExportSpec with_overlay = spec("s");
  with_overlay.overlay = dir_ / "overlays";
  std::filesystem::create_directory(*with_overlay.overlay);
  {
    Export served(with_overlay);
    ASSERT_TRUE(served.prepare());
    const auto one = served.connect(false);
    const auto other = served.connect(false);
    ASSERT_TRUE(one && other);
    ASSERT_TRUE((*one)->is_writable());
    ASSERT_TRUE((*one)->write(4096 + 3, std::vector<std::byte>(100, std::byte{9})));
    ASSERT_TRUE((*one)->zero(512 * 1024, 1000, ZeroMode::kMayUnmap));
    ASSERT_TRUE((*one)->flush());
    EXPECT_TRUE(is_all(**other, 1, 0, 4096 + 3));
    EXPECT_TRUE(is_all(**other, 9, 4096 + 3, 100));
    EXPECT_TRUE(is_all(**other, 1, 4096 + 103, 512 * 1024 - 4096 - 103));
    EXPECT_TRUE(is_all(**other, 0, 512 * 1024, 1000));
    EXPECT_TRUE(is_all(**other, 1, 512 * 1024 + 1000, 512 * 1024 - 1000));
    EXPECT_TRUE(std::filesystem::is_empty(*with_overlay.overlay));  // the file has no name
  }
  Export again(spec("s"));
  ASSERT_TRUE(again.prepare());
  EXPECT_TRUE(is_all(**again.connect(false), 1, 0, kMiB));
}

TEST_F(ExportTest, ClientsWriteAtTheSameTime) {
  constexpr int kThreads = 4;
  {
    Export served(spec());
    ASSERT_TRUE(served.prepare());
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        const auto client = served.connect(false);
        ASSERT_TRUE(client);
        // Each its own sectors, in clusters that all share.
        for (uint64_t i = 0; i < 200; ++i) {
          const std::vector<std::byte> data(512, static_cast<std::byte>(t * 50 + static_cast<int>(i % 50) + 1));
          ASSERT_TRUE((*client)->write(i * 32768 + static_cast<uint64_t>(t) * 512, data));
          if (i % 64 == 0) {
            ASSERT_TRUE((*client)->flush());
          }
          ASSERT_TRUE(is_all(**client, static_cast<uint8_t>(data[0]), i * 32768 + static_cast<uint64_t>(t) * 512, 512));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(served.finish());
  }
  Export again(spec());
  ASSERT_TRUE(again.prepare());
  const auto client = again.connect(true);
  for (int t = 0; t < kThreads; ++t) {
    for (uint64_t i = 0; i < 200; ++i) {
      const auto byte = static_cast<uint8_t>(t * 50 + static_cast<int>(i % 50) + 1);
      ASSERT_TRUE(is_all(**client, byte, i * 32768 + static_cast<uint64_t>(t) * 512, 512)) << t << " " << i;
    }
  }
}

}  // namespace
}  // namespace varve::nbd
