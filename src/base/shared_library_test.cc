#include "base/shared_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace varve {
namespace {

using testing::HasSubstr;

TEST(SharedLibrary, FindsFunctions) {
  const auto library = SharedLibrary::load("libc.so.6");
  ASSERT_TRUE(library) << library.error().message;
  int (*absolute)(int) = nullptr;
  ASSERT_TRUE(library->find("abs", absolute));
  EXPECT_EQ(absolute(-7), 7);
}

TEST(SharedLibrary, SaysWhatIsMissing) {
  const auto none = SharedLibrary::load("libvarve-none.so.1");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(none.error().message, HasSubstr("libvarve-none.so.1"));
  const auto library = SharedLibrary::load("libc.so.6");
  ASSERT_TRUE(library);
  int (*function)() = nullptr;
  const auto found = library->find("varve_none", function);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(found.error().message, HasSubstr("varve_none"));
  EXPECT_EQ(function, nullptr);
}

}  // namespace
}  // namespace varve
