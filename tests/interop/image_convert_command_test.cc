// `image convert`: the same disks come out, holes and all.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <random>

#include "interop/image_command_peer.h"
#include "support/mounted_file_system.h"

namespace varve::test {
namespace {

class ImageConvertCommand : public ImageCommandPeer {
 protected:
  // A disk with data, holes, explicit zeroes and data that is zero; snapshots of two earlier states.
  void prepare_disk(const std::string& options = "") {
    prepare({words(fmt::format("qemu-img create -q -f qcow2 {} disk 40M", options)),
             io({"write -P 1 0 1M", "write -P 2 3M 4k", "write -P 3 5000 3000", "write -z 6M 1M"}, "disk"),
             words("qemu-img snapshot -c one disk"),
             io({"write -P 4 512k 2M", "write -P 0 8M 1M", "write -P 5 39M 1M"}, "disk"),
             words("qemu-img snapshot -c 1 disk"), io({"write -P 6 20M 3M", "discard 0 256k"}, "disk"),
             words("qemu-img create -q -f raw raw 10M")});
  }
  // Converts on both sides; the results are the same disk, and ours is not larger on the host than theirs by more than
  // what the formats' own tables take.
  void expect_same_conversion(const std::string& line, const std::string& format, uint64_t tables = 512u << 10) const {
    for (const std::string& directory : {our_dir(), their_dir()}) std::filesystem::remove(directory + "/out");
    expect_same("convert " + line);
    EXPECT_EQ(properties(our_dir(), "out", format), properties(their_dir(), "out", format)) << line;
    run_ok({"qemu-img", "compare", "-f", format, "-F", format, our_dir() + "/out", their_dir() + "/out"});
    if (format == "qcow2") run_ok({"qemu-img", "check", "-q", "-f", format, our_dir() + "/out"});
    EXPECT_LE(allocated(our_dir() + "/out"), allocated(their_dir() + "/out") + tables) << line;
  }
  static uint64_t allocated(const std::string& path) {
    struct stat st = {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0) << path;
    return static_cast<uint64_t>(st.st_blocks) * 512;
  }
};

TEST_F(ImageConvertCommand, KeepsContentsAndHoles) {
  prepare_disk();
  expect_same_conversion("disk out", "raw");
  expect_same_conversion("-f qcow2 -O raw disk out", "raw");
  expect_same_conversion("-f qcow2 -O qcow2 disk out", "qcow2");
  expect_same_conversion("-O qcow2 -S 64k disk out", "qcow2");
  expect_same_conversion("-O raw -S 0 disk out", "raw");
  expect_same_conversion("-O qcow2 -S 0 disk out", "qcow2");
  expect_same_conversion("-O qcow2 raw out", "qcow2");
  expect_same_conversion("-f raw -O qcow2 disk out", "qcow2");  // a qcow2 file as a disk
  expect_same_conversion("-O qcow2 disk raw disk out", "qcow2");
  expect_same_conversion("-O raw raw disk out", "raw");
  expect_same_conversion("-U -W -C -m 4 -t none -T writeback -O raw disk out", "raw");
}

TEST_F(ImageConvertCommand, TakesFormatOptions) {
  prepare_disk("-o cluster_size=4k,compat=0.10");
  for (const char* options :
       {"cluster_size=512", "compat=0.10", "refcount_bits=1,lazy_refcounts=on", "extended_l2=on",
        "compression_type=zstd", "preallocation=metadata", "size=3G", "size=1M,cluster_size=8k"}) {
    expect_same_conversion(fmt::format("-O qcow2 -o {} disk out", options), "qcow2");
  }
  expect_same_conversion("-O qcow2 -o cluster_size=2M disk out", "qcow2", 8u << 20);
}

TEST_F(ImageConvertCommand, ReadsSnapshots) {
  prepare_disk();
  for (const char* selector : {"one", "1", "2", "snapshot.id=1", "snapshot.name=1", "snapshot.name=one,snapshot.id=1",
                               "snapshot.id=2,snapshot.name=1"}) {
    expect_same_conversion(fmt::format("-l {} -O qcow2 disk out", selector), "qcow2");
    expect_same_conversion(fmt::format("-l {} disk out", selector), "raw");
  }
  for (const char* selector : {"nope", "snapshot.id=one", "snapshot.name=one,snapshot.id=2", "snapshot.foo=one",
                               "snapshot.name=a,,b", "snapshot.name=a,snapshot.foo=b", "one -l nope"}) {
    expect_same(fmt::format("convert -l {} -O qcow2 disk nothing", selector));
  }
  expect_same("convert -l one disk disk nothing");
  expect_same("convert -f raw -l one raw nothing");
  expect_same({"convert", "-l", "", "disk", "nothing"});
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/nothing"));
}

TEST_F(ImageConvertCommand, GivesASnapshotItsOwnSize) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), io({"write -P 3 0 1M"}, "disk"),
           words("qemu-img snapshot -c small disk"), words("qemu-img resize -q disk 3M"),
           io({"write -P 4 2M 1M"}, "disk")});
  expect_same_conversion("-O qcow2 disk out", "qcow2");
  // QEMU gives it the present disk's size: too much of it, or (worse) not all of it.
  std::filesystem::remove(our_dir() + "/out");
  EXPECT_EQ(ours(words("convert -l small -O qcow2 disk out")).exit_code, 0);
  run_ok({"qemu-img", "snapshot", "-a", "small", our_dir() + "/disk"});
  run_ok({"qemu-img", "compare", "-s", our_dir() + "/out", our_dir() + "/disk"});
}

TEST_F(ImageConvertCommand, ReadsChainsAndCompressedImages) {
  prepare_disk();
  prepare({words("qemu-img convert -c -O qcow2 disk compressed"),
           words("qemu-img convert -c -O qcow2 -o compression_type=zstd disk compressed-zstd"),
           words("qemu-img create -q -f qcow2 -b disk -F qcow2 middle 60M"), io({"write -P 7 1M 5M"}, "middle"),
           words("qemu-img create -q -f qcow2 -b middle -F qcow2 -o extended_l2=on top 80M"),
           io({"write -P 8 3M 2k", "write -z 5M 1M", "write -P 9 70M 1M"}, "top"),
           words("qemu-img create -q -f qcow2 -b disk -F raw odd-layer 20M")});
  for (const char* name : {"compressed", "compressed-zstd", "middle", "top", "odd-layer"}) {
    expect_same_conversion(fmt::format("-O qcow2 {} out", name), "qcow2");
    expect_same_conversion(fmt::format("{} out", name), "raw");
  }
}

TEST_F(ImageConvertCommand, CompressesAsQemuDoes) {
  // Text that packs well, random bytes that don't, zeroes, and odd ends.
  std::string contents;
  std::mt19937_64 random(7);
  while (contents.size() < 3u << 20) {
    switch (random() % 4) {
      case 0:
        contents += fmt::format("line {} of a log that says the same again and again\n", random() % 100);
        break;
      case 1:
        for (int i = 0; i < 20; ++i) contents += static_cast<char>(random());
        break;
      case 2:
        for (unsigned i = 0, n = random() % 40 == 0 ? 100000 : 10; i < n; ++i) contents += static_cast<char>(random());
        break;
      default:
        contents.append(random() % 40 == 0 ? 150000 : 100, '\0');
    }
  }
  contents.resize((contents.size() / 512) * 512 + 512, 'e');
  put("disk.raw", contents);
  for (const char* options :
       {"compression_type=zlib", "compression_type=zstd", "cluster_size=4k", "cluster_size=512,refcount_bits=8",
        "cluster_size=2M", "refcount_bits=1", "refcount_bits=64", "compat=0.10", "extended_l2=on"}) {
    expect_same_conversion(fmt::format("-c -f raw -O qcow2 -o {} disk.raw out", options), "qcow2", 8u << 20);
    expect_same("convert -f qcow2 -O raw out again");
    run_ok({"cmp", our_dir() + "/again", our_dir() + "/disk.raw"});
    // Written to afterwards by QEMU, and by us over it.
    run_ok(io({"write -P 1 100k 300k", "write -P 2 1M 512", "discard 2M 256k"}, our_dir() + "/out"));
    run_ok({"qemu-img", "check", "-q", "-f", "qcow2", our_dir() + "/out"});
  }
  expect_same("convert -c -f raw -O raw disk.raw out.raw");
}

TEST_F(ImageConvertCommand, CompressesSeveralSourcesIntoOneImage) {
  put("a", std::string(5 * 512 + 4096 * 20, 'a'));
  put("b", std::string(3 * 512, 'b') + std::string(300 << 10, '\0') + std::string(512, 'B'));
  prepare_disk();
  expect_same_conversion("-c -f raw -O qcow2 a b a out", "qcow2");
  expect_same_conversion("-c -f raw -O qcow2 -S 64k b a b out", "qcow2");
  prepare(
      {words("qemu-img create -q -f qcow2 -b disk -F qcow2 top"), io({"write -P 8 3M 2k", "write -z 0 1M"}, "top")});
  expect_same_conversion("-c -f qcow2 -O qcow2 -B disk -F qcow2 top out", "qcow2");
  expect_same_conversion("-c -f qcow2 -O qcow2 -l one disk out", "qcow2");
}

TEST_F(ImageConvertCommand, KeepsToARate) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), io({"write -P 1 0 1M"}, "disk")});
  expect_same_conversion("-r 100M -O qcow2 disk out", "qcow2");
}

TEST_F(ImageConvertCommand, SalvagesWhatCanBeRead) {
  prepare({words("qemu-img create -q -f qcow2 source 1M"), io({"write -P 5 0 1M"}, "source"),
           words("qemu-img convert -c -O qcow2 source disk")});
  // The compressed data of the first clusters is overwritten: QEMU and we can't read them.
  for (const std::string& directory : {our_dir(), their_dir()})
    run_ok({"dd", "if=/dev/urandom", "of=" + directory + "/disk", "bs=1", "seek=327680", "count=90", "conv=notrunc"});
  EXPECT_EQ(ours(words("convert -O raw disk out")).exit_code, qemu(words("convert -O raw disk out")).exit_code);
  const ProcessResult result = ours(words("convert --salvage -O raw disk out"));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(result.err.starts_with("qemu-img: warning: error while reading offset ")) << result.err;
  EXPECT_EQ(std::filesystem::file_size(our_dir() + "/out"), 1u << 20);
  EXPECT_EQ(ours(words("convert -q --salvage -O raw disk out")).err, "");
}

TEST_F(ImageConvertCommand, KeepsABackingFileWhenAsked) {
  prepare_disk();
  prepare({words("qemu-img create -q -f qcow2 -b disk -F qcow2 top"), io({"write -P 8 3M 2k", "write -z 0 1M"}, "top"),
           words("qemu-img create -q -f qcow2 -b disk -F qcow2 larger 80M"), io({"write -P 8 60M 1M"}, "larger")});
  expect_same_conversion("-B disk -F qcow2 -O qcow2 top out", "qcow2");
  expect_same_conversion("-o backing_file=disk,backing_fmt=qcow2 -O qcow2 top out", "qcow2");
  expect_same_conversion("-B disk -F qcow2 -O qcow2 larger out", "qcow2");
  expect_same_conversion("-B disk -F qcow2 -O qcow2 raw out", "qcow2");
  for (const char* line : {"-B disk -O qcow2 top nothing", "-o backing_file=disk -O qcow2 top nothing",
                           "-F qcow2 -O qcow2 top nothing", "-B disk -F foo -O qcow2 top nothing",
                           "-B disk -F qcow2 -O raw top nothing", "-B disk -F qcow2 -O qcow2 top top nothing"}) {
    expect_same(fmt::format("convert {}", line));
  }
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/nothing"));
}

TEST_F(ImageConvertCommand, WritesIntoTargetsThatExist) {
  prepare_disk();
  prepare({words("qemu-img create -q -f qcow2 target 40M"),
           io({"write -P 11 0 40M"}, "target"),
           words("qemu-img create -q -f raw target.raw 50M"),
           {"qemu-io", "-f", "raw", "-c", "write -P 12 0 50M", "target.raw"},
           words("qemu-img create -q -f qcow2 small 5M"),
           words("qemu-img create -q -f qcow2 fresh 40M"),
           words("qemu-img create -q -f qcow2 -o compat=0.10 -b target -F qcow2 overlay 40M")});
  expect_same("convert -n -O qcow2 disk target");
  expect_same_image("target", "qcow2");
  expect_same("convert -n disk target.raw");
  run_ok({"qemu-img", "compare", "-f", "raw", "-F", "raw", our_dir() + "/target.raw", their_dir() + "/target.raw"});
  expect_same("convert -n --target-is-zero -O qcow2 disk fresh");
  run_ok({"qemu-img", "compare", our_dir() + "/fresh", their_dir() + "/fresh"});
  expect_same("convert -n -O qcow2 disk overlay");
  run_ok({"qemu-img", "compare", our_dir() + "/overlay", their_dir() + "/overlay"});
  run_ok({"qemu-img", "check", "-q", our_dir() + "/overlay"});
  for (const char* line :
       {"-n -O qcow2 disk small", "-n -O qcow2 disk nope", "-n -o cluster_size=4k -O qcow2 disk target",
        "--target-is-zero -O qcow2 disk target", "-n -O qcow2 raw disk.nope"}) {
    expect_same(fmt::format("convert {}", line));
  }
}

TEST_F(ImageConvertCommand, UsesTheSameWordsAboutTheCommandLine) {
  prepare_disk();
  for (const char* line : {"",
                           "disk",
                           "nope out",
                           "-f foo disk out",
                           "-O foo disk out",
                           "disk nonexistent/out",
                           "-O qcow2 disk nonexistent/out",
                           "-O qcow2 -o cluster_size=3k disk out",
                           "-O qcow2 -o foo=3 disk out",
                           "-O qcow2 -o cluster_size=foo disk out",
                           "-o foo=3 disk out",
                           "-O qcow2 -o ,foo disk out",
                           "-S 1000 disk out",
                           "-S foo disk out",
                           "-S 32M disk out",
                           "-S 99999999999999999999 disk out",
                           "-m 0 disk out",
                           "-m 17 disk out",
                           "-m foo disk out",
                           "-t foo disk out",
                           "-T foo disk out",
                           "-C -S 4k disk out",
                           "-C -c -O qcow2 disk out",
                           "-C --salvage disk out",
                           "-c -O qcow2 -o preallocation=metadata disk out",
                           "-r foo disk out",
                           "--foo disk out",
                           "-S",
                           "-O qcow2 disk disk",
                           "-O raw raw raw",
                           "-O qcow2 disk foo:out"}) {
    expect_same(fmt::format("convert {}", line));
  }
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/out"));
}

TEST_F(ImageConvertCommand, RefusesSourcesAndTargetsInUse) {
  prepare_disk();
  prepare({words("qemu-img create -q -f qcow2 other 40M")});
  BackgroundProcess holder({"qemu-io", "-f", "qcow2", our_dir() + "/other"});
  holder.write("length\n");
  ASSERT_TRUE(holder.wait_for("MiB")) << holder.output();
  for (const char* line : {"convert other out", "convert -f raw other out", "convert -O qcow2 disk other",
                           "convert -n -O qcow2 disk other", "convert -O raw disk other"}) {
    expect_same_view(words(line));
  }
}

TEST_F(ImageConvertCommand, ShowsProgressWhenAsked) {
  prepare_disk();
  const ProcessResult result = ours(words("convert -p -O qcow2 disk out"));
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_TRUE(result.out.starts_with("    (0.00/100%)\r")) << result.out;
  EXPECT_TRUE(result.out.ends_with("    (100.00/100%)\r\n")) << result.out;
  EXPECT_EQ(ours(words("convert -p -q -O qcow2 disk out")).out, "");
}

TEST_F(ImageConvertCommand, SaysWhereAFullDiskStoppedIt) {
  REQUIRES_ROOT();
  prepare({words("qemu-img create -q -f qcow2 disk 10M"), io({"write -P 1 0 10M"}, "disk")});
  const MountedFileSystem small("tmpfs", "size=2m");
  for (const char* format : {"raw", "qcow2"}) {
    const ProcessResult result = varve({"image", "convert", "-O", format, "disk", small / "out"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(result.err.starts_with("varve: error while writing at byte ")) << result.err;
    EXPECT_NE(result.err.find(": No space left on device\n  '"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("is incomplete"), std::string::npos) << result.err;
    std::filesystem::remove(small / "out");
  }
  const ProcessResult full =
      varve({"image", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", small / "out", "100G"});
  EXPECT_EQ(full.exit_code, 1);
  EXPECT_NE(full.err.find("No space left on device"), std::string::npos) << full.err;
  EXPECT_FALSE(std::filesystem::exists(small / "out"));
}

TEST_F(ImageConvertCommand, TakesImageDescriptions) {
  prepare_disk();
  for (const char* line : {"convert --image-opts driver=qcow2,file.filename=disk -O raw out",
                           "convert --image-opts driver=qcow2,file.driver=file,file.filename=nope -O raw out",
                           "convert --image-opts -f qcow2 driver=qcow2,file.filename=disk -O raw out",
                           "convert -n --target-image-opts disk driver=raw,file.filename=out",
                           "convert --target-image-opts disk driver=raw,file.filename=out",
                           "convert -n --target-image-opts -O raw disk driver=raw,file.filename=out",
                           "convert -n --target-image-opts disk driver=qcow2,file.filename=out",
                           "convert --target-image-opts -n -o help disk out"}) {
    expect_same(line);
  }
  expect_same_image("out", "raw");
}

TEST_F(ImageConvertCommand, CopiesPastThePageCacheAndThroughIt) {
  prepare({words("qemu-img create -q -f qcow2 base 3M"),
           io({"write -P 1 1k 1M"}, "base"),
           words("qemu-img create -q -f qcow2 -b base -F qcow2 over"),
           io({"write -P 2 777k 311k"}, "over"),
           words("qemu-img create -q -f raw odd 1048575"),
           {"qemu-io", "-f", "raw", "-c", "write -P 5 983040 65535", "odd"}});
  for (const char* modes : {"-T none -t none", "-T directsync -t writeback", "-T unsafe -t directsync"}) {
    for (const char* target : {"raw", "qcow2"}) {
      expect_same(fmt::format("convert {} -O {} over copy", modes, target));
      expect_same_image("copy", target);
      expect_same(fmt::format("convert {} -f raw -O {} odd copy", modes, target));
      expect_same_image("copy", target);
    }
  }
  expect_same("compare -T none over base");
  expect_same("rebase -t none -T none -b \"\" over");
  expect_same("rebase -t none -T none -b base -F qcow2 over");
  expect_same("commit -t none over");
  expect_same_image("base", "qcow2");
  run_ok({"truncate", "--size=1048575", "odd"}, run_options(our_dir()));
  for (const char* direct : {"on", "off"}) {
    expect_same_view({"map", "--output=json", "--image-opts",
                      fmt::format("driver=raw,file.driver=file,file.filename=odd,cache.direct={}", direct)});
  }
}

}  // namespace
}  // namespace varve::test
