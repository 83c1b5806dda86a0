// What images, formats and drivers are called on the command line: names that only QEMU knows, names with colons,
// disks that are no file; and how long the files of new images are.
#include <fmt/format.h>

#include <filesystem>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageNamesCommand : public ImageCommandPeer {
 protected:
  void expect_same_file_size(const std::string& name) const {
    EXPECT_EQ(std::filesystem::file_size(our_dir() + "/" + name), std::filesystem::file_size(their_dir() + "/" + name))
        << name;
  }
  void start_afresh(const std::string& name) const {
    for (const std::string& directory : {our_dir(), their_dir()}) std::filesystem::remove(directory + "/" + name);
  }
};

TEST_F(ImageNamesCommand, AnswersForDriversThatMakeNoImages) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  for (const char* driver : {"bochs", "cloop", "dmg", "null-co", "blkdebug", "throttle", "quorum", "vvfat",
                             "copy-before-write", "nothing"}) {
    expect_same(fmt::format("create -f {} new 1M", driver));
    expect_same(fmt::format("create -f {} -o help", driver));
    expect_same(fmt::format("convert -f qcow2 -O {} disk new", driver));
    expect_same(fmt::format("convert -O {} -o help disk new", driver));
    expect_same(fmt::format("measure -O {} --size 1M", driver));
    expect_same(fmt::format("amend -f {} -o help disk", driver));
    expect_same(fmt::format("dd -O {} if=disk of=new", driver));
    EXPECT_FALSE(std::filesystem::exists(our_dir() + "/new")) << driver;
  }
  for (const char* driver : {"vmdk", "host_device", "nbd", "raw"}) {
    expect_same(fmt::format("amend -f {} -o help disk", driver));
  }
}

TEST_F(ImageNamesCommand, RecordsEveryBackingFormatThatQemuKnows) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  for (const char* driver : {"bochs", "file", "host_device", "nbd", "vmdk", "luks", "raw", "qcow2", "nothing"}) {
    expect_same(fmt::format("rebase -u -b base -F {} disk", driver));
    EXPECT_EQ(properties(our_dir(), "disk", "qcow2"), properties(their_dir(), "disk", "qcow2")) << driver;
    expect_same(fmt::format("create -u -f qcow2 -b base -F {} over 1M", driver));
    if (driver == std::string("nothing")) continue;
    EXPECT_EQ(properties(our_dir(), "over", "qcow2"), properties(their_dir(), "over", "qcow2")) << driver;
  }
}

// A backing file is compared with what it is to be; where its format can't be read, nothing is changed.
TEST_F(ImageNamesCommand, RebasesOnNothingThatItCanNotRead) {
  prepare({words("qemu-img create -q -f qcow2 base 1M"), words("qemu-img create -q -f qcow2 disk 1M")});
  EXPECT_EQ(ours(words("rebase -b base -F vmdk disk")).err,
            "qemu-img: Could not open new backing file 'base': Unknown driver 'vmdk'\n");
  EXPECT_EQ(properties(our_dir(), "disk", "qcow2"), properties(their_dir(), "disk", "qcow2"));
}

TEST_F(ImageNamesCommand, MakesFilesWhoseNamesHaveColons) {
  for (const char* line :
       {"create -f qcow2 ./a:b 1M", "create -f qcow2 file:c:d 1M", "create -f raw file:e:f 1M",
        "create -f qcow2 -b ./c:d -F qcow2 file:over:lay", "create -f qcow2 file:no/where 1M",
        "create -f raw file:no/where 1M", "create -f qcow2 a:b 1M", "convert -f qcow2 -O raw ./a:b file:g:h",
        "convert -f qcow2 -O qcow2 file:a:b file:no/where", "dd -O raw bs=1k count=3 if=file:g:h of=file:i:j"}) {
    expect_same(line);
  }
  for (const char* name : {"a:b", "c:d", "over:lay"}) expect_same_image(std::string("./") + name, "qcow2");
  for (const char* name : {"e:f", "g:h", "i:j"}) expect_same_image(std::string("./") + name, "raw");
  EXPECT_FALSE(std::filesystem::exists(our_dir() + "/file:c:d"));
}

TEST_F(ImageNamesCommand, ReadsDisksOfZeroes) {
  const std::vector<std::string> zeroes = {"json:{'driver': 'null-co', 'size': 1048576, 'read-zeroes': true}",
                                           "json:{'driver': 'null-aio', 'size': 1048577, 'read-zeroes': 'on'}",
                                           "json:{'driver': 'null-co', 'read-zeroes': true}"};
  for (const std::string& disk : zeroes) {
    expect_same({"convert", "-O", "qcow2", disk, "copy"});
    expect_same_image("copy", "qcow2");
    expect_same("map copy");
    expect_same({"compare", disk, "copy"});
  }
  for (const char* description :
       {"driver=null-co,foo=3M", "driver=file,filename=copy,foo=1", "driver=qcow2,file.filename=copy,file.foo=1",
        "driver=qcow2,file.filename=copy,foo=1", "driver=raw,file.filename=copy,file.x.y=1"}) {
    expect_same({"convert", "-O", "raw", "--image-opts", description, "other"});
  }
  expect_same({"convert", "-S", "0", "-O", "qcow2", zeroes[0], "copy"});
  expect_same("map copy");
  expect_same({"convert", "-O", "raw", "--image-opts", "driver=null-co,size=3M,read-zeroes=on", "copy"});
  expect_same_image("copy", "raw");
}

// The last table of a file is as long as what stands in it, and no longer.
TEST_F(ImageNamesCommand, EndsFilesWhereQemuEndsThem) {
  for (const char* options : {"", "-o cluster_size=512", "-o cluster_size=2M", "-o extended_l2=on", "-o compat=0.10",
                              "-o refcount_bits=64", "-o preallocation=metadata", "-o preallocation=falloc",
                              "-o preallocation=full", "-o data_file=data", "-o data_file=data,data_file_raw=on"}) {
    expect_same(fmt::format("create -f qcow2 {} disk 10M", options));
    expect_same_file_size("disk");
    start_afresh("disk");
    start_afresh("data");
  }
}

TEST_F(ImageNamesCommand, EndsFilesBehindTheirBitmapsAsQemuDoes) {
  expect_same("create -f qcow2 -o cluster_size=2M disk 2T");
  expect_same("bitmap --add --granularity 512 -f qcow2 disk first");
  expect_same_file_size("disk");
  expect_same("bitmap --add -g 2M disk second");
  expect_same_file_size("disk");
  EXPECT_EQ(ours(words("measure -O qcow2 disk")).out, qemu(words("measure -O qcow2 disk")).out);
  run_ok({"qemu-img", "check", "-q", "-f", "qcow2", "disk"}, run_options(our_dir()));
}

}  // namespace
}  // namespace varve::test
