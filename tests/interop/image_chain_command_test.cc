// `image commit` and `image rebase`: what the guest sees stays the same, and QEMU finds nothing wrong with what is
// left.
#include <fmt/format.h>

#include <fstream>
#include <random>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageChainCommand : public ImageCommandPeer {
 protected:
  // base ← middle ← top, and another base ← other: data, zeroes and holes over each other at random places, disks of
  // different sizes.
  void prepare_chains(uint64_t seed, const std::string& options) {
    std::mt19937_64 random(seed);
    std::vector<std::vector<std::string>> commands;
    const auto create = [&](const std::string& name, const std::string& below) {
      const uint64_t size = 2 + random() % 3;
      std::string line = fmt::format("qemu-img create -q -f qcow2 -o {} {} {}M", options, name, size);
      if (!below.empty())
        line = fmt::format("qemu-img create -q -f qcow2 -o {} -b {} -F qcow2 {} {}M", options, below, name, size);
      commands.push_back(words(line));
      std::vector<std::string> writes;
      for (int i = 0; i < 14; ++i) {
        const uint64_t offset = random() % (size << 11) * 512;
        const uint64_t length = std::min<uint64_t>((1 + random() % 300) * 512, (size << 20) - offset);
        const char* kinds[] = {"write -P", "write -P", "write -P", "write -z", "write -P 0", "discard"};
        const std::string kind = kinds[random() % 6];
        writes.push_back(kind == "write -P" ? fmt::format("write -P {} {} {}", 1 + random() % 250, offset, length)
                                            : fmt::format("{} {} {}", kind, offset, length));
      }
      commands.push_back(io(writes, name));
    };
    create("base", "");
    create("middle", "base");
    create("top", "middle");
    create("unrelated", "");
    create("sibling", "base");
    prepare(commands);
  }

  std::string contents(const std::string& directory, const std::string& name) const {
    const std::string out = directory + "/" + name + ".raw";
    run_ok({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", directory + "/" + name, out});
    std::ifstream file(out, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // The same contents and properties; what is allocated may differ.
  void expect_same_disk(const std::string& name, const std::string& format) const {
    EXPECT_EQ(properties(our_dir(), name, format), properties(their_dir(), name, format));
    run_ok({"qemu-img", "compare", "-q", "-f", format, "-F", format, our_dir() + "/" + name, their_dir() + "/" + name});
    if (format == "qcow2") check(name);
  }
  void check(const std::string& name) const {
    run_ok({"qemu-img", "check", "-q", "-f", "qcow2", our_dir() + "/" + name});
  }
};

TEST_F(ImageChainCommand, RefusesInQemusWords) {
  prepare({words("qemu-img create -q -f raw base 1M"), words("qemu-img create -q -f qcow2 -b base -F raw o 2M"),
           words("qemu-img create -q -f qcow2 n 1M"),
           words("qemu-img create -q -f qcow2 -o cluster_size=512 tiny 1M")});
  for (const char* line : {"rebase o",
                           "rebase -b x",
                           "rebase -b x -F qcow2 o",
                           "rebase -b n o",
                           "rebase -b n -F foo o",
                           "rebase -u -b n -F foo o",
                           "rebase -u -b nope o",
                           "rebase -b n -F qcow2 -t foo o",
                           "rebase -b n -F qcow2 -T foo o",
                           "rebase -f foo -b n -F qcow2 o",
                           "rebase -f raw -b n -F qcow2 base",
                           "rebase -f raw -u -b n -F qcow2 base",
                           "rebase -b n -F qcow2 nope",
                           "rebase -p -b nope -F raw o",
                           "rebase a b",
                           "commit n",
                           "commit -f raw base",
                           "commit -b foo o",
                           "commit",
                           "commit -r x o",
                           "commit -t x o",
                           "commit a b",
                           "commit nope",
                           "commit -f foo o",
                           "commit -p n",
                           "rebase -b o -F qcow2 o"}) {
    expect_same(line);
    expect_same_disk("o", "qcow2");
  }
  const std::string long_name(400, 'x');
  expect_same({"rebase", "-u", "-F", "raw", "-b", long_name, "tiny"});
  expect_same({"rebase", "-u", "-F", "raw", "-b", std::string(1024, 'x'), "o"});
  check("tiny");
}

TEST_F(ImageChainCommand, RebaseChangesNamesAsQemuDoes) {
  prepare({words("qemu-img create -q -f raw base 1M"), words("qemu-img create -q -f qcow2 -b base -F raw o 2M"),
           words("qemu-img create -q -f qcow2 n 1M"), io({"write -P 3 0 1M"}, "n")});
  for (const char* line : {"rebase -u -b n -F qcow2 o", "rebase -u -b nowhere/at/all -F raw o",
                           "rebase -u -b base -F raw o", "rebase -b n -F qcow2 o", "rebase -q -p -b base -F raw o",
                           "rebase -u -F qcow2 o", "rebase -U -u -b base -F raw o"}) {
    expect_same(line);
    EXPECT_EQ(properties(our_dir(), "o", "qcow2"), properties(their_dir(), "o", "qcow2")) << line;
  }
  expect_same({"rebase", "-b", "", "o"});
  expect_same_disk("o", "qcow2");
}

TEST_F(ImageChainCommand, RebaseKeepsWhatTheGuestSees) {
  for (const uint64_t seed : {1u, 2u, 3u, 4u, 5u, 6u}) {
    SCOPED_TRACE(seed);
    const char* options[] = {"compat=1.1",  "cluster_size=4k",  "extended_l2=on",
                             "compat=0.10", "cluster_size=512", "refcount_bits=1"};
    prepare_chains(seed, options[seed - 1]);
    const std::string seen = contents(our_dir(), "top");
    for (const std::vector<std::string>& target :
         std::vector<std::vector<std::string>>{{"-b", "base", "-F", "qcow2"},
                                               {"-b", "sibling", "-F", "qcow2"},
                                               {"-b", "unrelated", "-F", "qcow2"},
                                               {"-b", ""},
                                               {"-b", "sibling", "-F", "qcow2"},
                                               {"-b", ""}}) {
      std::vector<std::string> command = {"rebase", "-f", "qcow2"};
      command.insert(command.end(), target.begin(), target.end());
      command.push_back("top");
      expect_same(command);
      EXPECT_TRUE(contents(our_dir(), "top") == seen) << target[1];
      check("top");
    }
    expect_same_disk("top", "qcow2");
  }
}

// One file can be two disks: what its qcow2 tables show, and the bytes of the file themselves. (qemu-img 7.2 looks at
// the name alone, and the guest's disk changes.)
TEST_F(ImageChainCommand, RebaseTellsOneFileReadInTwoFormatsApart) {
  prepare({words("qemu-img create -q -f qcow2 base 1M"), io({"write -P 5 0 1M"}, "base"),
           words("qemu-img create -q -f qcow2 -b base -F raw top 1M"), io({"write -P 7 512k 64k"}, "top")});
  const std::string seen = contents(our_dir(), "top");
  expect_same("rebase -f qcow2 -b base -F qcow2 top");
  EXPECT_TRUE(contents(our_dir(), "top") == seen);
  EXPECT_EQ(properties(our_dir(), "top", "qcow2"), properties(their_dir(), "top", "qcow2"));
  check("top");
}

TEST_F(ImageChainCommand, CommitMovesWhatTheGuestSees) {
  for (const uint64_t seed : {11u, 12u, 13u, 14u, 15u}) {
    SCOPED_TRACE(seed);
    const char* options[] = {"compat=1.1", "cluster_size=4k", "extended_l2=on", "compat=0.10", "cluster_size=512"};
    prepare_chains(seed, options[seed - 11]);
    // Where a base has to grow, growing is another matter.
    run_ok({"qemu-img", "resize", "-q", "-f", "qcow2", our_dir() + "/middle", "4M"});
    run_ok({"qemu-img", "resize", "-q", "-f", "qcow2", our_dir() + "/base", "4M"});
    run_ok({"cp", our_dir() + "/middle", our_dir() + "/base", their_dir()});
    const std::string seen = contents(our_dir(), "top");
    expect_same("commit -f qcow2 top");
    for (const char* name : {"top", "middle", "base"}) check(name);
    EXPECT_TRUE(contents(our_dir(), "top") == seen);
    EXPECT_TRUE(contents(our_dir(), "middle").substr(0, seen.size()) == seen);
    expect_same_disk("top", "qcow2");
    expect_same_disk("middle", "qcow2");
    run_ok(io({"write -P 77 1M 300k"}, our_dir() + "/top"));
    run_ok(io({"write -P 77 1M 300k"}, their_dir() + "/top"));
    const std::string again = contents(our_dir(), "top");
    expect_same("commit -f qcow2 -b base top");
    for (const char* name : {"top", "middle", "base"}) check(name);
    EXPECT_TRUE(contents(our_dir(), "top") == again);
    EXPECT_TRUE(contents(our_dir(), "base").substr(0, again.size()) == again);
    expect_same_disk("base", "qcow2");
  }
}

TEST_F(ImageChainCommand, CommitKeepsSnapshotsOfTheOverlay) {
  prepare({words("qemu-img create -q -f raw base 4M"), words("qemu-img create -q -f qcow2 -b base -F raw top 4M"),
           io({"write -P 1 0 1M"}, "top"), words("qemu-img snapshot -c one top"), io({"write -P 2 512k 1M"}, "top")});
  expect_same("commit -d -f qcow2 top");
  expect_same("commit -f qcow2 top");
  check("top");
  expect_same_disk("base", "raw");
  expect_same("convert -l one -f qcow2 -O raw top out");
  expect_same_disk("out", "raw");
}

TEST_F(ImageChainCommand, CommitGivesTheSpaceBack) {
  prepare({words("qemu-img create -q -f raw base 64M"), words("qemu-img create -q -f qcow2 -b base -F raw top 64M"),
           io({"write -P 1 0 64M"}, "top")});
  expect_same("commit -f qcow2 top");
  EXPECT_LT(std::stoull(run_ok({"stat", "-c", "%s", our_dir() + "/top"})), 1u << 20);
  check("top");
}

}  // namespace
}  // namespace varve::test
