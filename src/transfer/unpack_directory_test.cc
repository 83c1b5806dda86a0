#include "transfer/unpack_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "support/temp_dir.h"

namespace varve {
namespace {

namespace fs = std::filesystem;
using testing::StartsWith;

TEST(UnpackDirectory, IsGoneAtTheEnd) {
  const test::TempDir dir;
  std::string path;
  {
    const auto unpack = UnpackDirectory::make(dir.path());
    ASSERT_TRUE(unpack) << unpack.error().message;
    path = unpack->path();
    EXPECT_THAT(path, StartsWith(dir.path() + "/"));
    fs::create_directories(path + "/deep/er");
  }
  EXPECT_FALSE(fs::exists(path));
}

TEST(UnpackDirectory, WhatAKilledOneLeftIsRemovedByTheNext) {
  const test::TempDir dir;
  fs::create_directories(dir / ".varve-unpack-abcdef/d");
  dir.write(".varve-unpack-abcdef/d/disk", "x");
  dir.write(".varve-unpack-file", "no directory");
  fs::create_directories(dir / "elsewhere");
  fs::create_directory_symlink(dir / "elsewhere", dir / ".varve-unpack-link");
  const auto first = UnpackDirectory::make(dir.path());
  ASSERT_TRUE(first);
  EXPECT_FALSE(fs::exists(dir / ".varve-unpack-abcdef"));
  EXPECT_TRUE(fs::exists(dir / ".varve-unpack-file"));
  EXPECT_TRUE(fs::exists(dir / "elsewhere"));
  EXPECT_TRUE(fs::is_symlink(dir / ".varve-unpack-link"));
  // One that is at work stays.
  const auto second = UnpackDirectory::make(dir.path());
  ASSERT_TRUE(second);
  EXPECT_TRUE(fs::exists(first->path()));
}

TEST(UnpackDirectory, NobodyTakesAnothersForALeftover) {
  const test::TempDir dir;
  std::vector<std::thread> imports;
  for (int i = 0; i < 4; ++i) {
    imports.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        const auto unpack = UnpackDirectory::make(dir.path());
        ASSERT_TRUE(unpack) << unpack.error().message;
        fs::create_directory(unpack->path() + "/d");
        ASSERT_TRUE(fs::exists(unpack->path() + "/d"));
      }
    });
  }
  for (std::thread& import : imports) import.join();
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(UnpackDirectory, SaysWhatIsInTheWay) {
  const test::TempDir dir;
  const auto unpack = UnpackDirectory::make(dir / "none");
  ASSERT_FALSE(unpack);
  EXPECT_EQ(unpack.error().kind, ErrorKind::kNotFound);
}

}  // namespace
}  // namespace varve
