// `image bitmap`: QEMU's options, messages and results, and bitmaps that either program goes on with.
#include <random>

#include "interop/image_command_peer.h"
#include "io/file_device.h"
#include "qcow2/image.h"

namespace varve::test {
namespace {

using qcow2::DirtyBitmap;

class ImageBitmapCommand : public ImageCommandPeer {
 protected:
  static std::vector<DirtyBitmap> bitmaps_of(const std::string& path) {
    auto file = FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader());
    EXPECT_TRUE(file) << file.error().message;
    const auto image = qcow2::Image::open(std::move(*file), {});
    EXPECT_TRUE(image) << image.error().message;
    auto found = (*image)->bitmaps();
    EXPECT_TRUE(found) << found.error().message;
    return *found;
  }
  void expect_same_bitmaps(const std::string& name) const {
    const auto mine = bitmaps_of(our_dir() + "/" + name);
    const auto theirs = bitmaps_of(their_dir() + "/" + name);
    ASSERT_EQ(mine.size(), theirs.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      EXPECT_EQ(mine[i].name, theirs[i].name);
      EXPECT_EQ(mine[i].granularity, theirs[i].granularity);
      EXPECT_EQ(mine[i].recording, theirs[i].recording);
      EXPECT_EQ(mine[i].inconsistent, theirs[i].inconsistent);
      EXPECT_TRUE(mine[i].bits == theirs[i].bits) << mine[i].name;
    }
    run_ok({"qemu-img", "check", "-q", "-f", "qcow2", name}, run_options(our_dir()));
  }
  void write(const std::string& command, const std::string& name) const {
    for (const std::string& directory : {their_dir(), our_dir()})
      run_ok({"qemu-io", "-f", "qcow2", "-c", command, name}, run_options(directory));
  }
};

TEST_F(ImageBitmapCommand, SaysWhatQemuSays) {
  prepare({words("qemu-img create -q -f qcow2 disk 10M"), words("qemu-img create -q -f qcow2 other 20M"),
           words("qemu-img create -q -f qcow2 -o compat=0.10 old 10M"), words("qemu-img bitmap --add other s"),
           words("qemu-img create -q -f raw raw 10M")});
  for (const char* line : {"bitmap --add disk b0",
                           "bitmap --add disk b0",
                           "bitmap --add -g 1000 disk b1",
                           "bitmap --add -g 256 disk b1",
                           "bitmap --add -g 4G disk b1",
                           "bitmap --add -g x disk b1",
                           "bitmap --clear disk nope",
                           "bitmap --remove disk nope",
                           "bitmap --enable disk nope",
                           "bitmap --disable disk nope",
                           "bitmap --merge nope disk b0",
                           "bitmap --merge b0 disk nope",
                           "bitmap disk b0",
                           "bitmap --add",
                           "bitmap --add disk",
                           "bitmap --add disk b c",
                           "bitmap -g 4k --clear disk b0",
                           "bitmap --add -b x disk b0",
                           "bitmap --add -F raw disk b0",
                           "bitmap --merge b0 -b missing disk b2",
                           "bitmap --merge s -b other -F qcow2 disk b0",
                           "bitmap --add --disable disk b2",
                           "bitmap --add --remove disk b9",
                           "bitmap --enable --disable disk b0",
                           "bitmap --add -f nonsense disk b7",
                           "bitmap --remove -f raw raw b0",
                           "bitmap --add missing b"}) {
    SCOPED_TRACE(line);
    expect_same(line);
    ASSERT_NO_FATAL_FAILURE(expect_same_bitmaps("disk"));
  }
  expect_same({"bitmap", "--add", "disk", ""});
  // QEMU calls the image by a number of its own here.
  for (const auto& line : {std::vector<std::string>{"bitmap", "--add", "old", "b0"},
                           std::vector<std::string>{"bitmap", "--add", "disk", std::string(1024, 'n')}}) {
    const auto theirs = qemu(line);
    const auto mine = ours(line);
    EXPECT_EQ(mine.exit_code, theirs.exit_code);
    EXPECT_EQ(mine.err.substr(mine.err.rfind(':')), theirs.err.substr(theirs.err.rfind(':')));
  }
  expect_same({"bitmap", "--add", "disk", std::string(1023, 'n')});
  expect_same({"bitmap", "--add", "disk", "M\xc3\xa4rz 2026"});
  expect_same_bitmaps("disk");
}

TEST_F(ImageBitmapCommand, AgreesWithQemuAboutEveryBit) {
  prepare({words("qemu-img create -q -f qcow2 -o cluster_size=4k disk 16M"),
           words("qemu-img create -q -f qcow2 other 16M")});
  std::mt19937 random(20261123);
  const auto pick = [&](std::initializer_list<const char*> from) { return *(from.begin() + random() % from.size()); };
  for (int step = 0; step < 60; ++step) {
    const std::string name = pick({"a", "b", "c", "d"});
    std::string line;
    switch (random() % 8) {
      case 0:
      case 1:
        line = std::string("bitmap --add -g ") + pick({"512", "4k", "64k", "1M"}) + " disk " + name;
        break;
      case 2:
        line = "bitmap --remove disk " + name;
        break;
      case 3:
        line = "bitmap --clear disk " + name;
        break;
      case 4:
        line = std::string("bitmap ") + pick({"--enable", "--disable"}) + " disk " + name;
        break;
      case 5:
        line = std::string("bitmap --merge ") + pick({"a", "b", "c", "d"}) + " disk " + name;
        break;
      default:
        write("write -P 7 " + std::to_string(random() % 15 * 1048576 + random() % 2048 * 512) + " " +
                  std::to_string((random() % 200 + 1) * 512),
              "disk");
        break;
    }
    SCOPED_TRACE(std::to_string(step) + ": " + line);
    if (!line.empty()) expect_same(line);
    ASSERT_NO_FATAL_FAILURE(expect_same_bitmaps("disk"));
    ASSERT_FALSE(HasFailure());
  }
}

// What we stored, QEMU reads: it merges our bits into a bitmap of its own.
TEST_F(ImageBitmapCommand, IsReadByQemu) {
  prepare({words("qemu-img create -q -f qcow2 disk 16M")});
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write 3M 1M", "disk"}, run_options(our_dir()));
  ASSERT_EQ(ours(words("bitmap --add -g 64k disk mine")).exit_code, 0);
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write 5M 100k", "-c", "discard 9M 64k", "disk"}, run_options(our_dir()));
  ASSERT_EQ(ours(words("bitmap --disable disk mine")).exit_code, 0);
  run_ok(words("qemu-img bitmap --add -g 64k --merge mine disk theirs"), run_options(our_dir()));
  const auto found = bitmaps_of(our_dir() + "/disk");
  ASSERT_EQ(found.size(), 2u);
  EXPECT_TRUE(found[0].bits == found[1].bits);
  EXPECT_FALSE(found[1].contains(3 << 20));
  EXPECT_TRUE(found[1].contains(5 << 20));
  EXPECT_TRUE(found[1].contains(9 << 20));
}

// QEMU keeps the bitmap that it has added when the second step fails; we change nothing then.
TEST_F(ImageBitmapCommand, DoesAllStepsOrNone) {
  prepare({words("qemu-img create -q -f qcow2 disk 16M")});
  expect_same("bitmap --add --merge nope disk b");
  EXPECT_TRUE(bitmaps_of(our_dir() + "/disk").empty());
}

// A program that dies with the image open leaves a bitmap that nobody trusts.
TEST_F(ImageBitmapCommand, InconsistentOnesAreOnlyRemoved) {
  prepare({words("qemu-img create -q -f qcow2 disk 16M"), words("qemu-img bitmap --add disk b")});
  for (const std::string& directory : {their_dir(), our_dir()})
    (void)run({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "abort", "disk"}, run_options(directory));
  for (const char* line : {"bitmap --clear disk b", "bitmap --enable disk b", "bitmap --add disk b",
                           "bitmap --add disk d", "bitmap --merge b disk d", "bitmap --remove disk b"}) {
    SCOPED_TRACE(line);
    expect_same(line);
    ASSERT_NO_FATAL_FAILURE(expect_same_bitmaps("disk"));
  }
}

TEST_F(ImageBitmapCommand, BitmapsGetTheSizeOfTheDisk) {
  prepare({words("qemu-img create -q -f qcow2 disk 20M"), words("qemu-img bitmap --add disk one"),
           words("qemu-img bitmap --add -g 512 --disable disk two")});
  write("write -P 3 100k 70k", "disk");
  write("write -P 4 19M 1M", "disk");
  for (const char* line : {"resize disk 1000000T", "resize disk +3M", "resize --shrink disk 19700k", "resize disk 1G",
                           "resize --shrink disk 64k", "resize disk 70k", "resize --preallocation=metadata disk 3M",
                           "amend -o size=5M disk"}) {
    SCOPED_TRACE(line);
    expect_same(line);
    ASSERT_NO_FATAL_FAILURE(expect_same_bitmaps("disk"));
  }
  for (const std::string& directory : {their_dir(), our_dir()}) {
    const auto broken =
        run({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", "-c", "abort", "disk"}, run_options(directory));
    ASSERT_NE(broken.exit_code, 0);
  }
  // QEMU names one of the two, we the first.
  const ProcessResult refused = ours(words("resize disk 20M"));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("is inconsistent and cannot be used"), std::string::npos) << refused.err;
  EXPECT_EQ(qemu(words("resize disk 20M")).exit_code, 1);
  EXPECT_EQ(properties(our_dir(), "disk", "qcow2"), properties(their_dir(), "disk", "qcow2"));
}

TEST_F(ImageBitmapCommand, ConvertCopiesBitmaps) {
  prepare({words("qemu-img create -q -f qcow2 disk 2M"), words("qemu-img bitmap --add disk one"),
           words("qemu-img bitmap --add -g 4k --disable disk two"), words("qemu-img create -q -f qcow2 larger 3M"),
           words("qemu-img create -q -f qcow2 old 2M"), words("qemu-img bitmap --add old two"),
           words("qemu-img create -q -f raw raw 2M")});
  write("write -P 3 100k 70k", "disk");
  write("write -P 4 1M 1", "disk");
  for (const char* line :
       {"convert --skip-broken-bitmaps -O qcow2 disk out", "convert --bitmaps -O raw disk out",
        "convert --bitmaps -O qcow2 disk raw out", "convert --bitmaps -O qcow2 -o compat=0.10 disk out",
        "convert --bitmaps -O qcow2 raw out", "convert --bitmaps -n -O qcow2 disk larger",
        "convert --bitmaps -n -O qcow2 disk old", "convert --bitmaps -O qcow2 disk out"}) {
    SCOPED_TRACE(line);
    expect_same(line);
  }
  expect_same_bitmaps("out");
  // A program that ends without storing its bitmaps.
  for (const std::string& directory : {their_dir(), our_dir()}) {
    const auto broken =
        run({"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 64k", "-c", "abort", "disk"}, run_options(directory));
    ASSERT_NE(broken.exit_code, 0);
  }
  expect_same("convert --bitmaps -O qcow2 disk out");
  expect_same("convert --bitmaps --skip-broken-bitmaps -O qcow2 disk out");
  expect_same_bitmaps("out");
}

}  // namespace
}  // namespace varve::test
