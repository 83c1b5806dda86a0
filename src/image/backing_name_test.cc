#include "image/backing_name.h"

#include <gtest/gtest.h>

namespace varve::image {
namespace {

TEST(BackingName, IsRelativeToTheDirectoryOfTheOverlay) {
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "base.qcow2"), "/images/base.qcow2");
  EXPECT_EQ(resolve_backing_name("sub/top.qcow2", "../base.qcow2"), "sub/../base.qcow2");
  EXPECT_EQ(resolve_backing_name("top.qcow2", "base.qcow2"), "base.qcow2");
  EXPECT_EQ(resolve_backing_name("/top.qcow2", "base.qcow2"), "/base.qcow2");
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "/elsewhere/base"), "/elsewhere/base");
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "sub/a:b"), "/images/sub/a:b");
}

TEST(BackingName, KeepsNamesThatAreNoPaths) {
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "nbd://host/x"), "nbd://host/x");
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "json:{\"driver\":\"raw\"}"), "json:{\"driver\":\"raw\"}");
  EXPECT_EQ(resolve_backing_name("/images/top.qcow2", "file:base"), "base");
}

TEST(BackingName, HasAProtocolOnlyBeforeTheFirstSlash) {
  EXPECT_EQ(protocol_of("nbd:host"), "nbd");
  EXPECT_EQ(protocol_of("json:{}"), "json");
  EXPECT_EQ(protocol_of(":x"), "");
  EXPECT_EQ(protocol_of("./a:b"), std::nullopt);
  EXPECT_EQ(protocol_of("/a:b"), std::nullopt);
  EXPECT_EQ(protocol_of("plain"), std::nullopt);
}

}  // namespace
}  // namespace varve::image
