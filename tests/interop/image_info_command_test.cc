// `image info`: the same text and JSON for images of every kind, and no file opened but the one that is named.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include "base/endian.h"
#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageInfoCommand : public ImageCommandPeer {
 protected:
  void expect_same_info(const std::string& name) const {
    expect_same_view({"info", name});
    expect_same_view({"info", "--output=json", name});
  }
  static constexpr const char* kSecret = "secret,id=s,data=abc";
  void make_luks(const std::string& options, std::vector<std::string> more, const std::string& name) const {
    std::vector<std::string> command = {"create", "-q", "-f", "qcow2", "--object", kSecret, "-o", options};
    command.insert(command.end(), more.begin(), more.end());
    command.insert(command.end(), {name, "1M"});
    const ProcessResult made = qemu(command);
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  template <typename T>
  void patch(const std::string& name, uint64_t offset, T value) const {
    const BigEndian<T> bytes(value);
    const int fd = ::open((our_dir() + "/" + name).c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    EXPECT_EQ(::pwrite(fd, &bytes, sizeof bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(sizeof bytes));
    ::close(fd);
  }
};

TEST_F(ImageInfoCommand, DescribesEveryKindOfImage) {
  prepare({words("qemu-img create -q -f qcow2 plain 1G"),
           words("qemu-img create -q -f raw raw 10M"),
           words("qemu-img create -q -f qcow2 -o compat=0.10 v2 100k"),
           words("qemu-img create -q -f qcow2 -o cluster_size=4k,refcount_bits=64,lazy_refcounts=on zoo 1.5G"),
           words("qemu-img create -q -f qcow2 -o extended_l2=on,compression_type=zstd modern 7T"),
           words("qemu-img create -q -f qcow2 -b plain -F qcow2 overlay"),
           words("qemu-img create -q -f qcow2 -o compat=0.10 -u -b /nowhere/x -F raw orphan 3M"),
           words("qemu-img create -q -f qcow2 -u -b nbd://localhost/x -F raw remote 3M"),
           {"qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", R"(json:{"driver":"raw"})", "-F", "raw", "js", "1M"},
           words("qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on with-data 1M"),
           words("qemu-img create -q -f qcow2 -o data_file=data2.raw with-data2 1M"),
           words("qemu-img create -q -f qcow2 empty 0")});
  for (const char* name : {"plain", "raw", "v2", "zoo", "modern", "overlay", "orphan", "remote", "js", "with-data",
                           "with-data2", "empty", "./plain", "file:raw"}) {
    expect_same_info(name);
  }
  expect_same_view(words("info -f raw plain"));
  expect_same_view(words("info --output=human -U plain"));
  expect_same_view(words("info --out json -f qcow2 plain"));
  expect_same_view({"info", "--output=json", our_dir() + "/overlay"});
}

TEST_F(ImageInfoCommand, DescribesRawImagesOfAnySize) {
  put("empty", "");
  put("odd", std::string(1000, 'x'));
  put("qcow-like", std::string("QFI\xfb") + std::string(1000, '\0'));
  for (const char* name : {"empty", "odd"}) expect_same_info(name);
  expect_same_view(words("info -f raw qcow-like"));
}

TEST_F(ImageInfoCommand, NamesBackingFilesWithTheirPath) {
  prepare({words("mkdir sub"), words("qemu-img create -q -f qcow2 sub/base 1M"),
           words("qemu-img create -q -f qcow2 -b base -F qcow2 sub/middle"),
           words("qemu-img create -q -f qcow2 -b middle -F qcow2 sub/top")});
  expect_same_info("sub/top");
  expect_same_view(words("info --backing-chain sub/top"));
  expect_same_view(words("info --backing-chain --output=json sub/top"));
  expect_same_view(words("info --backing-chain --output=json sub/base"));
  ASSERT_EQ(::unlink((our_dir() + "/sub/base").c_str()), 0);
  expect_same_info("sub/middle");
  expect_same_view(words("info --backing-chain sub/top"));
}

TEST_F(ImageInfoCommand, DescribesEncryption) {
  prepare({{"qemu-img", "create", "-q", "-f", "qcow2", "--object", kSecret, "-o",
            "encrypt.format=aes,encrypt.key-secret=s", "aes", "1M"}});
  expect_same_info("aes");
  make_luks("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200", {}, "luks");
  make_luks(
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=200,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
      "encrypt.ivgen-hash-alg=sha256,data_file=data",
      {"-u", "-b", "x", "-F", "raw"}, "everything");
  copy_to_ours();
  expect_same_info("luks");
  expect_same_info("everything");
}

TEST_F(ImageInfoCommand, DescribesBitmaps) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), words("qemu-img bitmap --add disk first"),
           words("qemu-img bitmap --add -g 32k disk second"), words("qemu-img bitmap --disable disk second")});
  expect_same_info("disk");
}

TEST_F(ImageInfoCommand, WarnsOfBitmapsThatAreNoLongerValid) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), words("qemu-img bitmap --add disk first")});
  patch<uint64_t>("disk", 88, 0);  // the autoclear bit
  const ProcessResult result = ours({"info", "disk"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out.find("bitmaps"), std::string::npos) << result.out;
  EXPECT_NE(result.err.find("no longer valid"), std::string::npos) << result.err;
}

TEST_F(ImageInfoCommand, ListsSnapshotsWithAllTheirFields) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"),
           words("qemu-img snapshot -c one disk"),
           {"qemu-img", "snapshot", "-c", "a long name " + std::string(100, 'x'), "disk"},
           {"qemu-img", "snapshot", "-c", "Ümläut\ttab \"quoted\\\" \x7f\b \xf0\x9f\x98\x80", "disk"},
           {"qemu-img", "snapshot", "-c", "wrong \xff\xfe \xed\xa0\x80 \xe2\x82z \xc0\x80 \xf4\x90\x80\x80", "disk"},
           {"qemu-img", "snapshot", "-c", "", "disk"}});
  expect_same_info("disk");
  expect_same_view({"snapshot", "-l", "disk"});

  // The first entry of the table: fields at fixed offsets.
  const std::string image = read_whole_file(our_dir() + "/disk");
  const auto table = load_be<uint64_t>(image.data() + 64);
  constexpr uint64_t kDate = 16, kClock = 24, kVmSize = 40, kIcount = 56;
  for (const uint64_t size : {uint64_t{123456789}, (uint64_t{1} << 40) + 5, uint64_t{1023}, uint64_t{999}}) {
    patch<uint64_t>("disk", table + kVmSize, size);
    expect_same_info("disk");
  }
  for (const uint64_t clock : {uint64_t{123456789000000}, uint64_t{3600001789999999}, ~uint64_t{0}}) {
    patch<uint64_t>("disk", table + kClock, clock);
    expect_same_info("disk");
  }
  for (const uint32_t date : {0u, 1u << 31, ~0u, 1700000000u}) {
    patch<uint32_t>("disk", table + kDate, date);
    expect_same_info("disk");
  }
  for (const uint64_t icount : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{123456789012345}}) {
    patch<uint64_t>("disk", table + kIcount, icount);
    expect_same_info("disk");
  }
}

TEST_F(ImageInfoCommand, TellsOfDirtyAndCorruptImages) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  patch<uint64_t>("disk", 72, 1);
  expect_same_info("disk");
  patch<uint64_t>("disk", 72, 2);
  expect_same_info("disk");
  patch<uint64_t>("disk", 72, uint64_t{1} << 60);
  const ProcessResult result = ours({"info", "disk"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_TRUE(result.err.starts_with("qemu-img: Could not open 'disk': ")) << result.err;
}

TEST_F(ImageInfoCommand, SaysTheSameOfWhatCanNotBeOpened) {
  prepare({words("qemu-img create -q -f raw raw 10M"), words("mkdir sub"),
           words("qemu-img create -q -f qcow2 -u -b two -F qcow2 one 1M"),
           words("qemu-img create -q -f qcow2 -u -b one -F qcow2 two 1M")});
  for (const char* line : {"info nope", "info -f qcow2 raw", "info -f foo raw", "info", "info raw raw",
                           "info --output=foo raw", "info --output=foo", "info --foo raw", "info -f", "info --output",
                           "info --o json raw", "info --backing-chain one"}) {
    expect_same(line);
  }
}

TEST_F(ImageInfoCommand, RespectsLocks) {
  prepare({words("qemu-img create -q -f qcow2 disk 5M"), words("qemu-img create -q -f qcow2 -b disk -F qcow2 top")});
  BackgroundProcess holder({"qemu-io", "-f", "qcow2", our_dir() + "/disk"});
  holder.write("length\n");
  ASSERT_TRUE(holder.wait_for("MiB")) << holder.output();
  for (const char* line : {"info disk", "info top", "info --backing-chain top", "info -U disk", "info -f raw disk",
                           "info -U --backing-chain top"}) {
    expect_same_view(words(line));
  }
}

TEST_F(ImageInfoCommand, OpensNothingButTheNamedFile) {
  prepare({words("qemu-img create -q -f raw data 1M"), words("qemu-img create -q -f raw base 1M"),
           words("qemu-img create -q -f qcow2 -b base -F raw -o data_file=data disk"), words("mv base base.gone"),
           words("mv data data.gone"), words("mkfifo base data")});
  // Who opened the pipes would wait for ever.
  expect_same_view(words("info disk"));
  expect_same_view(words("info --output=json disk"));
}

TEST_F(ImageInfoCommand, NeverGuessesTheFormatOfABackingFile) {
  prepare({words("qemu-img create -q -f qcow2 base 1M"), words("qemu-img create -q -f qcow2 -b base -F qcow2 disk")});
  const std::string image = read_whole_file(our_dir() + "/disk");
  const size_t extension = image.find("\xe2\x79\x2a\xca");  // the backing format's
  ASSERT_NE(extension, std::string::npos);
  patch<uint32_t>("disk", extension, 0x12345678);
  const ProcessResult result = varve(words("image info --backing-chain disk"));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.err,
            "varve: 'disk' does not say which format its backing file 'base' has\n"
            "  `qemu-img rebase -u -F FORMAT -b 'base' 'disk'` records it, FORMAT being raw, qcow2 or luks\n");
  expect_same_view(words("info disk"));
}

TEST_F(ImageInfoCommand, TakesNoForeignFormatForRaw) {
  prepare({words("qemu-img create -q -f vmdk disk.vmdk 1M"), words("qemu-img create -q -f vdi disk.vdi 1M"),
           words("qemu-img create -q -f vhdx disk.vhdx 1M"), words("qemu-img create -q -f vpc disk.vpc 1M"),
           words("qemu-img create -q -f qed disk.qed 1M"), words("qemu-img create -q -f qcow disk.qcow 1M"),
           words("qemu-img create -q -f parallels disk.parallels 1M")});
  for (const char* kind : {"vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"}) {
    const ProcessResult result = ours({"info", fmt::format("disk.{}", kind)});
    EXPECT_EQ(result.exit_code, 1) << kind;
    EXPECT_NE(result.err.find("a format that Varve does not read"), std::string::npos) << kind << result.err;
  }
}

}  // namespace
}  // namespace varve::test
