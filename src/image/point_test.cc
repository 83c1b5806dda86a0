#include "image/point.h"

#include <errno.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

#include "image/create.h"
#include "image/watched_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/temp_dir.h"

namespace varve::image {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class PointTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(create_qcow2(path_, {.size = 16 * kMiB}));
    open_writer();
    fill(1);
    change([](qcow2::SnapshotTransaction& t) { return t.create({.name = "s"}); });
    fill(2);
  }

  // The one who has the image for himself.
  void open_writer() {
    auto opened = open_image(path_, {.format = Format::kQcow2, .use = Use::kWrite});
    ASSERT_TRUE(opened) << opened.error().message;
    writer_ = *std::move(opened);
  }
  void fill(uint8_t byte) {
    ASSERT_TRUE(writer_->device()->write_at(0, std::vector<std::byte>(16 * kMiB, std::byte{byte})));
    ASSERT_TRUE(writer_->device()->flush());
  }
  template <typename Change>
  void change(const Change& change) {
    auto transaction = qcow2::SnapshotTransaction::begin(*writer_->qcow2());
    ASSERT_TRUE(transaction);
    ASSERT_TRUE(change(*transaction));
    const auto prepared = transaction->prepare();
    ASSERT_TRUE(prepared);
    ASSERT_TRUE(qcow2::SnapshotTransaction::commit(*writer_->qcow2(), *prepared));
    ASSERT_TRUE(qcow2::SnapshotTransaction::discard_freed(*writer_->qcow2(), *prepared));
  }
  static bool holds(const Point& point, uint8_t byte) {
    std::vector<std::byte> data(point.size());
    const auto read = point.disk().read_at(0, data);
    EXPECT_TRUE(read) << read.error().message;
    return data == std::vector<std::byte>(data.size(), std::byte{byte});
  }

  test::TempDir dir_;
  std::string path_ = dir_ / "disk.qcow2";
  std::optional<OpenImage> writer_;
};

TEST_F(PointTest, IsLockedWhereNobodyWrites) {
  writer_.reset();
  const auto snapshot = Point::open({.path = path_, .snapshot = "s"}, Access::kReadOnly);
  ASSERT_TRUE(snapshot) << snapshot.error().message;
  EXPECT_FALSE((*snapshot)->is_watched());
  EXPECT_TRUE(holds(**snapshot, 1));
  const auto active = Point::open({.path = path_}, Access::kReadOnly);
  ASSERT_TRUE(active);
  EXPECT_TRUE(holds(**active, 2));
  const auto writable = Point::open({.path = path_}, Access::kReadWrite);
  ASSERT_FALSE(writable);
  EXPECT_EQ(writable.error().kind, ErrorKind::kInUse);
}

TEST_F(PointTest, ASnapshotIsReadBesideAWriterAndTheActiveStateIsNot) {
  const auto point = Point::open({.path = path_, .snapshot = "s"}, Access::kReadOnly);
  ASSERT_TRUE(point) << point.error().message;
  EXPECT_TRUE((*point)->is_watched());
  EXPECT_TRUE(holds(**point, 1));
  fill(3);
  EXPECT_TRUE(holds(**point, 1));
  EXPECT_EQ(Point::open({.path = path_}, Access::kReadOnly).error().kind, ErrorKind::kInUse);
  // The reader keeps nobody out.
  writer_.reset();
  open_writer();
  fill(4);
  EXPECT_TRUE(holds(**point, 1));
}

TEST_F(PointTest, NamesThatAreNotThereAreSaidWithThoseThatAre) {
  writer_.reset();
  const auto point = Point::open({.path = path_, .snapshot = "t"}, Access::kReadOnly);
  ASSERT_FALSE(point);
  EXPECT_EQ(point.error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(point.error().notes.front(), "it holds s");
  EXPECT_EQ(Point::open({.path = path_, .format = Format::kRaw, .snapshot = "s"}, Access::kReadOnly).error().kind,
            ErrorKind::kInvalidArgument);
}

// A disk whose reads take so long that things happen before they end.
class SlowDevice final : public BlockDevice {
 public:
  SlowDevice(BlockDevice& below, std::function<void()> meanwhile) : below_(below), meanwhile_(std::move(meanwhile)) {}
  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    auto read = below_.read_at(offset, buffer);
    meanwhile_();
    return read;
  }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    auto extents = below_.extents(offset, length);
    meanwhile_();
    return extents;
  }
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override {
    return below_.write_at(offset, data);
  }
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override {
    return below_.write_zeroes(offset, length, mode);
  }
  Result<void> discard(uint64_t offset, uint64_t length) override { return below_.discard(offset, length); }
  Result<void> flush() override { return below_.flush(); }
  Result<uint64_t> size() override { return below_.size(); }
  Result<void> resize(uint64_t size) override { return below_.resize(size); }
  DeviceCapabilities capabilities() const override { return below_.capabilities(); }
  const std::string& name() const override { return below_.name(); }

 private:
  BlockDevice& below_;
  std::function<void()> meanwhile_;
};

TEST_F(PointTest, AReadDuringWhichTheSnapshotIsDeletedFails) {
  for (const bool extents : {false, true}) {
    auto& image = *writer_->qcow2();
    const size_t index = image.snapshots().size() - 1;
    const auto view = image.open_snapshot(index);
    ASSERT_TRUE(view);
    const auto watch = qcow2::PointWatch::begin(writer_->file(), image.header(), image.snapshots()[index]);
    ASSERT_TRUE(watch);
    SlowDevice slow(**view,
                    [&] { change([&](qcow2::SnapshotTransaction& t) { return t.remove(std::array{index}); }); });
    WatchedDevice watched(slow, **watch);
    std::vector<std::byte> data(65536);
    if (extents) {
      const auto seen = watched.extents(0, 65536);
      ASSERT_FALSE(seen);
      EXPECT_EQ(seen.error().sys_errno, ESTALE);
    } else {
      const auto read = watched.read_at(0, data);
      ASSERT_FALSE(read);
      EXPECT_EQ(read.error().sys_errno, ESTALE);
    }
    change([](qcow2::SnapshotTransaction& t) { return t.create({.name = "again"}); });
  }
}

// What is read while the snapshot goes away is either what it held, or an error.
TEST_F(PointTest, NoReadOfADeletedSnapshotShowsAnythingElse) {
  const auto point = Point::open({.path = path_, .snapshot = "s"}, Access::kReadOnly);
  ASSERT_TRUE(point) << point.error().message;
  std::atomic<uint64_t> good = 0;
  std::atomic<uint64_t> wrong = 0;
  std::atomic<int> errors = 0;
  std::vector<std::thread> readers;
  for (uint64_t t = 0; t < 3; ++t) {
    readers.emplace_back([&, t] {
      // Long enough for the deletion to fall into the middle of one.
      std::vector<std::byte> data(8 * kMiB);
      const std::vector<std::byte> right(data.size(), std::byte{1});
      for (uint64_t at = t;; ++at) {
        const auto read = (*point)->disk().read_at(at % 3 * 4 * kMiB, data);
        if (!read) {
          errors += read.error().sys_errno == ESTALE;
          return;
        }
        ++(data == right ? good : wrong);
      }
    });
  }
  while (good + wrong < 6) std::this_thread::yield();
  change([](qcow2::SnapshotTransaction& t) { return t.remove(std::array<size_t, 1>{0}); });
  fill(5);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(errors, 3);
}

}  // namespace
}  // namespace varve::image
