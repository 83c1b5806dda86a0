#include "nbd/export_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace varve::nbd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Words = std::vector<std::pair<std::string, std::string>>;

Result<std::vector<ExportSpec>> parse(const Words& words) {
  ExportSpecs specs;
  for (const auto& [key, value] : words) TRY(specs.add(key, value));
  TRY(specs.check());
  return specs.all();
}

TEST(ExportSpecTest, AFileIsEnough) {
  const auto specs = parse({{"file", "/disk.qcow2"}});
  ASSERT_TRUE(specs);
  ASSERT_EQ(specs->size(), 1u);
  EXPECT_EQ(specs->front().name, "");
  EXPECT_EQ(specs->front().point.path, "/disk.qcow2");
  EXPECT_EQ(specs->front().point.format, image::Format::kQcow2);
  EXPECT_FALSE(specs->front().point.snapshot);
  EXPECT_FALSE(specs->front().overlay);
}

TEST(ExportSpecTest, WhatFollowsAnExportsNameBelongsToIt) {
  const auto specs = parse({{"export", "vda"},
                            {"file", "/a, b=c'\"ü.qcow2"},
                            {"snapshot", "export=vdb file=x"},
                            {"export", "vdb"},
                            {"format", "raw"},
                            {"file", "/b"},
                            {"overlay", "/tmp"}});
  ASSERT_TRUE(specs) << specs.error().message;
  ASSERT_EQ(specs->size(), 2u);
  EXPECT_EQ((*specs)[0].point.path, "/a, b=c'\"ü.qcow2");
  EXPECT_EQ((*specs)[0].point.snapshot, "export=vdb file=x");
  EXPECT_EQ((*specs)[1].point.format, image::Format::kRaw);
  EXPECT_EQ((*specs)[1].overlay, "/tmp");
  EXPECT_THAT(parameters_of(*specs),
              ElementsAre("export=vda", "file=/a, b=c'\"ü.qcow2", "format=qcow2", "snapshot=export=vdb file=x",
                          "export=vdb", "file=/b", "format=raw", "overlay=/tmp"));
}

TEST(ExportSpecTest, WhatMakesNoSenseIsRefused) {
  const auto refused = [](const Words& words, const char* message) {
    const auto specs = parse(words);
    ASSERT_FALSE(specs) << message;
    EXPECT_EQ(specs.error().kind, ErrorKind::kInvalidArgument);
    EXPECT_THAT(specs.error().message, HasSubstr(message));
    EXPECT_FALSE(specs.error().notes.empty()) << message;
  };
  refused({}, "nothing is to be served");
  refused({{"snapshot", "a"}}, "has no image");
  refused({{"file", ""}}, "file= has no name");
  refused({{"file", "/a"}, {"snapshot", ""}}, "snapshot= has no name");
  refused({{"file", "/a"}, {"file", "/b"}}, "given twice");
  refused({{"file", "/a"}, {"format", "qcow2"}, {"format", "raw"}}, "given twice");
  refused({{"file", "/a"}, {"format", "vmdk"}}, "format=vmdk");
  refused({{"file", "/a"}, {"format", "luks"}}, "format=luks");
  refused({{"file", "/a"}, {"format", "raw"}, {"snapshot", "s"}}, "a snapshot of a raw image");
  refused({{"file", "/a"}, {"colour", "red"}}, "colour=");
  refused({{"export", ""}}, "export= has no name");
  refused({{"file", "/a"}, {"export", "b"}, {"file", "/b"}}, "the first has no name");
  refused({{"export", "a"}, {"file", "/a"}, {"export", "a"}, {"file", "/b"}}, "given twice");
}

TEST(ExportSpecTest, UrisCarryAnyName) {
  EXPECT_EQ(unix_uri("vda", "/tmp/s"), "nbd+unix:///vda?socket=/tmp/s");
  EXPECT_EQ(unix_uri("a b/c", "/tmp/ü&?"), "nbd+unix:///a%20b%2Fc?socket=/tmp/%C3%BC%26%3F");
  EXPECT_EQ(tcp_uri("vda", "localhost", 10809), "nbd://localhost:10809/vda");
  EXPECT_EQ(tcp_uri("vda", "::1", 1), "nbd://[::1]:1/vda");
  EXPECT_EQ(tcp_uri("vda", "host", 1, true), "nbds://host:1/vda");
  EXPECT_EQ(unix_uri("vda", "/s", true), "nbds+unix:///vda?socket=/s");
}

}  // namespace
}  // namespace varve::nbd
