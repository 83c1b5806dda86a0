// `varve image` on images with an external data file: the same words and disks as QEMU's, and the file opened only
// where the guest's disk is looked at.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <random>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageDataFile : public ImageCommandPeer {
 protected:
  // The same in both directories, by qemu-io.
  void write_in_both(const std::vector<std::string>& commands, const std::string& name) {
    for (const std::string& directory : {their_dir(), our_dir()}) run_ok(io(commands, name), run_options(directory));
  }

  // Data files are named relative to where a program runs, so QEMU's programs run there.
  void expect_same_disk(const std::string& name) {
    for (const std::string& directory : {their_dir(), our_dir()}) {
      run_ok(words("qemu-img convert -f qcow2 -O raw " + name + " same.raw"), run_options(directory));
      run_ok(words("qemu-img check -q -f qcow2 " + name), run_options(directory));
    }
    EXPECT_EQ(read_whole_file(our_dir() + "/same.raw"), read_whole_file(their_dir() + "/same.raw")) << name;
  }
  void expect_raw(const std::string& name, const std::string& data) {
    run_ok(words("qemu-img convert -f qcow2 -O raw " + name + " same.raw"), run_options(our_dir()));
    EXPECT_EQ(read_whole_file(our_dir() + "/same.raw"), read_whole_file(our_dir() + "/" + data)) << name;
  }

  // Puts another name of the same length in the place of the data file's.
  void rename_in_header(const std::string& image, const std::string& from, const std::string& to) {
    ASSERT_EQ(from.size(), to.size());
    std::string bytes = read_whole_file(our_dir() + "/" + image);
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos);
    put(image, bytes.replace(at, from.size(), to));
  }
};

TEST_F(ImageDataFile, IsCreatedLookedAtAndResizedAsByQemu) {
  for (const char* options : {"data_file=d.raw", "data_file=d.raw,data_file_raw=on",
                              "data_file=d.raw,preallocation=metadata", "data_file=d.raw,cluster_size=4k",
                              "data_file=d.raw,extended_l2=on,data_file_raw=on", "data_file=d.raw,extended_l2=on"}) {
    SCOPED_TRACE(options);
    const bool raw = std::string(options).find("raw=on") != std::string::npos;
    expect_same(words(fmt::format("create -f qcow2 -o {} i.qcow2 9M", options)));
    EXPECT_EQ(std::filesystem::file_size(our_dir() + "/d.raw"), 9u << 20);
    write_in_both({"write -P 1 0 1M", "write -P 2 1M 4M", "discard 2M 2M", "write -z 3M 3M", "write -P 3 8000k 3k"},
                  "i.qcow2");
    for (const char* line :
         {"map i.qcow2", "map --output=json i.qcow2", "measure -O qcow2 i.qcow2", "resize i.qcow2 12M",
          "map --output=json i.qcow2", "resize --shrink i.qcow2 4500480", "map --output=json i.qcow2",
          "resize i.qcow2 5M", "resize i.qcow2 5M", "resize --preallocation=full i.qcow2 6M",
          "convert -O raw i.qcow2 out", "compare i.qcow2 out", "dd if=i.qcow2 of=dd bs=1M count=2 skip=1"}) {
      expect_same(line);
      if (raw) expect_raw("i.qcow2", "d.raw");
    }
    expect_same_disk("i.qcow2");
    EXPECT_EQ(std::filesystem::file_size(our_dir() + "/d.raw"), 6u << 20);
  }
  expect_same_view(words("info i.qcow2"));
  expect_same_view(words("info --output=json i.qcow2"));
}

TEST_F(ImageDataFile, HoldsWhatAConversionOrACommitWrites) {
  prepare({words("qemu-img create -q -f qcow2 source 5M"),
           io({"write -P 7 0 100k", "write -P 8 2M 1M", "write -z 4M 100k"}, "source"),
           words("qemu-img create -q -f qcow2 -o data_file=base.raw base 5M"), io({"write -P 9 1M 3M"}, "base"),
           words("qemu-img create -q -f qcow2 -o data_file=top.raw -b base -F qcow2 top"),
           io({"write -P 5 64k 70k", "write -z 2M 64k", "discard 3M 64k"}, "top")});
  expect_same("convert -O qcow2 -o data_file=copy.raw source copy");
  expect_same_disk("copy");
  expect_same("convert -n -O qcow2 source copy");
  expect_same("convert -O qcow2 -o data_file=copy.raw,data_file_raw=on source copy");
  expect_same_disk("copy");
  expect_raw("copy", "copy.raw");
  expect_same_view(words("map --output=json top"));  // how much the file system holds plays a part
  expect_same("compare top source");
  expect_same("rebase -b source -F qcow2 top");
  expect_same_disk("top");
  expect_same("rebase -b base -F qcow2 top");
  expect_same_disk("top");
  expect_same("commit top");
  expect_same_disk("base");
  expect_same_disk("top");
  expect_same_view(words("map --output=json top"));
}

TEST_F(ImageDataFile, RefusesInQemusWords) {
  prepare({words("qemu-img create -q -f qcow2 -o data_file=d.raw i 1M"), io({"write -P 7 0 100k"}, "i"),
           words("qemu-img create -q -f qcow2 -o data_file=r.raw,data_file_raw=on r 1M"),
           words("qemu-img create -q -f qcow2 plain 1M"), words("qemu-img create -q -f raw base 1M"),
           words("qemu-img create -q -f qcow2 -o data_file=gone lost 1M"), words("rm gone"),
           words("qemu-img create -q -f qcow2 -b lost -F qcow2 -u overlay 1M"),
           words("qemu-img create -q -f qcow2 -o data_file=x nameless 1M"),
           words("qemu-img amend -q -o data_file= nameless")});
  for (const char* line :
       {"create -f qcow2 -o data_file_raw=on e 1M",
        "create -f qcow2 -o data_file=x.raw,data_file_raw=on -b base -F raw e",
        "create -f qcow2 -o data_file=x.raw,compat=0.10 e 1M",
        "create -f qcow2 -o data_file=nodir/x.raw e 1M",
        "create -f qcow2 -o data_file= e 1M",
        "convert -O qcow2 -o data_file=nodir/x.raw plain e",
        "convert -c -O qcow2 -o data_file=c.raw i c",
        "snapshot -c test i",
        "snapshot -a test i",
        "snapshot -d test i",
        "snapshot -l i",
        "convert -l test -O raw i x",
        "rebase -b base -F raw r",
        "rebase -u -b base -F raw r",
        "map lost",
        "convert -O raw lost x",
        "map overlay",
        "map nameless",
        "map --image-opts driver=qcow2,file.filename=nameless,data-file.filename=x",
        "map --image-opts driver=qcow2,file.filename=lost,data-file.filename=none",
        "map --image-opts driver=qcow2,file.filename=plain,data-file.filename=d.raw",
        "map json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"lost\"},\"data-file\":{\"driver\":"
        "\"file\",\"filename\":\"d.raw\"}}",
        "compare --image-opts driver=qcow2,file.filename=i,data-file.filename=base driver=raw,file.filename=base"}) {
    expect_same(line);
  }
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/e"));
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/nodir"));
}

TEST_F(ImageDataFile, TakesTurnsWithQemu) {
  for (const char* options : {"data_file=d,cluster_size=16k", "data_file=d,data_file_raw=on,cluster_size=16k",
                              "data_file=d,extended_l2=on,cluster_size=16k"}) {
    SCOPED_TRACE(options);
    std::mt19937_64 random(11);
    expect_same(words(fmt::format("create -q -f qcow2 -o {} i 3M", options)));
    for (int round = 0; round < 8; ++round) {
      std::vector<std::string> writes;
      for (int k = 0; k < 6; ++k) {
        const uint64_t offset = random() % 6000 * 512;
        const uint64_t length = (1 + random() % 140) * 512;
        const char* kinds[] = {"write -P 7", "write -P 9", "write -z", "write -z -u"};
        const char* kind = kinds[random() % 4];
        writes.push_back(fmt::format("{} {} {}", kind, offset, length));
      }
      write_in_both(writes, "i");
      // Ours writes to it, too: what a copy of the disk with another pattern in it holds.
      for (const std::string& directory : {their_dir(), our_dir()}) {
        run_ok(words("qemu-img convert -f qcow2 -O qcow2 i changed"), run_options(directory));
        run_ok(io({fmt::format("write -P {} {}k 99k", 20 + round, 64 * round), "write -z 2M 60k"}, "changed"),
               run_options(directory));
      }
      expect_same("convert -n -O qcow2 changed i");
      expect_same_disk("i");
      if (std::string(options).find("raw=on") != std::string::npos) expect_raw("i", "d");
    }
  }
}

TEST_F(ImageDataFile, IsNotOpenedByWhoOnlyLooksAtTheImage) {
  prepare(
      {words("qemu-img create -q -f qcow2 -o data_file=data i 1M"), words("mv data data.gone"), words("mkfifo data")});
  // Who opened the pipe would wait for ever, or fail.
  for (const char* line :
       {"info i", "info --output=json i", "check i", "check --output=json i", "check -r all i", "snapshot -l i"}) {
    EXPECT_EQ(ours(words(line)).exit_code, 0) << line;
  }
  EXPECT_EQ(ours(words("snapshot -c test i")).err,
            "qemu-img: Could not create snapshot 'test': -95 (Operation not supported)\n");
  EXPECT_EQ(ours(words("convert -O raw i out")).exit_code, 1);
}

// A stranger's image chooses what is read and written no further than its backing files could: plain files.
TEST_F(ImageDataFile, ThatIsNoPlainPathIsNotOpened) {
  prepare({words("qemu-img create -q -f qcow2 -o data_file=xxxxxxxxxxxx i 1M"),
           words("qemu-img create -q -f qcow2 -b i -F qcow2 overlay")});
  for (const char* name : {"nbd://a/b/cd", "json:{\"a\":1}", "host_device:"}) {
    rename_in_header("i", "xxxxxxxxxxxx", name);
    for (const char* line :
         {"convert -O raw i out", "convert -O raw overlay out", "map i", "map overlay", "compare i i", "resize i 2M",
          "commit overlay", "dd if=i of=out", "measure i", "convert -n -O qcow2 xxxxxxxxxxxx i"}) {
      const ProcessResult result = ours(words(line));
      EXPECT_NE(result.exit_code, 0) << line;
      EXPECT_NE(result.err.find("names with a protocol"), std::string::npos) << line << ": " << result.err;
    }
    EXPECT_EQ(ours(words("info i")).exit_code, 0);
    rename_in_header("i", name, "xxxxxxxxxxxx");
  }
  EXPECT_EQ(ours(words("map i")).exit_code, 0);
  EXPECT_NE(ours(words("create -f qcow2 -o data_file=nbd://a/b/c new 1M")).exit_code, 0);
}

// An image whose data file is itself, or its overlay's, would be written over by what is written to it.
TEST_F(ImageDataFile, ThatIsTheImageItselfIsNotWrittenTo) {
  prepare({words("qemu-img create -q -f qcow2 -o data_file=abc.raw img.raw 1M")});
  rename_in_header("img.raw", "abc.raw", "img.raw");
  const std::string before = read_whole_file(our_dir() + "/img.raw");
  EXPECT_EQ(ours(words("resize img.raw 2M")).exit_code, 1);
  EXPECT_EQ(ours(words("bench -w -c 1 -f qcow2 img.raw")).exit_code, 1);
  EXPECT_EQ(read_whole_file(our_dir() + "/img.raw"), before);
}

// qemu-img 7.2 overwrites it.
TEST_F(ImageDataFile, IsNotTheBackingFile) {
  prepare({words("qemu-img create -q -f qcow2 base 1M"), io({"write -P 5 0 1M"}, "base")});
  const std::string before = read_whole_file(our_dir() + "/base");
  const ProcessResult refused = ours(words("create -f qcow2 -b base -F qcow2 -o data_file=base over"));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("'base' is the backing file, and can't be the data file, too"), std::string::npos)
      << refused.err;
  EXPECT_TRUE(read_whole_file(our_dir() + "/base") == before);
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/over"));
}

}  // namespace
}  // namespace varve::test
