#include "guestfs/file_difference.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace varve::guestfs {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

GuestFile file(const std::string& name, int64_t size, int64_t time = 1) {
  return {.name = name,
          .kind = GuestFileKind::kFile,
          .mode = 0644,
          .owner = 0,
          .group = 0,
          .size_bytes = size,
          .modified_sec = time,
          .modified_nsec = 0,
          .changed_sec = time,
          .changed_nsec = 0,
          .link_target = {}};
}

GuestFile directory(const std::string& name, int64_t time = 1) {
  GuestFile made = file(name, 4096, time);
  made.kind = GuestFileKind::kDirectory;
  return made;
}

using Tree = std::map<std::string, std::vector<GuestFile>>;

ListDirectory listing(const Tree& tree) {
  return [&tree](const std::string& path) -> Result<std::vector<GuestFile>> {
    const auto found = tree.find(path);
    if (found == tree.end()) return make_error(ErrorKind::kNotFound, "no directory " + path);
    return found->second;
  };
}

std::vector<std::string> differences(const Tree& before, const Tree& after) {
  std::vector<std::string> lines;
  const auto done = compare_trees(listing(before), listing(after), [&](const GuestFileChange& change) -> Result<void> {
    const char sign = !change.before ? '+' : !change.after ? '-' : '~';
    lines.push_back(fmt::format("{} {}", sign, change.path));
    return {};
  });
  if (!done) lines.push_back("error: " + done.error().message);
  return lines;
}

TEST(FileDifference, TheSameTreesHaveNone) {
  const Tree tree = {{"/", {directory("etc"), file("a", 1)}}, {"/etc", {file("passwd", 5)}}};
  EXPECT_THAT(differences(tree, tree), IsEmpty());
}

TEST(FileDifference, AddedRemovedAndChangedFilesAreToldByTheirPaths) {
  const Tree before = {{"/", {file("gone", 1), directory("etc"), file("same", 3)}}, {"/etc", {file("passwd", 5)}}};
  const Tree after = {{"/", {file("same", 3), file("new", 9), directory("etc", 2)}}, {"/etc", {file("passwd", 6, 2)}}};
  EXPECT_THAT(differences(before, after), ElementsAre("- /gone", "+ /new", "~ /etc/passwd"));
}

TEST(FileDifference, WhatIsInAnAddedOrRemovedDirectoryIsToldOneByOne) {
  const Tree before = {
      {"/", {directory("old")}}, {"/old", {file("x", 1), directory("deep")}}, {"/old/deep", {file("y", 1)}}};
  const Tree after = {{"/", {directory("young")}}, {"/young", {file("z", 1)}}};
  EXPECT_THAT(differences(before, after),
              ElementsAre("- /old", "+ /young", "- /old/deep", "- /old/x", "- /old/deep/y", "+ /young/z"));
}

TEST(FileDifference, AFileThatBecomesADirectoryIsChangedAndItsContentsAreAdded) {
  const Tree before = {{"/", {file("x", 1)}}};
  const Tree after = {{"/", {directory("x")}}, {"/x", {file("y", 1)}}};
  EXPECT_THAT(differences(before, after), ElementsAre("~ /x", "+ /x/y"));
}

TEST(FileDifference, AnErrorOfEitherSideEndsIt) {
  const Tree before = {{"/", {directory("x")}}};
  const Tree after = {{"/", {directory("x")}}, {"/x", {}}};
  EXPECT_THAT(differences(before, after), ElementsAre("error: no directory /x"));
  EXPECT_THAT(differences(after, before), ElementsAre("error: no directory /x"));
}

TEST(FileDifference, NamesEveryKindOfChange) {
  const GuestFile one = file("a", 1);
  EXPECT_THAT(changes_of(one, one), IsEmpty());
  EXPECT_THAT(changes_of(one, file("a", 2, 2)), ElementsAre("size", "time"));
  GuestFile other = one;
  other.mode = 0600;
  other.owner = 7;
  EXPECT_THAT(changes_of(one, other), ElementsAre("mode", "owner"));
  other = one;
  other.changed_nsec = 1;
  EXPECT_THAT(changes_of(one, other), ElementsAre("attributes"));
  other.kind = GuestFileKind::kLink;
  EXPECT_THAT(changes_of(one, other), ElementsAre("kind"));
  GuestFile link = one;
  link.link_target = "b";
  EXPECT_THAT(changes_of(one, link), ElementsAre("target"));
}

TEST(FileDifference, ADirectoryWhoseEntriesChangedIsNotChangedItself) {
  EXPECT_THAT(changes_of(directory("d", 1), directory("d", 2)), IsEmpty());
}

TEST(GuestFile, ModesReadAsInLs) {
  GuestFile one = directory("tmp");
  one.mode = 01777;
  EXPECT_EQ(mode_text(one), "drwxrwxrwt");
  one = file("su", 1);
  one.mode = 04755;
  EXPECT_EQ(mode_text(one), "-rwsr-xr-x");
  one.mode = 02640;
  EXPECT_EQ(mode_text(one), "-rw-r-S---");
}

}  // namespace
}  // namespace varve::guestfs
