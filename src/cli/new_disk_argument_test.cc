#include "cli/new_disk_argument.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace varve::cli {
namespace {

using testing::HasSubstr;

TEST(NewDiskArgumentTest, ASizeMakesAQcow2Image) {
  const auto disk = parse_new_disk("20G");
  ASSERT_TRUE(disk);
  EXPECT_EQ(disk->format, "qcow2");
  EXPECT_EQ(disk->options.size, uint64_t{20} << 30);
  EXPECT_EQ(disk->options.cluster_size, 65536u);
  EXPECT_FALSE(disk->existing);
  EXPECT_EQ(disk->path, "");
}

TEST(NewDiskArgumentTest, OptionsFollowTheSize) {
  const auto disk = parse_new_disk("1M,format=raw,path=/srv/a b.img");
  ASSERT_TRUE(disk);
  EXPECT_EQ(disk->format, "raw");
  EXPECT_EQ(disk->path, "/srv/a b.img");
  const auto qcow2 = parse_new_disk("1000,cluster_size=2M,preallocation=metadata");
  ASSERT_TRUE(qcow2);
  EXPECT_EQ(qcow2->options.size, 1024u);  // whole sectors
  EXPECT_EQ(qcow2->options.cluster_size, uint64_t{2} << 20);
  EXPECT_TRUE(qcow2->options.preallocate_metadata);
}

TEST(NewDiskArgumentTest, APathIsAnImageThatIsThere) {
  const auto disk = parse_new_disk("/var/lib/libvirt/images/a.img,format=raw");
  ASSERT_TRUE(disk);
  EXPECT_TRUE(disk->existing);
  EXPECT_EQ(disk->path, "/var/lib/libvirt/images/a.img");
  EXPECT_EQ(disk->format, "raw");
}

TEST(NewDiskArgumentTest, WhatIsNotUnderstoodIsNamed) {
  for (const auto& [text, named] : std::initializer_list<std::pair<const char*, const char*>>{
           {"", "neither a size nor a path"},
           {"0", "neither a size nor a path"},
           {"images/a.qcow2", "neither a size nor a path"},
           {"1G,format", "'format' has no value"},
           {"1G,format=vmdk", "'vmdk' is no format"},
           {"1G,cluster_size=3000", "no power of two"},
           {"1G,cluster_size=4M", "no power of two"},
           {"1G,preallocation=full", "'full' is no preallocation"},
           {"1G,colour=red", "'colour' is no option"},
           {"1G,path=relative", "not an absolute path"},
           {"/a.qcow2,cluster_size=64k", "'cluster_size' is for new images"}}) {
    const auto disk = parse_new_disk(text);
    ASSERT_FALSE(disk) << text;
    EXPECT_EQ(disk.error().kind, ErrorKind::kInvalidArgument) << text;
    EXPECT_THAT(disk.error().message, HasSubstr(named)) << text;
  }
}

}  // namespace
}  // namespace varve::cli
