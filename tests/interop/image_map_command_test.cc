// `image map`, `compare` and `dd` beside qemu-img: the same text, JSON and exit codes, on images of every kind and on
// seeded random chains.
#include <fmt/format.h>

#include <random>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageMapCommand : public ImageCommandPeer {
 protected:
  void expect_same_map(const std::string& name) const {
    expect_same_view({"map", name});
    expect_same_view({"map", "--output=json", name});
  }
  void io(const std::string& name, const std::string& format, const std::vector<std::string>& commands) const {
    std::vector<std::string> argv = {"qemu-io", "-f", format};
    for (const std::string& command : commands) {
      argv.push_back("-c");
      argv.push_back(command);
    }
    argv.push_back(name);
    run_ok(argv, run_options(our_dir()));
  }
  void make(const std::string& line) const {
    std::vector<std::string> argv = words("qemu-img create -q " + line);
    run_ok(argv, run_options(our_dir()));
  }
  // The same new image from both, and the same words.
  void expect_same_copy(const std::string& line) const {
    expect_same("dd " + line + " of=copy");
    run_ok({"cmp", our_dir() + "/copy", their_dir() + "/copy"});
  }
};

TEST_F(ImageMapCommand, PrintsWhatQemuPrintsForEveryKindOfImage) {
  make("-f qcow2 base 64M");
  io("base", "qcow2", {"write -P 1 0 1M", "write -P 2 5M 100k", "write -z 6M 1M", "write -P 9 63M 1M"});
  make("-f qcow2 -b base -F qcow2 top 80M");
  io("top", "qcow2", {"write -P 4 512k 64k", "write -z 5M 64k", "discard 0 64k", "write -P 4 70M 64k"});
  make("-f raw raw 10M");
  io("raw", "raw", {"write 1M 64k"});
  make("-f qcow2 -b raw -F raw over-raw 20M");
  make("-f qcow2 -o preallocation=metadata preallocated 300M");
  io("preallocated", "qcow2", {"write 1M 64k"});
  make("-f qcow2 -o extended_l2=on extended 64M");
  io("extended", "qcow2", {"write 4k 6k", "write 100k 300k", "write -z 200k 10k"});
  make("-f qcow2 -o extended_l2=on,preallocation=metadata extended-preallocated 64M");
  make("-f qcow2 -o compat=0.10,cluster_size=512 v2 1M");
  io("v2", "qcow2", {"write 1000 3000", "write 512000 100000"});
  make("-f qcow2 empty 0");
  run_ok(words("qemu-img convert -c -O qcow2 top compressed"), run_options(our_dir()));
  io("compressed", "qcow2", {"write -z 0 64k"});
  put("odd", std::string(1000, 'x'));
  put("nothing", "");
  for (const char* name : {"base", "top", "raw", "over-raw", "preallocated", "extended", "extended-preallocated", "v2",
                           "empty", "compressed", "odd", "nothing"}) {
    expect_same_map(name);
  }
}

TEST_F(ImageMapCommand, TakesTheSameOptionsAndSaysTheSameOfWrongOnes) {
  make("-f qcow2 image 10M");
  io("image", "qcow2", {"write 1M 3M"});
  for (const char* line : {"map -s 512k -l 1M image",
                           "map --start-offset=1500000 --max-length=1000 --output=json image",
                           "map -s 100G --output=json image",
                           "map -s 100G image",
                           "map -f raw -U image",
                           "map -s x image",
                           "map -l -1 image",
                           "map",
                           "map image image",
                           "map --output=foo image",
                           "map absent",
                           "map -f foo image",
                           "map --image-opts driver=qcow2,file.filename=image",
                           "map --image-opts driver=foo,file.filename=image",
                           "map --image-opts driver=raw,foo=1,file.filename=image",
                           "map --image-opts -f qcow2 image",
                           "map --image-opts driver=qcow2,file.filename=absent",
                           "map --object secret image",
                           "map --object secret,id=a,data=b image",
                           "map --object foo,id=a image",
                           R"(map json:{"driver":"qcow2","file":{"driver":"file","filename":"image"}})"}) {
    expect_same_view(words(line));
  }
}

TEST_F(ImageMapCommand, ComparesAsQemuDoes) {
  make("-f qcow2 base 64M");
  io("base", "qcow2", {"write -P 1 0 1M", "write -P 2 5M 100k", "write -P 9 63M 1M"});
  for (const char* name : {"a", "b", "c"}) make(fmt::format("-f qcow2 -b base -F qcow2 {} 80M", name));
  io("a", "qcow2", {"write -P 4 512k 64k", "write -P 4 70M 64k"});
  io("b", "qcow2", {"write -P 4 512k 64k", "write -P 4 70M 64k"});
  io("c", "qcow2", {"write -P 4 512k 64k", "write -P 4 70M 64k", "write -P 5 70200k 512"});
  make("-f raw empty 0");
  run_ok(words("qemu-img convert -O raw a flat"), run_options(our_dir()));
  for (const char* pair : {"a a", "a b", "b c", "c b", "base a", "a base", "base empty", "empty empty", "a flat",
                           "flat a", "absent a", "a absent"}) {
    expect_same_view(words(fmt::format("compare {}", pair)));
    expect_same_view(words(fmt::format("compare -s {}", pair)));
    expect_same_view(words(fmt::format("compare -q -U {}", pair)));
  }
  expect_same_view(words("compare -f raw -F qcow2 a a"));
  expect_same_view(words("compare -f foo a a"));
  expect_same_view(words("compare -T foo a a"));
  expect_same_view(words("compare a"));
  expect_same_view(words("compare --image-opts driver=qcow2,file.filename=a driver=qcow2,file.filename=c"));
}

TEST_F(ImageMapCommand, FindsTheOneSectorThatDiffersInRandomChains) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 random(seed);
  const auto below = [&](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n - 1)(random); };
  constexpr const char* kOptions[] = {"cluster_size=64k", "cluster_size=4k", "extended_l2=on", "cluster_size=512",
                                      "compat=0.10"};
  for (int round = 0; round < 4; ++round) {
    std::string below_name;
    for (int layer = 0; layer < 3; ++layer) {
      const std::string name = fmt::format("r{}l{}", round, layer);
      const std::string backing = below_name.empty() ? "" : fmt::format("-b {} -F qcow2 ", below_name);
      make(fmt::format("-f qcow2 -o {} {}{} {}k", kOptions[below(std::size(kOptions))], backing, name,
                       1024 + 512 * below(8)));
      std::vector<std::string> commands;
      for (int i = 0; i < 12; ++i) {
        const uint64_t offset = 512 * below(1800);
        const uint64_t length = 512 * (1 + below(200));
        const uint64_t kind = below(4);
        commands.push_back(kind == 0   ? fmt::format("write -z {} {}", offset, length)
                           : kind == 1 ? fmt::format("discard {} {}", offset, length)
                                       : fmt::format("write -P {} {} {}", 1 + below(200), offset, length));
      }
      io(name, "qcow2", commands);
      expect_same_map(name);
      if (!below_name.empty()) expect_same_view({"compare", below_name, name});
      below_name = name;
    }
    const std::string copy = below_name + "copy";
    run_ok({"qemu-img", "convert", "-O", "raw", below_name, copy}, run_options(our_dir()));
    expect_same_view({"compare", below_name, copy});
    io(copy, "raw", {fmt::format("write -P 255 {} 1", below(1 << 20))});
    expect_same_view({"compare", below_name, copy});
  }
}

TEST_F(ImageMapCommand, CopiesBlocksAsQemuDoes) {
  prepare({words("qemu-img create -q -f qcow2 image 10M"), {"qemu-io", "-f", "qcow2", "-c", "write 1M 300k", "image"}});
  put("odd", std::string(1300, 'x'));
  for (const char* line :
       {"if=image bs=1M count=2", "if=image bs=1M skip=1", "if=image bs=1M skip=10", "if=image bs=1M skip=11", "if=odd",
        "if=odd bs=300 count=2", "if=odd bs=300 skip=1", "-f raw if=image count=3", "if=image count=0"}) {
    expect_same_copy(line);
  }
  for (const char* line : {"dd", "dd if=image", "dd foo if=image of=x", "dd if=image of=x bs=0",
                           "dd if=image of=x bs=3G", "dd if=image of=x bs=x", "dd if=image of=x count=-1",
                           "dd if=image of=x isize=4", "dd -O foo if=image of=x", "dd if=absent of=x"}) {
    expect_same(line);
  }
  expect_same("dd -O qcow2 if=image of=copy.qcow2 bs=64k count=30");
  expect_same_image("copy.qcow2", "qcow2");
}

}  // namespace
}  // namespace varve::test
