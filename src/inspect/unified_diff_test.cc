#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "inspect/difference.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

TEST(UnifiedDiffTest, TheSameIsNothing) {
  EXPECT_EQ(unified_diff("", ""), "");
  EXPECT_EQ(unified_diff("a\nb\n", "a\nb\n"), "");
}

TEST(UnifiedDiffTest, AChangedLineStandsBetweenItsNeighbours) {
  EXPECT_EQ(unified_diff("1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nfive\n6\n7\n8\n9\n"),
            "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n");
}

// What patch(1) makes of the one text with the difference is the other.
TEST(UnifiedDiffTest, PatchUnderstandsIt) {
  REQUIRES_PROGRAM("patch");
  test::TempDir directory;
  std::mt19937 random(1);
  const auto below = [&](size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random); };
  for (int round = 0; round < 200; ++round) {
    std::string texts[2];
    for (std::string& text : texts) {
      for (size_t line = below(40); line > 0; --line) text += std::string(1, static_cast<char>('a' + below(4))) + "\n";
    }
    const std::string difference = unified_diff(texts[0], texts[1]);
    directory.write("text", texts[0]);
    if (difference.empty()) {
      EXPECT_EQ(texts[0], texts[1]);
      continue;
    }
    directory.write("difference", "--- text\n+++ text\n" + difference);
    test::run_ok({"patch", "--silent", "--no-backup-if-mismatch", "--output", directory / "patched", directory / "text",
                  directory / "difference"});
    EXPECT_EQ(test::read_whole_file(directory / "patched"), texts[1]) << difference;
  }
}

}  // namespace
}  // namespace varve
