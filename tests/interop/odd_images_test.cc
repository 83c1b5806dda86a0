// Everything that qemu-img 7.2 and a running QEMU legitimately leave behind opens, lists its snapshots, reads as QEMU
// reads it, takes, reverts and deletes a snapshot, and is then still what it was, to QEMU too.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <sstream>

#include "io/file_device.h"
#include "qcow2/snapshot_transaction.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::qcow2 {
namespace {

using test::run;
using test::run_ok;
using Arguments = std::vector<std::string>;

// A directory with images, and what the tests do to them.
class Workshop {
 public:
  explicit Workshop(std::string path) : path_(std::move(path)) {}

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  // qemu-img in the workshop's directory.
  std::string img(const std::string& words) const {
    Arguments argv = {"qemu-img"};
    std::istringstream in(words);
    for (std::string word; in >> word;) argv.push_back(word);
    return run_ok(argv, here());
  }
  void create(const std::string& options, const std::string& size, const std::string& image = "disk") const {
    img("create -q -f qcow2 " + (options.empty() ? "" : "-o " + options + " ") + image + " " + size);
  }
  // Commands of qemu-io, one after the other.
  void io(const Arguments& commands, const std::string& image = "disk") const {
    Arguments argv = {"qemu-io", "-f", "qcow2"};
    for (const auto& c : commands) argv.insert(argv.end(), {"-c", c});
    argv.push_back(image);
    run_ok(argv, here());
  }
  // The commands of a monitor, to a machine that has the image as its disk.
  std::string machine(const std::string& commands, const Arguments& options) const {
    Arguments argv = {"qemu-system-x86_64",
                      "-accel",
                      "tcg",
                      "-S",
                      "-nodefaults",
                      "-display",
                      "none",
                      "-monitor",
                      "stdio",
                      "-drive",
                      "file=disk,if=none,id=d0,format=qcow2"};
    argv.insert(argv.end(), options.begin(), options.end());
    const std::string out = run_ok(argv, here(commands + "\nquit\n"));
    EXPECT_THAT(out, testing::Not(testing::HasSubstr("Error")));
    return out;
  }
  std::string raw(const std::string& what) const {
    img("convert -O raw " + what + " out.raw");
    return test::read_whole_file(*this / "out.raw");
  }

 private:
  test::RunOptions here(const std::string& stdin_text = {}) const {
    test::RunOptions options;
    options.stdin_text = stdin_text;
    options.working_directory = path_;
    return options;
  }

  std::string path_;
};

struct OddImage {
  const char* name;
  std::function<void(const Workshop&)> make;  // leaves an image called "disk", perhaps a raw "base" behind it
  bool clean_before = true;                   // for qemu-img check
};

std::ostream& operator<<(std::ostream& out, const OddImage& odd) {
  return out << odd.name;
}

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

// Some data, zeroes, and a hole, at places that no cluster size likes.
void scatter(const Workshop& shop) {
  shop.io({"write -P 0x11 0 70000", "write -P 0x22 300k 123k", "write -P 0x33 1023k 1k", "write -z 10k 30k",
           "write -P 0x44 512k 512", "discard 320k 64k"});
}

void snapshots_between_writes(const Workshop& shop) {
  scatter(shop);
  shop.img("snapshot -c one disk");
  shop.io({"write -P 0x55 1k 200k"});
  shop.img("snapshot -c two disk");
  shop.io({"write -P 0x66 150k 200k", "write -z -u 400k 100k"});
  shop.img("snapshot -c three disk");
  shop.img("snapshot -d two disk");
}

// The file ends with its last byte that is not zero.
void cut_zeroes_at_the_end(const Workshop& shop) {
  const std::string bytes = test::read_whole_file(shop / "disk");
  run_ok({"truncate", "-s", std::to_string(bytes.find_last_not_of('\0') + 1), shop / "disk"});
}

std::vector<OddImage> odd_images() {
  std::vector<OddImage> all;
  const auto add = [&](const char* name, std::function<void(const Workshop&)> make, bool clean_before = true) {
    all.push_back({name, std::move(make), clean_before});
  };
  const auto add_shape = [&](const char* name, const std::string& options) {
    add(name, [options](const Workshop& shop) {
      shop.create(options, "1M");
      snapshots_between_writes(shop);
    });
  };
  add_shape("Clusters512", "cluster_size=512");
  add_shape("Clusters1024V2", "cluster_size=1024,compat=0.10");
  add_shape("Clusters4096", "cluster_size=4096");
  add_shape("Clusters32768", "cluster_size=32k");
  add_shape("Clusters64KiBV2", "compat=0.10");
  add_shape("Clusters2MiB", "cluster_size=2M");
  add_shape("Clusters2MiBV2", "cluster_size=2M,compat=0.10");
  add_shape("RefcountBits4", "refcount_bits=4");
  add_shape("RefcountBits8", "refcount_bits=8,cluster_size=512");
  add_shape("RefcountBits32", "refcount_bits=32,cluster_size=8k");
  add_shape("RefcountBits64", "refcount_bits=64,cluster_size=512");
  add_shape("ExtendedL2", "extended_l2=on");
  add_shape("ExtendedL2SmallClusters", "extended_l2=on,cluster_size=16k");
  add_shape("ExtendedL2LargeClusters", "extended_l2=on,cluster_size=2M");
  add_shape("LazyRefcounts", "lazy_refcounts=on");
  add_shape("ZstdImageWithoutCompressedClusters", "compression_type=zstd");
  add_shape("PreallocatedMetadata", "preallocation=metadata,cluster_size=4k");
  add_shape("PreallocatedFalloc", "preallocation=falloc");
  add_shape("PreallocatedFull", "preallocation=full,cluster_size=512");
  add_shape("PreallocatedExtendedL2", "preallocation=metadata,extended_l2=on");
  add("RefcountBits2", [](const Workshop& shop) {  // a revert counts one reference more before it counts down
    shop.create("refcount_bits=2,cluster_size=4k", "1M");
    scatter(shop);
  });
  add("RefcountBits1", [](const Workshop& shop) {
    shop.create("refcount_bits=1,cluster_size=1k", "1M");
    scatter(shop);
  });
  for (const char* type : {"zlib", "zstd"})
    for (const char* shape : {"", ",cluster_size=512", ",cluster_size=2M", ",extended_l2=on"}) {
      static std::vector<std::string> names;
      names.reserve(16);
      std::string name = std::string("Compressed_") + type + "_" + std::to_string(all.size());
      names.push_back(name);
      const std::string options = std::string("compression_type=") + type + shape;
      add(names.back().c_str(), [options](const Workshop& shop) {
        shop.create("", "3M", "source");
        shop.io({"write -P 0x11 0 1M", "write -P 0x22 1M 1000k"}, "source");
        // Something that does not compress away to nothing.
        run_ok({"dd", "if=" + test::find_program("qemu-img"), "of=" + (shop / "bytes"), "bs=64k", "count=10"});
        run_ok({"qemu-io", "-f", "qcow2", "-c", "write -s " + (shop / "bytes") + " 2000k 640k", shop / "source"});
        shop.img("convert -c -O qcow2 -o " + options + " source disk");
        shop.img("snapshot -c one disk");
        shop.io({"write -P 0x77 100k 100k", "write -P 0x78 2100k 3k"});
        shop.img("snapshot -c two disk");
      });
    }
  add("CompressedV2", [](const Workshop& shop) {
    shop.create("", "1M", "source");
    shop.io({"write -P 0x11 0 900k"}, "source");
    shop.img("convert -c -O qcow2 -o compat=0.10 source disk");
  });
  add("EmptyDisk", [](const Workshop& shop) { shop.create("", "0"); });
  add("EmptyDiskWithASnapshot", [](const Workshop& shop) {
    shop.create("", "0");
    shop.img("snapshot -c empty disk");
    shop.img("resize -q disk 1M");
  });
  add("DiskOfOneSector", [](const Workshop& shop) {
    shop.create("", "512");
    shop.io({"write -P 0x11 0 512"});
    shop.img("snapshot -c one disk");
  });
  add("DiskThatEndsWithinACluster", [](const Workshop& shop) {
    shop.create("", "1050112");
    shop.io({"write -P 0x11 1000k 25k"});
    shop.img("snapshot -c one disk");
    shop.io({"write -P 0x12 1049600 512"});
  });
  add("Grown", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    snapshots_between_writes(shop);
    shop.img("resize -q disk 9M");
    shop.io({"write -P 0x71 5M 1M"});
    shop.img("snapshot -c grown disk");
  });
  add("GrownBeyondItsL1Table", [](const Workshop& shop) {
    shop.create("cluster_size=512", "1M");
    snapshots_between_writes(shop);
    shop.img("resize -q disk 60M");
    shop.io({"write -P 0x71 59M 100k"});
    shop.img("snapshot -c grown disk");
  });
  add("GrownWithPreallocation", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.img("resize -q --preallocation=metadata disk 3M");
  });
  add("Shrunk", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "8M");
    shop.io({"write -P 0x11 0 8M"});
    shop.img("resize -q --shrink disk 1M");
    shop.img("snapshot -c small disk");
  });
  add("SnapshotsOfThreeSizes", [](const Workshop& shop) {
    shop.create("cluster_size=64k", "4M");
    shop.io({"write -P 0x11 0 4M"});
    shop.img("snapshot -c large disk");
    shop.img("resize -q --shrink disk 1M");
    shop.io({"write -P 0x12 512k 512k"});
    shop.img("snapshot -c small disk");
    shop.img("resize -q disk 2M");
    shop.img("snapshot -c middle disk");
  });
  add("MachineStateOfNothing", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.machine("savevm one\nsavevm two", {"-machine", "none"});
    shop.img("snapshot -c three disk");
  });
  add("MachineState", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    scatter(shop);
    shop.machine("savevm one", {"-machine", "q35", "-m", "16"});
    shop.io({"write -P 0x61 0 512k"});
    shop.machine("savevm two\nloadvm one\nsavevm three\ndelvm two", {"-machine", "q35", "-m", "16"});
  });
  add("AmendedToVersion2", [](const Workshop& shop) {
    shop.create("", "1M");
    snapshots_between_writes(shop);
    shop.img("amend -q -o compat=0.10 disk");
  });
  add("AmendedToVersion3AndWideRefcounts", [](const Workshop& shop) {
    shop.create("compat=0.10", "1M");
    snapshots_between_writes(shop);
    shop.img("amend -q -o compat=1.1 disk");
    shop.img("amend -q -o refcount_bits=64 disk");
    shop.img("amend -q -o lazy_refcounts=on disk");
  });
  for (const char* compat : {"1.1", "0.10"})
    add(*compat == '1' ? "OverAShortBackingFile" : "OverAShortBackingFileV2", [compat](const Workshop& shop) {
      run_ok({"truncate", "-s", "400000", shop / "base"});
      run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x99 0 390k", shop / "base"});
      shop.img(std::string("create -q -f qcow2 -b base -F raw -o compat=") + compat + " disk 1M");
      shop.io({"write -P 0x11 100 1000", "write -z 100k 40k", "write -P 0x12 380k 30k"});
      shop.img("snapshot -c one disk");
      shop.io({"write -P 0x13 128k 64k"});
    });
  add("OverALongBackingFile", [](const Workshop& shop) {
    run_ok({"truncate", "-s", "4M", shop / "base"});
    run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x99 0 4M", shop / "base"});
    shop.img("create -q -f qcow2 -b base -F raw -o extended_l2=on disk 1M");
    shop.io({"write -P 0x11 100 1000", "write -z 100k 40k", "discard 512k 64k"});
    shop.img("snapshot -c one disk");
  });
  add("DirtyBitmaps", [](const Workshop& shop) {
    shop.create("", "8M");
    scatter(shop);
    shop.img("bitmap --add -g 64k disk first");
    shop.img("bitmap --add -g 512 disk second");
    shop.io({"write -P 0x31 1M 1M"});
    shop.img("snapshot -c one disk");
    shop.io({"write -P 0x32 2M 10k"});
    shop.img("bitmap --disable disk second");
  });
  add(
      "BitmapsInUseOfAProgramThatDied",
      [](const Workshop& shop) {
        shop.create("", "8M");
        shop.img("bitmap --add disk first");
        // abort() leaves the bitmap marked "in use" in the file; its contents were in memory.
        (void)run({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "flush", "-c", "abort", shop / "disk"});
      },
      false);
  add("CutWithinItsL1Table", [](const Workshop& shop) {
    shop.create("", "1M");
    run_ok({"truncate", "-s", std::to_string((3 << 16) + 1), shop / "disk"});
  });
  for (const char* size : {"512", "4k", "64k"}) {
    add(*size == '5'   ? "CutWithData512"
        : *size == '4' ? "CutWithData4k"
                       : "CutWithData64k",
        [size](const Workshop& shop) {
          shop.create(std::string("cluster_size=") + size, "1M");
          snapshots_between_writes(shop);
          cut_zeroes_at_the_end(shop);
        });
  }
  add("SnapshotNamesOfAllKinds", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.img("snapshot -c 2 disk");  // a name like an id
    shop.img("snapshot -c 2 disk");  // twice, and now an id
    shop.img("snapshot -c 1 disk");
    shop.img("snapshot -c \xc3\xa4\xf0\x9f\x98\x80 disk");
    shop.img("snapshot -c " + std::string(300, 'n') + " disk");
    shop.img("snapshot -c %s%n../../etc disk");
  });
  add("ZeroClustersOfAllKinds", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    shop.io({"write -P 0x11 0 64k", "write -z 0 8k", "write -z -u 8k 8k", "discard 16k 8k", "write -z 512k 64k"});
    shop.img("snapshot -c one disk");
    shop.io({"write -z 24k 8k", "write -P 0x12 4k 100", "write -P 0x13 512k 5000", "write -z -u 48k 8k"});
  });
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, OddImages, testing::ValuesIn(odd_images()),
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
    shop_.img(std::string("create -q -f qcow2 --object secret,id=s0,data=abc -o encrypt.format=") + format +
              ",encrypt.key-secret=s0" + options + " disk 1M");
    run_ok({"qemu-img", "snapshot", "--object", "secret,id=s0,data=abc", "--image-opts", "-c", "one",
            "driver=qcow2,encrypt.format=" + std::string(format) + ",encrypt.key-secret=s0,file.filename=" + path_});
    expect_metadata_only(ErrorKind::kUnsupported, "encrypted", {"1 one"});
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
  scatter(shop);
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
