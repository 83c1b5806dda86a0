// `image check` beside qemu-img: images of every kind, damaged at random, have to be described in the same words, with
// the same counts and the same exit code, and be repaired to the same end.
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/endian.h"
#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

struct Kind {
  const char* options;
  const char* size;
  bool has_snapshots;
  bool has_bitmap;
};

// No image has both bitmaps and snapshots: QEMU 7.2 writes a header without snapshots when it opens such an image for a
// repair.
constexpr Kind kKinds[] = {
    {"cluster_size=512", "2M", true, false},
    {"cluster_size=4k", "16M", true, false},
    {"cluster_size=64k", "16M", false, true},
    {"cluster_size=512,refcount_bits=1", "2M", false, true},
    {"cluster_size=1k,refcount_bits=64", "16M", true, false},
    {"cluster_size=2k,refcount_bits=8", "16M", true, false},
    {"cluster_size=16k,extended_l2=on", "16M", true, false},
    {"cluster_size=4k,compat=0.10", "16M", true, false},
    {"cluster_size=4k,refcount_bits=2", "16M", false, true},
    {"cluster_size=4k,data_file=data.raw", "16M", false, false},
    {"cluster_size=4k,refcount_bits=32,compression_type=zstd", "16M", true, false},
    {"cluster_size=2k,refcount_bits=4", "16M", true, false},
    {"cluster_size=2M,refcount_bits=16", "16M", true, false},
};

class Damage {
 public:
  Damage(std::string& image, std::mt19937_64& random) : b_(image), random_(random) {
    cluster_ = uint64_t{1} << get<uint32_t>(20);
    l1_ = get<uint64_t>(40);
    l1_size_ = get<uint32_t>(36);
    for (uint64_t i = 0; i < l1_size_; ++i) {
      const uint64_t l2 = get<uint64_t>(l1_ + 8 * i) & 0x00fffffffffffe00;
      if (l2 != 0) l2s_.push_back(l2);
    }
    for (uint64_t i = 0; i < cluster_ / 8; ++i) {
      const auto block = get<uint64_t>(get<uint64_t>(48) + 8 * i);
      if (block != 0) blocks_.push_back(block);
    }
  }

  void strike() {
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        if (!l2s_.empty()) spoil(used_entry());
        return;
      case 3:
        spoil(l1_ + 8 * below(l1_size_));
        return;
      case 4:
        spoil(get<uint64_t>(48) + 8 * (below(3) == 0 ? below(cluster_ / 8) : 0));
        return;
      case 5:
      case 6:
        if (!blocks_.empty()) {
          uint64_t at = blocks_[below(blocks_.size())];  // one call after the other: compilers differ in the order
          at += below(std::min<uint64_t>(cluster_, 512));
          if (at < b_.size()) b_[at] = static_cast<char>(below(2) == 0 ? static_cast<char>(below(4)) : b_[at] ^ 1);
        }
        return;
      default:
        b_.resize(std::max(cluster_, b_.size() - (1 + below(5)) * 512));
    }
  }

 private:
  uint64_t below(uint64_t n) { return random_() % n; }
  template <typename T>
  T get(uint64_t at) const {
    return at + sizeof(T) <= b_.size() ? load_be<T>(b_.data() + at) : T{0};
  }
  uint64_t used_entry() {
    const uint64_t l2 = l2s_[below(l2s_.size())];
    for (int attempt = 0; attempt < 200; ++attempt) {
      const uint64_t at = l2 + 8 * below(cluster_ / 8);
      if (get<uint64_t>(at) != 0) return at;
    }
    return l2;
  }
  void spoil(uint64_t at) {
    if (at + 8 > b_.size()) return;
    const auto old = get<uint64_t>(at);
    const uint64_t values[] = {0,
                               old ^ uint64_t{1} << 63,
                               old ^ uint64_t{1} << 62,
                               old ^ 1,
                               old ^ uint64_t{1} << below(48),
                               below(b_.size() / cluster_ + 2) * cluster_ | uint64_t{1} << 63,
                               below(b_.size()),
                               (old & ~uint64_t{0x1ff}) + 512};
    store_be(b_.data() + at, values[below(std::size(values))]);
  }

  std::string& b_;
  std::mt19937_64& random_;
  uint64_t cluster_ = 0;
  uint64_t l1_ = 0;
  uint64_t l1_size_ = 0;
  std::vector<uint64_t> l2s_;
  std::vector<uint64_t> blocks_;
};

class ImageCheckCommand : public ImageCommandPeer {
 protected:
  void make(const Kind& kind, std::mt19937_64& random) {
    std::vector<std::string> writes = {"qemu-io", "-f", "qcow2"};
    for (int i = 0; i < 10; ++i) {
      const uint64_t offset = random() % 3000 * 512;
      const uint64_t length = (1 + random() % 60) * 512;
      writes.insert(writes.end(), {"-c", fmt::format("write -P {} {} {}", i + 1, offset, length)});
    }
    writes.emplace_back("disk");
    prepare({{"qemu-img", "create", "-q", "-f", "qcow2", "-o", kind.options, "disk", kind.size}, writes});
    if (kind.has_bitmap) prepare({words("qemu-img bitmap --add disk b0")});
    if (!kind.has_snapshots) return;
    prepare(
        {words("qemu-img snapshot -c one disk"),
         {"qemu-io", "-f", "qcow2", "-c", "write -P 99 0 64k", "-c", "discard 100k 8k", "-c", "write -z 200k 32k",
          "disk"},
         words("qemu-img snapshot -c two disk"),
         {"qemu-io", "-f", "qcow2", "-c",
          std::string(kind.options).starts_with("cluster_size=2M") ? "write -c -P 5 8M 2M" : "write -c -P 5 1920k 64k",
          "disk"}});
  }

  // What Varve on purpose does not: make a file grow by as much as a damaged entry says (check/compare.cc).
  static bool grows_without_bounds(const ProcessResult& mine, const ProcessResult& theirs) {
    const char* refusal = "ERROR could not resize image: File too large\n";
    return mine.err.find(refusal) != std::string::npos && theirs.err.find(refusal) == std::string::npos;
  }

  // What QEMU does and Varve on purpose does not: it gives up where a repair would have to write over metadata.
  static bool gave_up(const ProcessResult& theirs) {
    return theirs.err.find("Preventing invalid write") != std::string::npos ||
           theirs.err.find("ERROR writing refblock") != std::string::npos ||
           theirs.err.find("Check failed: No medium found") != std::string::npos ||
           theirs.err.find("ERROR l2_offset") != std::string::npos;
  }
};

TEST_F(ImageCheckCommand, SaysAndRepairsWhatQemuDoes) {
  const char* given = std::getenv("VARVE_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : 20260101;
  const char* rounds_given = std::getenv("VARVE_TEST_ROUNDS");
  const int rounds = rounds_given != nullptr ? std::atoi(rounds_given) : 16;
  std::mt19937_64 random(seed);
  int compared = 0;
  for (const Kind& kind : kKinds) {
    make(kind, random);
    const std::string whole = read_whole_file(their_dir() + "/disk");
    for (int round = 0; round < rounds; ++round) {
      SCOPED_TRACE(fmt::format("VARVE_TEST_SEED={} kind {} round {}", seed, kind.options, round));
      std::string image = whole;
      Damage damage(image, random);
      for (uint64_t strikes = 1 + random() % 3; strikes > 0; --strikes) damage.strike();
      put("disk", image);
      const std::vector<std::string> modes[] = {{"check", "disk"},
                                                {"check", "--output=json", "disk"},
                                                {"check", "-r", "leaks", "disk"},
                                                {"check", "-r", "all", "disk"}};
      const auto& mode = modes[kind.has_bitmap ? round % 2 : round % 4];
      const ProcessResult theirs = qemu(mode);
      const ProcessResult mine = ours(mode);
      if (gave_up(theirs) || grows_without_bounds(mine, theirs)) continue;
      ++compared;
      EXPECT_EQ(mine.out, theirs.out);
      EXPECT_EQ(mine.err, theirs.err);
      EXPECT_EQ(mine.exit_code, theirs.exit_code);
      if (mine.exit_code == 0) {
        // What was repaired is clean to QEMU, too.
        const ProcessResult verdict = run({"qemu-img", "check", "disk"}, run_options(our_dir()));
        EXPECT_EQ(verdict.exit_code, 0) << verdict.out << verdict.err;
        expect_same_view(words("check disk"));
      }
      if (HasFailure()) return;
    }
  }
  EXPECT_GT(compared, rounds * 10);
}

TEST_F(ImageCheckCommand, KeepsWhatTheGuestSees) {
  std::mt19937_64 random(7);
  for (const Kind& kind : kKinds) {
    if (std::string(kind.options).find("data_file") != std::string::npos) continue;
    SCOPED_TRACE(kind.options);
    make(kind, random);
    run_ok({"qemu-img", "convert", "-O", "raw", "disk", "before.raw"}, run_options(our_dir()));
    // A refcount table that points nowhere: the whole structure is lost.
    std::string image = read_whole_file(our_dir() + "/disk");
    const auto table = load_be<uint64_t>(image.data() + 48);
    store_be<uint64_t>(image.data() + table, 0);
    put("disk", image);
    const ProcessResult repaired = ours(words("check -r all disk"));
    EXPECT_EQ(repaired.exit_code, 0) << repaired.out << repaired.err;
    run_ok({"qemu-img", "check", "disk"}, run_options(our_dir()));
    run_ok({"qemu-img", "compare", "-f", "qcow2", "-F", "raw", "disk", "before.raw"}, run_options(our_dir()));
    std::filesystem::remove(our_dir() + "/before.raw");
  }
}

TEST_F(ImageCheckCommand, HasQemusOptionsAndErrors) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"),
           words("qemu-img create -q -f raw raw 1M"),
           {"qemu-io", "-f", "qcow2", "-c", "write 0 64k", "disk"}});
  for (const char* line : {"check disk",
                           "check -f qcow2 disk",
                           "check --output=json disk",
                           "check --output json -f qcow2 disk",
                           "check -q disk",
                           "check -T none disk",
                           "check -T foo disk",
                           "check --output=x disk",
                           "check",
                           "check disk disk",
                           "check -r none disk",
                           "check raw",
                           "check -f raw disk",
                           "check -f qcow2 raw",
                           "check -f x disk",
                           "check nope",
                           "check -r all disk",
                           "check -r leaks disk",
                           "check -U disk",
                           "check -U -r all disk",
                           "check --foo disk",
                           "check -r",
                           "check --image-opts driver=qcow2,file.filename=disk"}) {
    expect_same(line);
  }
}

TEST_F(ImageCheckCommand, ClearsTheDirtyAndTheCorruptBit) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  for (const char bit : {'\1', '\2', '\3'}) {
    std::string image = read_whole_file(our_dir() + "/disk");
    image[79] = bit;
    put("disk", image);
    expect_same("check disk");
    EXPECT_EQ(read_whole_file(our_dir() + "/disk"), image);
    expect_same("check -r leaks disk");
    EXPECT_EQ(read_whole_file(our_dir() + "/disk")[79], 0);
  }
}

// An L1 entry without an offset makes a table of the header, and the new structure's place stands in it.
TEST_F(ImageCheckCommand, RebuildsUnderATableThatIsTheHeader) {
  for (const char* cluster_size : {"512", "4k"}) {
    SCOPED_TRACE(cluster_size);
    prepare({words(fmt::format("qemu-img create -q -f qcow2 -o cluster_size={} disk 1M", cluster_size)),
             {"qemu-io", "-f", "qcow2", "-c", "write 0 64k", "disk"}});
    std::string image = read_whole_file(our_dir() + "/disk");
    store_be<uint64_t>(image.data() + load_be<uint64_t>(image.data() + 48), 0);
    const auto l1 = load_be<uint64_t>(image.data() + 40);
    const auto last = load_be<uint32_t>(image.data() + 36) - 1;
    store_be<uint64_t>(image.data() + l1 + 8 * last, uint64_t{1} << 63);
    put("disk", image);
    expect_same("check -r all disk");
    expect_same("check disk");
  }
}

// The refcount block is said to lie 32 TiB from here: most file systems have no such files.
TEST_F(ImageCheckCommand, RebuildsWhatTheFileSystemCanNotReach) {
  prepare({words("qemu-img create -q -f qcow2 -o cluster_size=2M disk 16M"),
           {"qemu-io", "-f", "qcow2", "-c", "write 0 64k", "disk"}});
  std::string image = read_whole_file(our_dir() + "/disk");
  store_be<uint64_t>(image.data() + load_be<uint64_t>(image.data() + 48), uint64_t{32} << 40);
  put("disk", image);
  expect_same("check -r all disk");
  expect_same("check disk");
  EXPECT_EQ(std::filesystem::file_size(our_dir() + "/disk"), std::filesystem::file_size(their_dir() + "/disk"));
}

// Behind a snapshot table that nothing counted, QEMU has nothing to free, and says so.
TEST_F(ImageCheckCommand, ReplacesASnapshotTableThatIsNotCounted) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), words("qemu-img snapshot -c one disk")});
  std::string image = read_whole_file(our_dir() + "/disk");
  const auto table = load_be<uint64_t>(image.data() + 64);
  ASSERT_EQ(load_be<uint32_t>(image.data() + table + 36), 24u);
  store_be<uint32_t>(image.data() + table + 36, 8);  // extra data: too short to hold the disk's size
  image.resize(table + 48 + 8);
  put("disk", image);
  expect_same("check -r all disk");
  expect_same("check disk");
}

TEST_F(ImageCheckCommand, KeepsSnapshotsOfAnImageWithBitmapsThroughARepair) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), words("qemu-img snapshot -c one disk"),
           words("qemu-img bitmap --add disk b0")});
  const std::string image = read_whole_file(our_dir() + "/disk");
  EXPECT_EQ(ours(words("check -r all disk")).exit_code, 0);
  EXPECT_EQ(read_whole_file(our_dir() + "/disk"), image);
}

TEST_F(ImageCheckCommand, DeepFindsWhatDoesNotDecode) {
  prepare(
      {words("qemu-img create -q -f qcow2 disk 1M"), {"qemu-io", "-f", "qcow2", "-c", "write -c -P 5 0 64k", "disk"}});
  EXPECT_EQ(ours(words("check --deep disk")).exit_code, 0);
  std::string image = read_whole_file(our_dir() + "/disk");
  const auto l2 = load_be<uint64_t>(image.data() + load_be<uint64_t>(image.data() + 40)) & 0x00fffffffffffe00;
  const uint64_t at = load_be<uint64_t>(image.data() + l2) & ((uint64_t{1} << 54) - 1);
  for (size_t i = 0; i < 16; ++i) image[at + i] = '\xff';
  put("disk", image);
  EXPECT_EQ(ours(words("check disk")).exit_code, 0);
  const ProcessResult deep = ours(words("check --deep disk"));
  EXPECT_EQ(deep.exit_code, 2);
  EXPECT_NE(deep.err.find("does not decode: guest offset 0x0"), std::string::npos) << deep.err;
}

TEST_F(ImageCheckCommand, DeepFindsTablesThatAreReachedTwiceOrOverlap) {
  prepare({words("qemu-img create -q -f qcow2 -o cluster_size=512 disk 1M"),
           {"qemu-io", "-f", "qcow2", "-c", "write 0 512", "disk"},
           words("qemu-img snapshot -c one disk")});
  std::string image = read_whole_file(our_dir() + "/disk");
  const auto l1 = load_be<uint64_t>(image.data() + 40);
  store_be(image.data() + l1 + 8, load_be<uint64_t>(image.data() + l1));
  put("disk", image);
  const ProcessResult twice = ours(words("check --deep disk"));
  EXPECT_EQ(twice.exit_code, 2);
  EXPECT_NE(twice.err.find("is reached from l1_index 0 and 1"), std::string::npos) << twice.err;
  store_be(image.data() + load_be<uint64_t>(image.data() + 64), l1);
  put("disk", image);
  const ProcessResult overlap = ours(words("check --deep disk"));
  EXPECT_NE(overlap.err.find("the active L1 table and the L1 table of snapshot 1 (one) overlap"), std::string::npos)
      << overlap.err;
}

}  // namespace
}  // namespace varve::test
