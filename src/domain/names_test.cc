#include "domain/names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace varve {
namespace {

using ::testing::HasSubstr;

TEST(Names, OrdinaryNamesAreFine) {
  for (const std::string name : {"a", "centos7", "before upgrade", "a--b", "M\xC3\xBCnchen", "it's", "a.b", "-x", "#1",
                                 "\xE2\x82\xAC", "a\\b", "a:b", "~", "%s"}) {
    EXPECT_TRUE(check_domain_name(name)) << name;
    EXPECT_TRUE(check_snapshot_name(name)) << name;
    EXPECT_TRUE(is_file_name(name)) << name;
  }
}

void expect_refused(const std::string& name, const std::string& why) {
  for (const auto& result : {check_domain_name(name), check_snapshot_name(name)}) {
    ASSERT_FALSE(result) << name;
    EXPECT_EQ(result.error().kind, ErrorKind::kInvalidArgument);
    EXPECT_THAT(result.error().message, HasSubstr(why));
  }
}

TEST(Names, WhatAPathWouldTripOverIsRefused) {
  expect_refused("", "empty");
  expect_refused("a/b", "'/'");
  expect_refused("../etc", "'/'");
  expect_refused("..", "dot");
  expect_refused(".hidden", "dot");
}

TEST(Names, WhatATerminalWouldTripOverIsRefused) {
  expect_refused(std::string("a\0b", 3), "control character");
  expect_refused("a\nb", "control character");
  expect_refused("a\tb", "control character");
  expect_refused("\x1B[31m", "control character");
  expect_refused("\x7F", "control character");
  expect_refused("a\xC2\x9B", "control character");
  expect_refused("a\xFF", "UTF-8");
  expect_refused("\xC0\xAF", "UTF-8");
}

TEST(Names, AMessageAboutANameHasNoControlCharacters) {
  const auto result = check_domain_name("a\x1B[2J\nb");
  ASSERT_FALSE(result);
  EXPECT_THAT(result.error().message, HasSubstr("'a\\x1b[2J\\x0ab'"));
}

TEST(Names, RoomForTheFileIsLeft) {
  EXPECT_TRUE(check_domain_name(std::string(kMaxNameSize, 'n')));
  expect_refused(std::string(kMaxNameSize + 1, 'n'), "248 bytes");
  expect_refused(std::string(1 << 20, 'n'), "bytes");
}

TEST(Names, WhatLibvirtLetsInCanBeFoundAgain) {
  EXPECT_TRUE(is_file_name("a\tb"));
  EXPECT_TRUE(is_file_name(".a"));
  EXPECT_TRUE(is_file_name(std::string(251, 'n')));
  EXPECT_FALSE(is_file_name(std::string(252, 'n')));
  EXPECT_FALSE(is_file_name("a/b"));
  EXPECT_FALSE(is_file_name(".."));
  EXPECT_FALSE(is_file_name(""));
  EXPECT_FALSE(is_file_name(std::string("a\0b", 3)));
}

}  // namespace
}  // namespace varve
