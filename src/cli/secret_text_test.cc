#include "cli/secret_text.h"

#include <gtest/gtest.h>

namespace varve::cli {
namespace {

TEST(DecodeBase64, DecodesAsQemuDoes) {
  struct Case {
    std::string_view text, bytes;
  };
  for (const auto& [text, bytes] : {Case{"", ""}, Case{"YWJj", "abc"}, Case{"YWI=", "ab"}, Case{"YQ==", "a"},
                                    Case{"YWJj\nZGVm\n", "abcdef"}, Case{"YWJjZ", "abc"}, Case{"+/8=", "\xfb\xff"}}) {
    const auto decoded = decode_base64(text);
    ASSERT_TRUE(decoded) << text;
    EXPECT_EQ(decoded->text(), bytes);
  }
  for (const std::string_view text : {"YW Jj", "YWJj!", "a-_b"}) EXPECT_FALSE(decode_base64(text)) << text;
}

TEST(IsUtf8, TellsTextFromBytes) {
  for (const std::string_view text : {"", "abc", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80"})
    EXPECT_TRUE(is_utf8(text)) << text;
  for (const std::string_view text :
       {std::string_view("a\0b", 3), std::string_view("\xff"), std::string_view("\xc0\x80"),
        std::string_view("\xe0\x80\x80"), std::string_view("\xed\xa0\x80"), std::string_view("\xf4\x90\x80\x80"),
        std::string_view("\xc3"), std::string_view("\xe2\x82")})
    EXPECT_FALSE(is_utf8(text));
}

}  // namespace
}  // namespace varve::cli
