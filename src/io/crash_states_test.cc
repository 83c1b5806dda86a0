#include "io/crash_states.h"

#include <gtest/gtest.h>

#include <functional>
#include <set>

namespace varve {
namespace {

constexpr uint64_t kSector = 512;

std::vector<std::byte> bytes(size_t n, int value) {
  return std::vector<std::byte>(n, std::byte(value));
}

// One character for the first byte of every sector: '.' for zero, else 'a' + value.
std::string picture(MemoryDevice& disk) {
  std::string text;
  std::byte value{};
  const uint64_t size = *disk.size();
  for (uint64_t offset = 0; offset < size; offset += kSector) {
    EXPECT_TRUE(disk.read_at(offset, {&value, 1}));
    text += value == std::byte{0} ? '.' : static_cast<char>('a' + std::to_integer<int>(value) - 1);
  }
  return text;
}

class CrashStates : public testing::Test {
 protected:
  void write(FaultDevice& device, uint64_t sector, size_t sectors, int value) {
    ASSERT_TRUE(device.write_at(sector * kSector, bytes(sectors * kSector, value)));
  }
  // The pictures of all states, of all disks.
  std::set<std::string> states(const CrashOptions& options) {
    std::set<std::string> result;
    for_each_crash_state(*control_, options, [&](CrashState& state) {
      std::string text;
      for (const auto& disk : state.disks) text += (text.empty() ? "" : "|") + picture(*disk);
      result.insert(text);
      EXPECT_FALSE(state.description.empty());
      return true;
    });
    return result;
  }
  static CrashOptions only(bool missing, bool alone, bool torn) {
    return {.all_subsets_up_to = 0, .each_missing = missing, .each_alone = alone, .torn = torn, .random_states = 0};
  }

  std::shared_ptr<FaultControl> control_ = std::make_shared<FaultControl>();
  FaultDevice vda_{std::make_unique<MemoryDevice>("vda", 4 * kSector), control_};
};

using Pictures = std::set<std::string>;

TEST_F(CrashStates, ARunWithoutOperationsHasOneState) {
  EXPECT_EQ(states({}), Pictures{"...."});
  EXPECT_EQ(for_each_crash_state(*control_, {}, [](CrashState&) { return true; }), 1u);
}

TEST_F(CrashStates, UnflushedOperationsMayAllBeLostOrAllBeThere) {
  write(vda_, 0, 1, 1);
  write(vda_, 1, 1, 2);
  write(vda_, 2, 1, 3);
  EXPECT_EQ(states(only(false, false, false)), (Pictures{"....", "a...", "ab..", "abc."}));
}

TEST_F(CrashStates, WhatWasFlushedStays) {
  write(vda_, 0, 1, 1);
  ASSERT_TRUE(vda_.flush());
  write(vda_, 1, 1, 2);
  ASSERT_TRUE(vda_.flush());
  write(vda_, 2, 1, 3);
  EXPECT_EQ(states({}), (Pictures{"....", "a...", "ab..", "abc."}));
  // No state twice: not "all before the flush" and "none after it".
  EXPECT_EQ(for_each_crash_state(*control_, {}, [](CrashState&) { return true; }), 4u);
}

TEST_F(CrashStates, EachOneMayBeMissingOrAlone) {
  for (int i = 0; i < 4; ++i) write(vda_, static_cast<uint64_t>(i), 1, i + 1);
  const Pictures none_or_all = {"....", "a...", "ab..", "abc.", "abcd"};
  Pictures missing = none_or_all;
  missing.insert({".b..", ".bc.", "a.c.", ".bcd", "a.cd", "ab.d"});
  EXPECT_EQ(states(only(true, false, false)), missing);
  Pictures alone = none_or_all;
  alone.insert({".b..", "..c.", "...d"});
  EXPECT_EQ(states(only(false, true, false)), alone);
}

// Against a model that knows nothing of subsets and orders: every way to pick some of the writes, one after the other.
TEST_F(CrashStates, UpToEightUnflushedWritesComeInEverySubsetAndOrder) {
  struct Write {
    uint64_t sector;
    size_t sectors;
  };
  const std::vector<Write> writes = {{0, 2}, {2, 1}, {1, 2}, {3, 1}, {0, 1}};
  for (size_t i = 0; i < writes.size(); ++i) write(vda_, writes[i].sector, writes[i].sectors, static_cast<int>(i) + 1);
  Pictures expected;
  const std::function<void(const std::string&, unsigned)> pick = [&](const std::string& disk, unsigned used) {
    expected.insert(disk);
    for (size_t i = 0; i < writes.size(); ++i) {
      if ((used >> i & 1) != 0) continue;
      std::string next = disk;
      next.replace(writes[i].sector, writes[i].sectors, std::string(writes[i].sectors, static_cast<char>('a' + i)));
      pick(next, used | 1u << i);
    }
  };
  pick("....", 0);
  CrashOptions options = only(false, false, false);
  options.all_subsets_up_to = 8;
  EXPECT_EQ(states(options), expected);
  EXPECT_GT(expected.size(), 30u);
  // Eight that do not overlap have 2^8 states, and no order.
  vda_.control().start_over();
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(vda_.write_at(static_cast<uint64_t>(i) * kSector, bytes(kSector, i + 1)));
  EXPECT_EQ(for_each_crash_state(*control_, options, [](CrashState&) { return true; }), 256u);
  // A ninth, and only the rest of the options counts.
  ASSERT_TRUE(vda_.write_at(8 * kSector, bytes(kSector, 9)));
  EXPECT_EQ(for_each_crash_state(*control_, options, [](CrashState&) { return true; }), 257u);
}

TEST_F(CrashStates, TheLastWriteMayBeTornAtSectors) {
  write(vda_, 0, 1, 1);
  write(vda_, 1, 3, 2);
  const Pictures seen = states(only(false, false, true));
  for (const char* expected : {".b..", "..bb", ".bb.", "...b", "ab..", "a.bb", "abb.", "a..b", "abbb", "...."}) {
    EXPECT_EQ(seen.count(expected), 1u) << expected;
  }
}

TEST_F(CrashStates, ASectorIsNeverTorn) {
  ASSERT_TRUE(vda_.write_at(100, bytes(412, 1)));
  ASSERT_TRUE(vda_.flush());
  ASSERT_TRUE(vda_.write_at(0, bytes(512, 2)));
  for_each_crash_state(*control_, {.random_states = 50}, [](CrashState& state) {
    std::vector<std::byte> sector(512);
    EXPECT_TRUE(state.disks[0]->read_at(0, sector));
    const bool empty = sector == bytes(512, 0);
    const bool second = sector == bytes(512, 2);
    auto first = bytes(512, 1);
    std::fill_n(first.begin(), 100, std::byte{0});
    EXPECT_TRUE(empty || second || sector == first) << state.description;
    return true;
  });
}

TEST_F(CrashStates, TornPartsOfAnUnalignedWriteKeepTheirBytes) {
  std::vector<std::byte> data(1200);
  for (size_t i = 0; i < data.size(); ++i) data[i] = std::byte(1 + i % 250);
  ASSERT_TRUE(vda_.write_at(300, data));
  size_t torn = 0;
  for_each_crash_state(*control_, {}, [&](CrashState& state) {
    std::vector<std::byte> disk(2048);
    EXPECT_TRUE(state.disks[0]->read_at(0, disk));
    std::set<bool> written;
    for (size_t i = 0; i < disk.size(); ++i) {
      const std::byte meant = i >= 300 && i < 1500 ? data[i - 300] : std::byte{0};
      EXPECT_TRUE(disk[i] == meant || disk[i] == std::byte{0}) << i;
      if (meant != std::byte{0}) written.insert(disk[i] == meant);
      if (i > 300 && i < 1500 && i % kSector != 0) {  // the same as its neighbour in the sector
        EXPECT_EQ(disk[i] == std::byte{0}, disk[i - 1] == std::byte{0}) << i;
      }
    }
    torn += written.size() == 2 ? 1 : 0;
    return true;
  });
  EXPECT_GE(torn, 4u);
}

TEST_F(CrashStates, RandomStatesReorderOverlappingWrites) {
  write(vda_, 0, 3, 1);
  write(vda_, 1, 3, 2);
  const Pictures seen = states({.torn = false, .random_states = 200});
  EXPECT_EQ(seen.count("abbb"), 1u);  // in order
  EXPECT_EQ(seen.count("aaab"), 1u);  // the other way round
  EXPECT_GT(seen.size(), 10u);        // and torn
}

TEST_F(CrashStates, DiscardsZeroesAndSizesAreLostToo) {
  write(vda_, 0, 4, 1);
  ASSERT_TRUE(vda_.flush());
  ASSERT_TRUE(vda_.discard(0, kSector));
  ASSERT_TRUE(vda_.write_zeroes(kSector, kSector, ZeroMode::kKeepAllocated));
  ASSERT_TRUE(vda_.resize(5 * kSector));
  const Pictures seen = states(only(true, false, false));
  for (const char* expected : {"aaaa", ".aaa", "..aa", "..aa.", "a.aa", "a.aa.", ".aaa."}) {
    EXPECT_EQ(seen.count(expected), 1u) << expected;
  }
}

TEST_F(CrashStates, TheStatesAreTheTestsOwn) {
  write(vda_, 0, 1, 1);
  for_each_crash_state(*control_, {}, [](CrashState& state) {
    EXPECT_TRUE(state.disks[0]->write_at(0, bytes(4 * kSector, 9)));
    return true;
  });
  EXPECT_EQ(states({}), (Pictures{"....", "a..."}));
}

TEST_F(CrashStates, TheSameSeedGivesTheSameStates) {
  for (int i = 0; i < 4; ++i) write(vda_, 0, 4, i + 1);
  const auto descriptions = [this](uint64_t seed) {
    std::vector<std::string> result;
    for_each_crash_state(*control_, {.seed = seed}, [&](CrashState& state) {
      result.push_back(state.description);
      return true;
    });
    return result;
  };
  EXPECT_EQ(descriptions(7), descriptions(7));
  EXPECT_NE(descriptions(7), descriptions(8));
}

TEST_F(CrashStates, AVisitorThatSaysSoIsNotCalledAgain) {
  for (int i = 0; i < 4; ++i) write(vda_, 0, 4, i + 1);
  int calls = 0;
  EXPECT_EQ(for_each_crash_state(*control_, {}, [&](CrashState&) { return ++calls < 3; }), 3u);
  EXPECT_EQ(calls, 3);
}

TEST_F(CrashStates, DisksLoseTheirWritesIndependently) {
  FaultDevice vdb(std::make_unique<MemoryDevice>("vdb", 2 * kSector), control_);
  write(vda_, 0, 1, 1);
  write(vdb, 0, 1, 2);
  EXPECT_EQ(states(only(false, false, false)), (Pictures{"....|..", "a...|..", "....|b.", "a...|b."}));
}

TEST_F(CrashStates, AMarkIsPassedOrNotAtItsMoment) {
  write(vda_, 0, 1, 1);
  ASSERT_TRUE(vda_.flush());
  control_->mark();
  write(vda_, 1, 1, 2);
  std::multiset<std::string> seen;
  for_each_crash_state(*control_, {}, [&](CrashState& state) {
    seen.insert(std::to_string(state.marks_passed) + picture(*state.disks[0]));
    return true;
  });
  EXPECT_EQ(seen, (std::multiset<std::string>{"0....", "0a...", "1a...", "1ab.."}));
}

// A store that writes a new value beside the old one and then switches a number in one sector to it: what the
// enumeration is for. It finds nothing wrong with the right order, and each of the wrong ones.
class Switch {
 public:
  // Old value 1 in sectors 2 and 3, new value 2 in sectors 4 and 5; sector 0 says where the value is.
  static std::unique_ptr<MemoryDevice> disk() {
    auto disk = std::make_unique<MemoryDevice>("vda", 6 * kSector);
    EXPECT_TRUE(disk->write_at(0, bytes(1, 2)));
    EXPECT_TRUE(disk->write_at(2 * kSector, bytes(2 * kSector, 1)));
    return disk;
  }
  static void run(FaultDevice& device, bool flush_between) {
    ASSERT_TRUE(device.write_at(4 * kSector, bytes(2 * kSector, 2)));
    if (flush_between) {
      ASSERT_TRUE(device.flush());
    }
    ASSERT_TRUE(device.write_at(0, bytes(1, 4)));
    ASSERT_TRUE(device.flush());
  }
  // 1 or 2; 0 if it is neither.
  static int value(MemoryDevice& disk) {
    std::byte where{};
    std::vector<std::byte> contents(2 * kSector);
    EXPECT_TRUE(disk.read_at(0, {&where, 1}));
    EXPECT_TRUE(disk.read_at(std::to_integer<uint64_t>(where) * kSector, contents));
    if (contents == bytes(2 * kSector, 1)) return 1;
    return contents == bytes(2 * kSector, 2) ? 2 : 0;
  }
};

TEST_F(CrashStates, FindNoFaultInTheRightOrder) {
  FaultDevice device(Switch::disk());
  Switch::run(device, true);
  std::set<int> values;
  for_each_crash_state(device.control(), {.random_states = 20}, [&](CrashState& state) {
    values.insert(Switch::value(*state.disks[0]));
    return true;
  });
  EXPECT_EQ(values, (std::set<int>{1, 2}));
}

TEST_F(CrashStates, FindTheMissingFlush) {
  FaultDevice device(Switch::disk());
  Switch::run(device, false);
  size_t broken = 0;
  for_each_crash_state(device.control(), {.random_states = 0}, [&](CrashState& state) {
    broken += Switch::value(*state.disks[0]) == 0 ? 1 : 0;
    return true;
  });
  EXPECT_GE(broken, 1u);
}

}  // namespace
}  // namespace varve
