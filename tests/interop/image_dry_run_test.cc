// `varve --dry-run image VERB`: says what would be done, and leaves every file as it is.
#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

struct FileState {
  std::string bytes;
  int64_t blocks = 0;
  int64_t seconds = 0;
  int64_t nanoseconds = 0;
  bool operator==(const FileState&) const = default;
};

class ImageDryRun : public ImageCommandPeer {
 protected:
  std::map<std::string, FileState> files() const {
    std::map<std::string, FileState> result;
    for (const auto& entry : std::filesystem::directory_iterator(our_dir())) {
      struct stat st = {};
      EXPECT_EQ(::stat(entry.path().c_str(), &st), 0);
      result[entry.path().filename()] = {.bytes = read_whole_file(entry.path()),
                                         .blocks = st.st_blocks,
                                         .seconds = st.st_mtim.tv_sec,
                                         .nanoseconds = st.st_mtim.tv_nsec};
    }
    return result;
  }

  static std::vector<std::string> with(std::vector<std::string> before, const std::string& line,
                                       const std::vector<std::string>& after = {}) {
    for (const std::string& word : words(line)) before.push_back(word);
    before.insert(before.end(), after.begin(), after.end());
    return before;
  }

  void expect_unchanged(const std::map<std::string, FileState>& before) const {
    const auto now = files();
    for (const auto& [name, state] : before) {
      const auto found = now.find(name);
      ASSERT_NE(found, now.end()) << name << " is gone";
      EXPECT_TRUE(found->second == state) << name << " changed";
    }
    EXPECT_EQ(now.size(), before.size()) << "a file was made";
  }

  // Every way to ask for the plan prints it, with all of `texts` in it, and changes nothing.
  void expect_plan(const std::string& line, const std::vector<std::string>& texts, int exit_code = 0) const {
    SCOPED_TRACE(line);
    const auto before = files();
    const ProcessResult plan = varve(with({"--dry-run", "image"}, line));
    EXPECT_EQ(plan.exit_code, exit_code) << plan.err;
    EXPECT_TRUE(plan.out.starts_with("Would ")) << plan.out;
    EXPECT_TRUE(plan.out.ends_with("\nNothing was changed.\n")) << plan.out;
    for (const std::string& text : texts) EXPECT_NE(plan.out.find(text), std::string::npos) << text << "\n" << plan.out;

    const ProcessResult behind = varve(with({"image"}, line, {"--dry-run"}));
    EXPECT_EQ(behind.exit_code, exit_code) << behind.err;
    EXPECT_EQ(behind.out, plan.out);

    const ProcessResult json = varve(with({"--json", "--dry-run", "image"}, line));
    EXPECT_EQ(json.exit_code, exit_code) << json.err;
    const auto document = nlohmann::json::parse(json.out, nullptr, false);
    ASSERT_TRUE(document.is_object()) << json.out;
    EXPECT_EQ(document["dry_run"], true);
    EXPECT_TRUE(plan.out.starts_with(fmt::format("Would {}:\n", document["title"].get<std::string>()))) << plan.out;
    EXPECT_FALSE(document["checks"].empty());
    for (const char* part : {"checks", "steps", "notes"})
      for (const auto& text : document[part])
        EXPECT_NE(plan.out.find(text.get<std::string>()), std::string::npos) << text << "\n" << plan.out;
    expect_unchanged(before);
  }

  // The work itself changes something: otherwise the plan's test could not fail.
  void expect_done(const std::string& line) const {
    SCOPED_TRACE(line);
    const auto before = files();
    const ProcessResult done = varve(with({"image"}, line));
    EXPECT_EQ(done.exit_code, 0) << done.err;
    EXPECT_FALSE(before == files());
  }

  void expect_plan_then_done(const std::string& line, const std::vector<std::string>& texts) const {
    expect_plan(line, texts);
    expect_done(line);
  }

  // With --dry-run and without, for the same reason.
  void expect_refused(const std::string& line, const std::string& reason) const {
    SCOPED_TRACE(line);
    const auto before = files();
    const auto expect_refusal = [&](const std::vector<std::string>& arguments) {
      const ProcessResult refused = varve(arguments);
      EXPECT_EQ(refused.exit_code, 1);
      EXPECT_EQ(refused.out.find("Would"), std::string::npos) << refused.out;
      EXPECT_NE(refused.err.find(reason), std::string::npos) << refused.err;
    };
    expect_refusal(with({"--dry-run", "image"}, line));
    expect_refusal(with({"--json", "--dry-run", "image"}, line));
    expect_refusal(with({"image"}, line, {"--dry-run"}));
    expect_unchanged(before);
    expect_refusal(with({"image"}, line));
  }

  void make_chain() {
    prepare({words("qemu-img create -q -f qcow2 base 4M"), io({"write -P 1 0 1M"}, "base"),
             words("qemu-img create -q -f qcow2 -b base -F qcow2 middle 4M"), io({"write -P 2 512k 1M"}, "middle"),
             words("qemu-img create -q -f qcow2 -b middle -F qcow2 top 6M"),
             io({"write -P 3 1M 1M", "write -z 3M 128k"}, "top")});
  }
};

TEST_F(ImageDryRun, CommitNamesWhatGoesWhereAndCommitsNothing) {
  make_chain();
  expect_plan_then_done("commit -f qcow2 -b base top",
                        {"Would commit top into ", "write 1.5 MiB (1572864 bytes) of data into ", "zero in ",
                         "enlarge the disk in ", "to 6291456 bytes", "top keeps what it holds"});
  expect_plan_then_done("commit -f qcow2 top", {"write 1 MiB (1048576 bytes) of data", "empty top: "});
}

TEST_F(ImageDryRun, CommitIntoARawBaseChangesNeitherFile) {
  prepare({words("qemu-img create -q -f raw base 4M"), words("qemu-img create -q -f qcow2 -b base -F raw top 4M"),
           io({"write -P 3 1M 128k"}, "top")});
  expect_plan_then_done("commit -q -p -f qcow2 top", {"write 128 KiB (131072 bytes) of data into "});
}

TEST_F(ImageDryRun, RebaseNamesWhatItWouldCopyAndTheNewName) {
  make_chain();
  expect_plan("rebase -f qcow2 -u -b base -F qcow2 top",
              {"backing file from 'middle' to 'base', format qcow2", "(-u)"});
  expect_plan_then_done("rebase -p -f qcow2 -b base -F qcow2 top",
                        {"Would rebase top to 'base'", "copy ", "backing file from 'middle' to 'base', format qcow2"});
  expect_plan_then_done("rebase -f qcow2 -u -b middle -F qcow2 top", {});
}

TEST_F(ImageDryRun, ResizeNamesTheSizesAndWhatIsLost) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M"), io({"write -P 1 0 4M"}, "disk"),
           words("qemu-img snapshot -c one disk"), words("qemu-img create -q -f raw raw 1M")});
  expect_plan_then_done("resize -f qcow2 disk +4M",
                        {"Would resize disk from 4194304 to 8388608 bytes",
                         "add 4 MiB (4194304 bytes) to the disk's end", "1 snapshots keep"});
  expect_plan_then_done("resize -f qcow2 --shrink disk 1M", {"cut off the disk's last 7 MiB"});
  expect_plan_then_done("resize -f qcow2 --preallocation=full disk 2M", {"grows: from "});
  expect_plan_then_done("resize -f raw raw +1M", {"the file raw grows: from 1048576 to 2097152 bytes"});
  expect_plan("resize -f raw raw 2M", {"the disk has that size already"});
}

TEST_F(ImageDryRun, CheckNamesTheRepairAndRepairsNothing) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M"), io({"write -P 1 0 1M"}, "disk")});
  expect_plan("check -r all disk", {"there is nothing to repair"});
  std::string image = read_whole_file(our_dir() + "/disk");
  const size_t block = 2 * 65536;
  image[block + 15 * 2 + 1] = 2;  // for a cluster that is used once
  put("disk", image);
  expect_plan_then_done("check -r leaks disk", {"Would repair disk", "lower the refcounts of 1 clusters"});
  image[block + 6 * 2 + 1] = 0;  // for one that is used: QEMU writes all refcounts anew then, or nothing
  put("disk", image);
  expect_refused("check -r leaks disk", "Check failed");
  expect_plan_then_done("check -r all disk", {"Would repair disk", "write a new refcount structure of 128 KiB"});
  expect_plan("check -r all disk", {"there is nothing to repair"});
  // What changes nothing looks as ever.
  EXPECT_EQ(varve(words("--dry-run image check disk")).out, varve(words("image check disk")).out);
}

TEST_F(ImageDryRun, SnapshotsAreNeitherMadeNorAppliedNorDeleted) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M"), io({"write -P 1 0 4M"}, "disk")});
  expect_plan_then_done("snapshot -f qcow2 -c one disk", {"Would create snapshot 'one' in disk", "new metadata"});
  run_ok(io({"write -P 2 0 2M"}, "disk"), run_options(our_dir()));
  expect_plan_then_done("snapshot -f qcow2 -a one disk",
                        {"Would revert to snapshot 'one' in disk", "what the disk holds now is thrown away"});
  expect_plan_then_done("snapshot -f qcow2 -d one disk", {"Would delete snapshot 'one' in disk"});
  EXPECT_EQ(varve(words("--dry-run image snapshot -l disk")).exit_code, 0);
}

TEST_F(ImageDryRun, AmendNamesEachOptionThatWouldChange) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M"), io({"write -P 1 0 1M"}, "disk")});
  expect_plan("amend -f qcow2 -o compat=1.1 disk", {"nothing would be written"});
  expect_plan_then_done("amend -p -f qcow2 -o lazy_refcounts=on disk",
                        {"Would amend disk", "change lazy refcounts from false to true"});
  expect_plan_then_done("amend -f qcow2 -o lazy_refcounts=off,refcount_bits=64 disk",
                        {"change the width of refcounts from 16 to 64"});
  expect_plan_then_done("amend -f qcow2 -o refcount_bits=16,compat=0.10 disk", {"change the version from 3 to 2"});
}

TEST_F(ImageDryRun, BitmapsStayAsTheyAre) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M"), words("qemu-img bitmap --add disk old")});
  expect_plan_then_done("bitmap -f qcow2 --add disk new", {"Would change the bitmap 'new' of disk", "'new'"});
  expect_plan_then_done("bitmap -f qcow2 --merge old disk new", {"merge the bitmap 'old' into 'new'"});
  expect_plan_then_done("bitmap -f qcow2 --remove disk old", {"'old'"});
}

TEST_F(ImageDryRun, NothingIsCreatedConvertedOrCopied) {
  make_chain();
  expect_plan_then_done("create -f qcow2 -b base -F qcow2 new",
                        {"Would create new", "new is not there", "make a qcow2 image of a disk of 4 MiB"});
  expect_plan_then_done("create -q -f raw plain 1M", {"make a raw image of a disk of 1 MiB"});
  expect_plan_then_done("create -f qcow2 -o data_file=data two 1M", {"make the external data file data"});
  expect_plan_then_done("convert -p -f qcow2 -O raw top copy", {"Would convert top to copy", "copy up to ", "of data"});
  expect_plan("convert -n -f qcow2 -O raw top copy", {"what copy holds now is overwritten"});
  expect_plan("convert -f qcow2 -O qcow2 -c top copy", {"copy is there", "what copy holds now, 6 MiB"});
  expect_plan_then_done("dd -f qcow2 -O raw bs=64k count=3 if=top of=piece",
                        {"Would copy a stretch of top to piece", "copy 192 KiB (196608 bytes)"});
}

TEST_F(ImageDryRun, WhatWouldBeRefusedIsRefused) {
  make_chain();
  expect_refused("commit -f qcow2 base", "does not have a backing file");
  expect_refused("commit -f qcow2 -b nothing top", "Did not find 'nothing'");
  expect_refused("rebase -f qcow2 -b nothing -F qcow2 top", "nothing");
  expect_refused("resize -f qcow2 top 1M", "--shrink");
  expect_refused("resize -f qcow2 nothing 1M", "Could not open 'nothing'");
  expect_refused("snapshot -f qcow2 -d nothing top", "snapshot not found");
  expect_refused("snapshot -f qcow2 -a nothing top", "Failed to load snapshot");
  expect_refused("check -r all nothing", "Could not open 'nothing'");
  expect_refused("amend -f qcow2 -o encrypt.state=active top", "encryption not present");
  expect_refused("bitmap -f qcow2 --remove top nothing", "nothing");
  expect_refused("create -f qcow2 nowhere/new 1M", "No such file or directory");
  expect_refused("create -f qcow2 -o cluster_size=3 new 1M", "luster size");
  expect_refused("convert -f qcow2 -O raw top nowhere/new", "No such file or directory");
  expect_refused("dd -f qcow2 -O raw if=nothing of=new", "Could not open 'nothing'");
}

TEST_F(ImageDryRun, AnImageInUseIsRefused) {
  make_chain();
  BackgroundProcess user({"qemu-io", "-f", "qcow2", "top"}, run_options(our_dir()));
  user.write("length\n");
  ASSERT_TRUE(user.wait_for("6 MiB"));
  expect_refused("commit -f qcow2 top", "lock");
  expect_refused("rebase -f qcow2 -b base -F qcow2 top", "lock");
  expect_refused("resize -f qcow2 top +1M", "lock");
  expect_refused("snapshot -f qcow2 -c one top", "lock");
  expect_refused("check -r all top", "lock");
  expect_refused("amend -f qcow2 -o lazy_refcounts=on top", "lock");
  expect_refused("create -f qcow2 top 1M", "lock");
  expect_refused("convert -f qcow2 -O qcow2 base top", "lock");
}

TEST_F(ImageDryRun, ABenchmarkThatWritesIsRefused) {
  make_chain();
  const auto before = files();
  for (const char* line :
       {"--dry-run image bench -w -c 3 -f qcow2 top", "image bench -w -c 3 -f qcow2 top --dry-run"}) {
    const ProcessResult refused = varve(words(line));
    EXPECT_EQ(refused.exit_code, 1);
    EXPECT_NE(refused.err.find("no plan to show"), std::string::npos) << refused.err;
  }
  EXPECT_EQ(varve(words("--dry-run image bench -c 3 -f qcow2 top")).exit_code, 0);
  expect_unchanged(before);
}

TEST_F(ImageDryRun, ADirtyImageIsNotRepaired) {
  prepare({words("qemu-img create -q -f qcow2 -o lazy_refcounts=on disk 4M")});
  (void)run({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "abort", "disk"}, run_options(our_dir()));
  const auto before = files();
  const ProcessResult refused = varve(words("--dry-run image snapshot -f qcow2 -c one disk"));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_NE(refused.err.find("check -r all disk"), std::string::npos) << refused.err;
  expect_unchanged(before);
  expect_plan("check -r all disk", {"take back that the image is dirty or corrupt"});
  expect_done("check -q -r all disk");
}

TEST_F(ImageDryRun, QemuImgHasNoSuchOption) {
  make_chain();
  for (const char* line : {"commit -f qcow2 --dry-run top", "snapshot --dry-run -c one top"}) expect_same(line);
  const auto before = files();
  EXPECT_EQ(ours(words("--dry-run commit -f qcow2 top")).exit_code, 1);
  expect_unchanged(before);
}

}  // namespace
}  // namespace varve::test
