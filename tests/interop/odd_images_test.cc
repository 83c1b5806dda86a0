// Everything that qemu-img 7.2 and a running QEMU legitimately leave behind opens, lists its snapshots, reads as QEMU
// reads it, takes, reverts and deletes a snapshot, and is then still what it was, to QEMU too.
#include "interop/odd_images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "io/file_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::qcow2 {
namespace {

using test::Arguments;
using test::OddImage;
using test::run;
using test::run_ok;
using test::Workshop;

std::unique_ptr<Image> open_image(const std::string& path, bool writable) {
  auto file = FileDevice::open(path, writable ? Access::kReadWrite : Access::kReadOnly,
                               writable ? LockRequest::format_writer() : LockRequest::format_reader());
  EXPECT_TRUE(file) << file.error().message;
  if (!file) return nullptr;
  auto image = Image::open(std::move(*file), {.writable = writable});
  EXPECT_TRUE(image) << image.error().message;
  if (!image) return nullptr;
  if ((*image)->header().backing_file) {
    auto base = FileDevice::open(path.substr(0, path.rfind('/') + 1) + *(*image)->header().backing_file,
                                 Access::kReadOnly, LockRequest::backing_reader());
    EXPECT_TRUE(base) << base.error().message;
    (*image)->set_backing(std::move(*base));
  }
  return std::move(*image);
}

std::string read_all(BlockDevice& device) {
  std::string out(*device.size(), '?');
  const auto r = device.read_at(0, std::as_writable_bytes(std::span(out)));
  EXPECT_TRUE(r) << r.error().message;
  return out;
}

template <typename Change>
void transact(Image& image, Change change) {
  const auto result = [&]() -> Result<void> {
    SnapshotTransaction t = TRY(SnapshotTransaction::begin(image));
    TRY(change(t));
    const PreparedCommit prepared = TRY(t.prepare());
    TRY(SnapshotTransaction::commit(image, prepared));
    return SnapshotTransaction::discard_freed(image, prepared);
  }();
  ASSERT_TRUE(result) << result.error().message;
}

// "id name" of every line that qemu-img prints.
std::vector<std::string> listed_by_qemu(const Workshop& shop) {
  std::istringstream lines(shop.img("snapshot -l disk"));
  std::vector<std::string> out;
  std::string line;
  for (int i = 0; i < 2; ++i) std::getline(lines, line);  // the heading
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    std::string id;
    std::string name;
    words >> id >> name;
    out.push_back(id + " " + name);
  }
  return out;
}

class OddImages : public testing::TestWithParam<OddImage> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    REQUIRES_PROGRAM("qemu-system-x86_64");
  }

  // What we read is what QEMU reads: the disk, and every snapshot.
  void expect_same_as_qemu(Image& image) {
    ASSERT_TRUE(read_all(image) == shop_.raw("disk"));
    std::vector<std::string> ours;
    for (size_t i = 0; i < image.snapshots().size(); ++i) {
      const Snapshot& s = image.snapshots()[i];
      SCOPED_TRACE(s.name);
      ours.push_back(s.id + " " + s.name);
      const auto view = image.open_snapshot(i);
      ASSERT_TRUE(view) << view.error().message;
      // qemu-img shows a snapshot with the size of the present disk.
      std::string theirs = shop_.raw("-l snapshot.id=" + s.id + " disk");
      std::string mine = read_all(**view);
      const size_t both = std::min(theirs.size(), mine.size());
      ASSERT_TRUE(mine.substr(0, both) == theirs.substr(0, both));
    }
    EXPECT_EQ(ours, listed_by_qemu(shop_));
  }

  void expect_clean() {
    const auto r = run({"qemu-img", "check", "-f", "qcow2", path_});
    EXPECT_EQ(r.exit_code, 0) << r.out << r.err;
  }

  test::TempDir dir_;
  Workshop shop_{dir_.path()};
  std::string path_ = dir_ / "disk";
};

TEST_P(OddImages, AreReadAsQemuReadsThemAndLiveOn) {
  ASSERT_NO_FATAL_FAILURE(GetParam().make(shop_));
  if (GetParam().clean_before) expect_clean();
  {
    const auto image = open_image(path_, false);
    ASSERT_NE(image, nullptr);
    ASSERT_NO_FATAL_FAILURE(expect_same_as_qemu(*image));
  }
  const std::string disk = shop_.raw("disk");
  std::vector<std::string> snapshots = listed_by_qemu(shop_);
  {
    auto image = open_image(path_, true);
    ASSERT_NE(image, nullptr);
    const bool small_counts = image->header().refcount_bits() == 1;  // nothing can be shared: no snapshots, as in QEMU
    auto t = SnapshotTransaction::begin(*image);
    ASSERT_TRUE(t) << t.error().message;
    const auto created = t->create({.name = "varve", .date_sec = 1700000000});
    if (small_counts && !created) {
      EXPECT_EQ(created.error().kind, ErrorKind::kUnsupported);
      EXPECT_NE(run({"qemu-img", "snapshot", "-c", "x", path_}).exit_code, 0);
      return;
    }
    ASSERT_TRUE(created) << created.error().message;
    const auto prepared = t->prepare();
    ASSERT_TRUE(prepared) << prepared.error().message;
    ASSERT_TRUE(SnapshotTransaction::commit(*image, *prepared));
    ASSERT_TRUE(SnapshotTransaction::discard_freed(*image, *prepared));
  }
  expect_clean();
  if (!disk.empty()) {
    auto image = open_image(path_, true);
    const std::string scribble(std::min<size_t>(disk.size(), 100000), '\xa5');
    ASSERT_TRUE(image->write_at(disk.size() - scribble.size(), std::as_bytes(std::span(scribble))));
    ASSERT_TRUE(image->write_zeroes(0, std::min<size_t>(disk.size(), 70000), ZeroMode::kMayUnmap));
    ASSERT_TRUE(image->flush());
    image.reset();
    ASSERT_NO_FATAL_FAILURE(expect_same_as_qemu(*open_image(path_, false)));
  }
  expect_clean();
  transact(*open_image(path_, true),
           [](SnapshotTransaction& t) { return t.revert(*find_by_name(t.snapshots(), "varve")); });
  expect_clean();
  EXPECT_TRUE(shop_.raw("disk") == disk);
  transact(*open_image(path_, true), [](SnapshotTransaction& t) {
    const size_t index = *find_by_name(t.snapshots(), "varve");
    return t.remove(std::span(&index, 1));
  });
  expect_clean();
  ASSERT_NO_FATAL_FAILURE(expect_same_as_qemu(*open_image(path_, false)));
  EXPECT_TRUE(shop_.raw("disk") == disk);
  EXPECT_EQ(listed_by_qemu(shop_), snapshots);

  // Back to every snapshot that QEMU left, each by the two programs: the same disk.
  for (const std::string& line : snapshots) {
    const std::string id = line.substr(0, line.find(' '));
    SCOPED_TRACE(id);
    run_ok({"cp", path_, dir_ / "twin"});
    shop_.img("snapshot -a " + id + " twin");
    transact(*open_image(path_, true),
             [&](SnapshotTransaction& t) { return t.revert(*find_by_id_or_name(t.snapshots(), id)); });
    expect_clean();
    EXPECT_TRUE(shop_.raw("disk") == shop_.raw("twin"));
  }
  // And without any of them.
  if (!snapshots.empty()) {
    transact(*open_image(path_, true), [](SnapshotTransaction& t) {
      std::vector<size_t> all(t.snapshots().size());
      for (size_t i = 0; i < all.size(); ++i) all[i] = i;
      return t.remove(all);
    });
    expect_clean();
    ASSERT_NO_FATAL_FAILURE(expect_same_as_qemu(*open_image(path_, false)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, OddImages, testing::ValuesIn(test::odd_images()),
                         [](const auto& instance) { return std::string(instance.param.name); });

// Images that we look at, but do not touch.
class ForbiddenImages : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
  }

  // The snapshots are listed, the guest's bytes are not read, nothing is written.
  void expect_metadata_only(ErrorKind kind, const std::string& message,
                            const std::vector<std::string>& snapshots = {}) {
    const std::string before = test::read_whole_file(path_);
    auto image = open_image(path_, false);
    ASSERT_NE(image, nullptr);
    std::vector<std::string> ours;
    for (const Snapshot& s : image->snapshots()) ours.push_back(s.id + " " + s.name);
    EXPECT_EQ(ours, snapshots);
    if (kind == ErrorKind::kUnsupported) {
      std::byte b{};
      const auto read = image->read_at(0, std::span(&b, 1));
      ASSERT_FALSE(read);
      EXPECT_EQ(read.error().kind, kind);
      if (!image->snapshots().empty()) {
        EXPECT_FALSE(image->open_snapshot(0));
      }
    }
    image.reset();
    auto file = FileDevice::open(path_, Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(file);
    const auto refused = Image::open(std::move(*file), {.writable = true});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, kind);
    EXPECT_THAT(refused.error().message, testing::HasSubstr(message));
    EXPECT_TRUE(test::read_whole_file(path_) == before);
  }

  test::TempDir dir_;
  Workshop shop_{dir_.path()};
  std::string path_ = dir_ / "disk";
};

TEST_F(ForbiddenImages, EncryptedOnes) {
  for (const char* format : {"luks", "aes"}) {
    SCOPED_TRACE(format);
    const std::string options = *format == 'l' ? ",encrypt.iter-time=10" : "";
    run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s0,data=abc", "-o",
            std::string("encrypt.format=") + format + ",encrypt.key-secret=s0" + options, path_, "1M"});
    run_ok({"qemu-img", "snapshot", "--object", "secret,id=s0,data=abc", "--image-opts", "-c", "one",
            "driver=qcow2,encrypt.format=" + std::string(format) + ",encrypt.key-secret=s0,file.filename=" + path_});
    // Metadata can be changed without the key; guest data is out of reach.
    const auto image = open_image(path_, true);
    ASSERT_NE(image, nullptr);
    ASSERT_EQ(image->snapshots().size(), 1u);
    constexpr ErrorKind kind = ErrorKind::kPermission;
    std::byte b{};
    EXPECT_EQ(image->read_at(0, std::span(&b, 1)).error().kind, kind);
    EXPECT_EQ(image->write_at(0, std::span(&b, 1)).error().kind, kind);
    EXPECT_EQ(image->open_snapshot(0).error().kind, kind);
  }
}

TEST_F(ForbiddenImages, ThoseWithTheirDataInAnotherFile) {
  for (const char* raw : {"on", "off"}) {
    SCOPED_TRACE(raw);
    shop_.create("data_file=" + (dir_ / "data") + ",data_file_raw=" + raw, "1M");
    EXPECT_EQ(open_image(path_, false)->header().data_file, dir_ / "data");
    expect_metadata_only(ErrorKind::kUnsupported, "external data file");
  }
}

TEST_F(ForbiddenImages, DirtyOnesUntilTheyAreRepaired) {
  shop_.create("lazy_refcounts=on", "1M");
  (void)run({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 300k", "-c", "flush", "-c", "abort", path_});
  ASSERT_TRUE(open_image(path_, false)->header().is_dirty());
  expect_metadata_only(ErrorKind::kCorrupt, "not closed cleanly");
  run_ok({"qemu-img", "check", "-q", "-r", "all", path_});
  const auto image = open_image(path_, true);
  ASSERT_NE(image, nullptr);
  std::byte b{};
  ASSERT_TRUE(image->read_at(200000, std::span(&b, 1)));
  EXPECT_EQ(b, std::byte{7});
}

// Snapshots around one that holds a machine's state: the machine still wakes up from it.
TEST(MachineStates, SurviveWhatHappensAroundThem) {
  REQUIRES_PROGRAM("qemu-img");
  REQUIRES_PROGRAM("qemu-io");
  REQUIRES_PROGRAM("qemu-system-x86_64");
  const test::TempDir dir;
  const Workshop shop{dir.path()};
  const Arguments machine = {"-machine", "q35", "-m", "16"};
  shop.create("cluster_size=4k", "1M");
  test::scatter(shop);
  shop.machine("savevm asleep", machine);
  const auto step = [&](const std::function<Result<void>(SnapshotTransaction&)>& change) {
    transact(*open_image(dir / "disk", true), change);
    run_ok({"qemu-img", "check", "-q", dir / "disk"});
    EXPECT_GT(open_image(dir / "disk", false)->snapshots()[0].vm_state_size, 1000u);
    // A copy, because a machine that wakes up changes its disk.
    run_ok({"cp", dir / "disk", dir / "kept"});
    EXPECT_THAT(shop.machine("loadvm asleep", machine), testing::HasSubstr("loadvm"));
    run_ok({"mv", dir / "kept", dir / "disk"});
  };
  step([](SnapshotTransaction& t) { return t.create({.name = "after"}); });
  shop.io({"write -P 0x12 0 900k"});
  step([](SnapshotTransaction& t) { return t.revert(0); });
  shop.io({"write -P 0x13 0 900k"});
  step([](SnapshotTransaction& t) { return t.create({.name = "later"}); });
  step([](SnapshotTransaction& t) {
    const size_t index = 1;
    return t.remove(std::span(&index, 1));
  });
  step([](SnapshotTransaction& t) { return t.rename(1, "last"); });
}

}  // namespace
}  // namespace varve::qcow2
