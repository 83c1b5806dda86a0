#include "crash/killed_commands.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "crash/disk_state.h"
#include "crash/domain_operations.h"
#include "support/process.h"
#include "support/qcow2_scan.h"

namespace varve::test {

namespace {

using Words = std::vector<std::string>;

class Victim {
 public:
  Victim(std::string directory, uint64_t seed) : root_(std::move(directory)), random_(seed) {}

  void prepare();
  // One command, killed; and what is left of it.
  void kill_one();
  unsigned killed() const { return killed_; }
  unsigned recovered() const { return recovered_; }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }
  ProcessResult varve(const Words& words) const {
    Words all = {VARVE_COMMAND, "-c", "dir:" + root_};
    all.insert(all.end(), words.begin(), words.end());
    return run(all);
  }
  void run_and_kill(const Words& words);
  void on_domain();
  void on_image();
  Words domain_command();
  std::string some_snapshot();
  DiskState state(int disk) const;
  void expect_sound(const DiskState& before, int disk, const std::string& reverted_to) const;

  std::string root_;
  std::mt19937_64 random_;
  std::chrono::microseconds typical_{};  // that a command takes when nobody kills it
  unsigned round_ = 0;
  unsigned killed_ = 0;
  unsigned recovered_ = 0;
};

void Victim::prepare() {
  make_domain(root_, 2);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(varve({"snapshot", "create", "vm", "first"}).exit_code, 0);
  typical_ = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin);
  std::filesystem::create_directory(root_ + "/chain");
}

void Victim::run_and_kill(const Words& words) {
  BackgroundProcess process(words);
  std::this_thread::sleep_for(std::chrono::microseconds(below(static_cast<uint64_t>(typical_.count()) * 5 / 4)));
  process.kill();
  ++killed_;
}

DiskState Victim::state(int disk) const {
  const auto file = load_file(image_path(root_, disk));
  const Qcow2Scan scan = scan_qcow2(whole_contents(*file));
  EXPECT_TRUE(scan.clean()) << image_path(root_, disk) << "\n" << scan.describe();
  auto state = state_of(*file);
  EXPECT_TRUE(state) << state.error().message;
  return state ? *state : DiskState{};
}

std::string Victim::some_snapshot() {
  std::vector<std::string> names;
  for (const PointState& point : state(0).snapshots) names.push_back(point.name);
  return names.empty() ? "none" : names[below(names.size())];
}

Words Victim::domain_command() {
  switch (below(5)) {
    case 0:
    case 1:
      return {"snapshot", "create", "vm", fmt::format("s {}", round_)};
    case 2:
      return {"snapshot", "revert", "vm", some_snapshot()};
    case 3:
      return {"snapshot", "delete", "vm", some_snapshot()};
    default:
      return {"snapshot", "edit", "vm", some_snapshot(), "--name", fmt::format("ü {}", round_)};
  }
}

// Every snapshot that was there and still is holds what it held; the disk holds what it held, or what it was reverted
// to.
void Victim::expect_sound(const DiskState& before, int disk, const std::string& reverted_to) const {
  const DiskState after = state(disk);
  std::map<std::string, uint64_t> contents;
  std::set<uint64_t> known = {before.contents};
  for (const PointState& point : before.snapshots) {
    contents[point.id] = point.contents;
    known.insert(point.contents);
    if (point.name == reverted_to) contents["reverted to"] = point.contents;
  }
  for (const PointState& point : after.snapshots) {
    const auto was = contents.find(point.id);
    EXPECT_TRUE(was != contents.end() ? was->second == point.contents : known.contains(point.contents)) << point.name;
  }
  const bool is_reverted = !reverted_to.empty() && after.contents == contents["reverted to"];
  EXPECT_TRUE(after.contents == before.contents || is_reverted) << "disk " << disk;
}

void Victim::on_domain() {
  // The disks change in between, so that snapshots differ.
  for (const int disk : {0, 1}) {
    run_ok({"qemu-io", "-f", "qcow2", "-c", fmt::format("write -P {} {}k 64k", 1 + below(250), 64 * below(60)),
            image_path(root_, disk)});
  }
  const std::vector<DiskState> before = {state(0), state(1)};
  const Words words = domain_command();
  SCOPED_TRACE(testing::PrintToString(words));
  Words command = {VARVE_COMMAND, "-c", "dir:" + root_};
  command.insert(command.end(), words.begin(), words.end());
  run_and_kill(command);

  const ProcessResult next = varve({"snapshot", "list", "vm"});
  EXPECT_EQ(next.exit_code, 0) << next.out << next.err;
  if (next.err.find("interrupted") != std::string::npos) ++recovered_;
  EXPECT_FALSE(std::filesystem::exists(root_ + "/var/lib/varve/journal/vm.journal"));
  for (const int disk : {0, 1})
    expect_sound(before[static_cast<size_t>(disk)], disk, words[1] == "revert" ? words[3] : "");
  std::vector<std::string> names;
  for (const PointState& point : state(0).snapshots) names.push_back(point.name);
  std::vector<std::string> others;
  for (const PointState& point : state(1).snapshots) others.push_back(point.name);
  EXPECT_EQ(names, others);
  for (const std::string& name : names)
    EXPECT_TRUE(std::filesystem::exists(root_ + "/var/lib/libvirt/qemu/snapshot/vm/" + name + ".xml")) << name;
  const ProcessResult verified = varve({"verify", "vm"});
  EXPECT_EQ(verified.exit_code, 0) << verified.out << verified.err;
  if (names.size() > 12) varve({"snapshot", "delete", "vm", names[1], "--children"});
}

// A chain of two images, whose guest sees the same whatever becomes of a commit, a rebase, a change of size, a repair.
void Victim::on_image() {
  const std::string base = root_ + "/chain/base.qcow2";
  const std::string top = root_ + "/chain/top.qcow2";
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", base, "16M"});
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", base, "-F", "qcow2", top});
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 8M", base});
  run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 6M", "-c", "write -z 3M 1M", top});
  const std::string image = root_ + "/chain/guest.raw";
  const auto seen = [&] {
    run_ok({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", top, image});
    return read_whole_file(image).substr(0, 16 << 20);
  };
  const std::string before = seen();
  std::string checked = top;
  Words command = {VARVE_COMMAND, "image"};
  switch (below(4)) {
    case 0:
      command.insert(command.end(), {"commit", "-q", top});
      checked = base;
      break;
    case 1:
      command.insert(command.end(), {"rebase", "-b", "", top});
      break;
    case 2:
      command.insert(command.end(), {"resize", "-q", top, "64M"});
      break;
    default:
      // Refcounts that are gone.
      run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0 8k 4k", top});
      command.insert(command.end(), {"check", "-q", "-r", "all", top});
  }
  SCOPED_TRACE(testing::PrintToString(command));
  const bool repairs = command[2] == "check";
  run_and_kill(command);
  for (const std::string& file : {top, checked}) {
    if (repairs) run_ok({VARVE_COMMAND, "image", "check", "-q", "-r", "all", file});
    const ProcessResult check = run({"qemu-img", "check", "-f", "qcow2", file});
    EXPECT_TRUE(check.exit_code == 0 || check.exit_code == 3) << check.out << check.err;
  }
  EXPECT_TRUE(seen() == before);
}

void Victim::kill_one() {
  ++round_;
  below(4) == 0 ? on_image() : on_domain();
}

}  // namespace

void kill_commands(const std::string& directory, unsigned rounds, uint64_t seed) {
  Victim victim(directory, seed);
  ASSERT_NO_FATAL_FAILURE(victim.prepare());
  for (unsigned round = 0; round < rounds && !testing::Test::HasFailure(); ++round) {
    SCOPED_TRACE(testing::Message() << "round " << round << ", seed " << seed);
    victim.kill_one();
  }
  std::printf("%u commands killed, %u of them finished or undone by the next one\n", victim.killed(),
              victim.recovered());
}

}  // namespace varve::test
