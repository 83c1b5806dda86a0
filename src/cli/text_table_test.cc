#include "cli/text_table.h"

#include <gtest/gtest.h>

namespace varve::cli {
namespace {

TEST(TextTableTest, ColumnsAreAsWideAsTheirWidestCell) {
  TextTable table({"Name", "State"});
  table.add({"a", "shutoff"});
  table.add({"a longer name", "x"}, true);
  EXPECT_EQ(table.to_string(),
            " Name            State\n"
            "--------------------------\n"
            " a               shutoff\n"
            "*a longer name   x\n");
}

TEST(TextTableTest, WithoutRowsThereIsTheHeader) {
  EXPECT_EQ(TextTable({"Name", "Creation Time", "State"}).to_string(),
            " Name   Creation Time   State\n"
            "-------------------------------\n");
}

TEST(TextTableTest, CharactersCountAsTheColumnsThatTheyTake) {
  EXPECT_EQ(display_width("Übel"), 4u);
  EXPECT_EQ(display_width("日本"), 4u);
  EXPECT_EQ(display_width("e\xcc\x81"), 1u);         // a combining accent
  EXPECT_EQ(display_width("\xff\xc3"), 2u);          // no text
  EXPECT_EQ(display_width("\xf0\x9f\x92\xbe"), 2u);  // a floppy disk
}

}  // namespace
}  // namespace varve::cli
