// `image create`: the lines it prints, what it refuses, and the images that come of it.
#include <fmt/format.h>

#include <filesystem>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

using ImageCreateCommand = ImageCommandPeer;

TEST_F(ImageCreateCommand, MakesTheSameImagesForTheSameOptions) {
  for (const char* options : {"",
                              "-o cluster_size=512",
                              "-o cluster_size=2M",
                              "-o cluster_size=0x1000",
                              "-o compat=0.10",
                              "-o compat=v2,cluster_size=4k",
                              "-o compat=1.1,refcount_bits=1",
                              "-o refcount_bits=64,lazy_refcounts=on",
                              "-o lazy_refcounts",
                              "-o nolazy_refcounts",
                              "-o lazy_refcounts=yes",
                              "-o compression_type=zstd",
                              "-o extended_l2=on",
                              "-o extended_l2=on,cluster_size=16k",
                              "-o preallocation=off",
                              "-o preallocation=metadata",
                              "-o preallocation=metadata,cluster_size=4k,refcount_bits=8",
                              "-o preallocation=metadata,extended_l2=on",
                              "-o preallocation=falloc",
                              "-o preallocation=full,cluster_size=4k",
                              "-o preallocation=falloc,extended_l2=on",
                              "-o nocow=on",
                              "-o extent_size_hint=0",
                              "-o preallocation=full,extent_size_hint=2M",
                              "-o cluster_size=4k -o compat=v3"}) {
    expect_same(fmt::format("create -f qcow2 {} disk.qcow2 10M", options));
    expect_same_image("disk.qcow2", "qcow2");
    std::filesystem::remove(our_dir() + "/disk.qcow2");
    std::filesystem::remove(their_dir() + "/disk.qcow2");
  }
}

TEST_F(ImageCreateCommand, TakesSizesOfEveryKind) {
  for (const char* size :
       {"0", "1", "1b", "511", "512", "1000", "1k", "1.5M", "1.3k", "0x1000", "+1M", "1G", "1T", "1P", "1.0000001k"}) {
    for (const char* format : {"raw", "qcow2"}) {
      if (format == std::string("raw") && size == std::string("1P")) continue;  // no file system takes it
      expect_same(fmt::format("create -f {} disk {}", format, size));
      EXPECT_EQ(properties(our_dir(), "disk", format), properties(their_dir(), "disk", format));
    }
  }
  expect_same("create -f qcow2 -o size=3M disk");
  expect_same("create -f qcow2 -o size=1M,size=2M disk");
  expect_same_image("disk", "qcow2");
  expect_same(std::vector<std::string>{"create", "disk", " 1M"});
}

TEST_F(ImageCreateCommand, SaysWhatIsNoSize) {
  for (const char* size : {"1Q", "-- -1", "1.5", "foo", "10Mfoo", "1MB", "1MiB", "1e3M", ".5M", "99999999999999999999",
                           "9E", "7E", "2E", "8796093022208k"}) {
    expect_same(fmt::format("create -f qcow2 disk {}", size));
  }
  expect_same(std::vector<std::string>{"create", "disk", ""});
  expect_same(std::vector<std::string>{"create", "disk", "1 M"});
  for (const char* options : {"size=", "size=foo", "size=-1", "size=1.5", "size=99999999999999999999999"}) {
    expect_same(fmt::format("create -f qcow2 -o {} disk", options));
  }
  expect_same("create -f qcow2 -o size=5M disk 10M");
  expect_same("create -f qcow2 -o cluster_size=512 disk 129G");
  EXPECT_TRUE(std::filesystem::is_empty(our_dir()));
}

TEST_F(ImageCreateCommand, RefusesOptionsThatDoNotFit) {
  for (const char* options : {"foo=bar",
                              "foo",
                              "nofoo",
                              "=foo",
                              "cluster_size=foo",
                              "cluster_size=",
                              "cluster_size=-1",
                              "cluster_size=0",
                              "cluster_size=3000",
                              "cluster_size=4M",
                              "cluster_size=256",
                              "compat=2",
                              "compat",
                              "cluster_size=3k,compat=2",
                              "refcount_bits=3",
                              "refcount_bits=128",
                              "refcount_bits=0",
                              "refcount_bits=-1",
                              "refcount_bits=foo",
                              "refcount_bits=8k",
                              "refcount_bits=99999999999999999999999999",
                              "refcount_bits=1,compat=0.10",
                              "lazy_refcounts=on,compat=0.10",
                              "lazy_refcounts=maybe",
                              "lazy_refcounts=ON",
                              "refcount_bits=3,lazy_refcounts=on,compat=0.10",
                              "extended_l2=on,compat=0.10",
                              "extended_l2=on,cluster_size=4k",
                              "extended_l2=on,cluster_size=4k,lazy_refcounts=on,compat=0.10",
                              "compression_type=zstd,compat=0.10",
                              "compression_type=zstd,refcount_bits=1,compat=0.10",
                              "compression_type=foo",
                              "preallocation=foo",
                              "compression_type=foo,preallocation=bar",
                              "preallocation=bar,compat=3",
                              "backing_fmt=raw",
                              "backing_fmt=foo",
                              "lazy_refcounts=on,backing_fmt=raw,compat=0.10",
                              ",foo",
                              "cluster_size=4k,",
                              "cluster_size=99999999999999999999",
                              "cluster_size=3k,refcount_bits=3"}) {
    expect_same(fmt::format("create -f qcow2 -o {} disk 1M", options));
  }
  expect_same(std::vector<std::string>{"create", "-f", "qcow2", "-o", "", "disk", "1M"});
  expect_same(std::vector<std::string>{"create", "-f", "qcow2", "-o", "compat=a b'c", "disk", "1M"});
  expect_same("create -f raw -o cluster_size=3 disk 1M");
  EXPECT_TRUE(std::filesystem::is_empty(our_dir()));
}

TEST_F(ImageCreateCommand, UsesTheSameWordsAboutTheCommandLine) {
  for (const char* line : {"create",
                           "create -f qcow2",
                           "create -f qcow2 disk",
                           "create disk",
                           "create -f",
                           "create --foo",
                           "create -Z",
                           "create -qZ",
                           "create -f qcow2 disk 1G extra",
                           "create -f foo disk 1G",
                           "create -f foo -o help",
                           "create -f foo -o help disk",
                           "create --image-opts disk 1M",
                           "create -f qcow2 foo:bar 1M",
                           "create -f qcow2 nonexistent/disk 1M",
                           "create -f raw nonexistent/disk 1M",
                           "create -f qcow2 . 1M",
                           "foo",
                           "--foo",
                           ""}) {
    expect_same(line);
  }
  EXPECT_TRUE(std::filesystem::is_empty(our_dir()));
  expect_same("create -q -f qcow2 disk 1M");
  expect_same("create -qf qcow2 disk 1M");
  expect_same("create -f raw -f qcow2 disk 1M");
  for (const char* options : {"preallocation=off", "nocow=on", "extent_size_hint=0", "extent_size_hint=5G"})
    expect_same(fmt::format("create -f raw -o {} raw 1M", options));
  for (const char* line : {"create -f qcow2 -o help", "create -f qcow2 -o help disk", "create -f raw -o help",
                           "create -f raw -o ?,size=3 disk", "convert -O qcow2 -o help", "convert -O raw -o help a b"})
    expect_same(line);
  expect_same("create -f raw -o preallocation=metadata raw 1M");
  expect_same("create -f raw -o preallocation=foo raw 1M");
}

TEST_F(ImageCreateCommand, PutsOverlaysOnBackingFiles) {
  std::filesystem::create_directory(their_dir() + "/sub");
  prepare({words("qemu-img create -q -f qcow2 base.qcow2 5M"),
           words("qemu-img create -q -f raw base.raw 3M"),
           words("qemu-img create -q -f qcow2 sub/base.qcow2 7M"),
           words("qemu-img create -q -f raw x,y=z 1M"),
           {"qemu-io", "-f", "raw", "-c", "write -P 7 0 3M", "base.raw"},
           {"qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", "x,y=z"}});
  for (const char* line : {"create -f qcow2 -b base.qcow2 -F qcow2 disk", "create -f qcow2 -b base.raw -F raw disk 10M",
                           "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2 disk 1G",
                           "create -f qcow2 -b base.raw -F raw -o backing_file=foo disk",
                           "create -f qcow2 -b base.qcow2 -F qcow2 sub/disk", "create -f qcow2 -b x,y=z -F raw disk",
                           "create -f qcow2 -o backing_fmt=raw,backing_file=x,,y=z disk",
                           "create -f qcow2 -b base.raw -F raw -o compat=0.10,cluster_size=1k disk",
                           "create -f qcow2 -o preallocation=metadata,extended_l2=on -b base.raw -F raw disk"}) {
    expect_same(line);
    const std::string name = std::filesystem::exists(our_dir() + "/disk") ? "disk" : "sub/disk";
    expect_same_image(name, "qcow2");
    std::filesystem::remove(our_dir() + "/" + name);
    std::filesystem::remove(their_dir() + "/" + name);
  }
  for (const char* line :
       {"create -f qcow2 -u -b nope.qcow2 -F qcow2 disk 1G", "create -f qcow2 -b file:base.raw -F raw disk"}) {
    expect_same(line);
    EXPECT_EQ(properties(our_dir(), "disk", "qcow2"), properties(their_dir(), "disk", "qcow2"));
  }
}

TEST_F(ImageCreateCommand, RefusesBackingFilesThatCanNotBe) {
  prepare({words("qemu-img create -q -f qcow2 base.qcow2 5M"), words("qemu-img create -q -f raw base.raw 3M"),
           words("qemu-img create -q -f qcow2 -u -b gone -F raw broken.qcow2 3M")});
  for (const char* line :
       {"create -f qcow2 -b base.qcow2 disk", "create -f qcow2 -b base.raw disk", "create -f qcow2 -b nope disk",
        "create -f qcow2 -b nope.qcow2 -F qcow2 disk", "create -f qcow2 -b nope.qcow2 -F qcow2 disk 1G",
        "create -f qcow2 -u -b base.qcow2 disk 1G", "create -f qcow2 -u -b base.qcow2 -F qcow2 disk",
        "create -f qcow2 -b base.qcow2 -F foo disk 1G", "create -f qcow2 -u -b base.qcow2 -F foo disk 1G",
        "create -f qcow2 -F foo disk 1G", "create -f qcow2 -F qcow2 disk 1G",
        "create -f qcow2 -b base.raw -F qcow2 disk", "create -f qcow2 -b disk -F qcow2 disk 1M",
        "create -f qcow2 -u -b disk -F qcow2 disk 1M", "create -f raw -b base.qcow2 -F qcow2 disk 1G",
        "create -f raw -F raw disk 1G", "create -f qcow2 -b broken.qcow2 -F qcow2 disk",
        "create -f qcow2 -o preallocation=metadata -b base.qcow2 -F qcow2 disk"}) {
    expect_same(line);
  }
  expect_same(std::vector<std::string>{"create", "-f", "qcow2", "-b", "", "-F", "qcow2", "disk", "1G"});
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/disk"));
}

TEST_F(ImageCreateCommand, LeavesAnImageInUseAlone) {
  prepare({words("qemu-img create -q -f qcow2 disk.qcow2 5M")});
  BackgroundProcess theirs({"qemu-io", "-f", "qcow2", their_dir() + "/disk.qcow2"});
  BackgroundProcess ours({"qemu-io", "-f", "qcow2", our_dir() + "/disk.qcow2"});
  for (BackgroundProcess* process : {&theirs, &ours}) {
    process->write("length\n");
    ASSERT_TRUE(process->wait_for("MiB")) << process->output();
  }
  const std::string before = read_whole_file(our_dir() + "/disk.qcow2");
  expect_same("create -f qcow2 disk.qcow2 1M");
  expect_same("create -f raw disk.qcow2 1M");
  expect_same("create -f qcow2 -b disk.qcow2 -F qcow2 overlay 1M");  // nothing is read of it
  EXPECT_EQ(read_whole_file(our_dir() + "/disk.qcow2"), before);
}

TEST_F(ImageCreateCommand, TakesTheSpaceAtOnce) {
  const auto blocks = [](const std::string& path) { return std::stoull(run_ok({"stat", "-c", "%b", path})); };
  for (const char* line :
       {"create -f raw -o preallocation=falloc disk 3M", "create -f raw -o preallocation=full disk 3M",
        "create -f qcow2 -o preallocation=falloc disk 3M",
        "create -f qcow2 -o preallocation=full,extended_l2=on disk 3M",
        "convert -f raw -O qcow2 -o preallocation=full raw disk"}) {
    SCOPED_TRACE(line);
    prepare({words("qemu-img create -q -f raw raw 3M")});
    expect_same(line);
    EXPECT_GE(blocks(our_dir() + "/disk") * 512, 3u << 20);
    EXPECT_GE(blocks(their_dir() + "/disk") * 512, 3u << 20);
  }
}

TEST_F(ImageCreateCommand, ListsItsOptions) {
  for (const char* line : {"create -f qcow2 -o help", "create -f qcow2 -o ? disk 1M", "create -o help disk"}) {
    const ProcessResult result = ours(words(line));
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_NE(result.out.find("  size=<size>            - "), std::string::npos) << result.out;
  }
}

TEST_F(ImageCreateCommand, SpeaksUnderItsOwnName) {
  EXPECT_EQ(varve(words("image create -f qcow2 disk")).err, "varve: disk: Image creation needs a size parameter\n");
  EXPECT_EQ(varve(words("image create")).err,
            "varve: Expecting image file name\nTry 'varve image --help' for more information\n");
}

}  // namespace
}  // namespace varve::test
