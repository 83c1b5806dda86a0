#include "transfer/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace varve {
namespace {

using testing::HasSubstr;
using testing::Not;

const std::string kSum(64, 'a');
const std::string kOther(64, 'b');

Manifest full() {
  return {
      .domain = "vm",
      .uuid = "u",
      .created_sec = 7,
      .files = {{.path = "/etc/libvirt/qemu/vm.xml", .role = FileRole::kDefinition, .size_bytes = 3, .sha256 = kSum},
                {.path = "/d/disk", .role = FileRole::kImage, .size_bytes = 700, .sha256 = kOther}}};
}

Manifest increment() {
  Manifest manifest = full();
  manifest.base = ManifestBase{.directory = "../mon day", .manifest_sha256 = kSum, .snapshot = "one"};
  manifest.files[1].storage = Storage::kDelta;
  manifest.files[1].delta_bytes = 4096;
  manifest.files[1].delta_sha256 = kSum;
  manifest.files.push_back(
      {.path = "/d/other", .role = FileRole::kImage, .size_bytes = 5, .sha256 = kSum, .storage = Storage::kUnchanged});
  return manifest;
}

// What others, and earlier versions, have to go on reading.
TEST(ManifestTest, AFullOneIsWrittenAsEver) {
  EXPECT_EQ(to_json(full()), R"({
  "created": 7,
  "domain": "vm",
  "files": [
    {
      "path": "etc/libvirt/qemu/vm.xml",
      "role": "definition",
      "sha256": ")" + kSum + R"(",
      "size_bytes": 3
    },
    {
      "path": "d/disk",
      "role": "image",
      "sha256": ")" + kOther + R"(",
      "size_bytes": 700
    }
  ],
  "format": "varve-export",
  "uuid": "u",
  "version": 1
}
)");
}

TEST(ManifestTest, AnIncrementalOneComesBackAsItWas) {
  const auto parsed = parse_manifest(to_json(increment()), "m");
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_TRUE(parsed->base);
  EXPECT_EQ(parsed->base->directory, "../mon day");
  EXPECT_EQ(parsed->base->snapshot, "one");
  EXPECT_EQ(to_json(*parsed), to_json(increment()));
  EXPECT_THAT(to_json(*parsed), HasSubstr("\"version\": 2"));
}

TEST(ManifestTest, ChecksumsAreOfWhatIsOnDisk) {
  const std::string text = to_checksums(increment());
  EXPECT_THAT(text, HasSubstr(kSum + "  vm.increment/etc/libvirt/qemu/vm.xml\n"));
  EXPECT_THAT(text, HasSubstr(kSum + "  vm.increment/d/disk.delta\n"));
  EXPECT_THAT(text, Not(HasSubstr("d/other")));
}

TEST(ManifestTest, ABaseLiesBesideItsIncrement) {
  const auto parsed_with = [](const std::string& directory) {
    Manifest manifest = increment();
    manifest.base->directory = directory;
    return parse_manifest(to_json(manifest), "m").has_value();
  };
  EXPECT_TRUE(parsed_with("../a"));
  EXPECT_TRUE(parsed_with("../a/b"));
  for (const char* directory : {"", ".", "..", "a", "/a", "../", "../..", "../../a", "../a/../../b", "../a/", "..//a",
                                "./../a", "../.", "../a/."}) {
    EXPECT_FALSE(parsed_with(directory)) << directory;
  }
  EXPECT_FALSE(parsed_with("../" + std::string(2000, 'a')));
}

TEST(ManifestTest, LiesAboutIncrementsAreFound) {
  const auto refused = [](const std::string& from, const std::string& to) {
    std::string text = to_json(increment());
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    EXPECT_FALSE(parse_manifest(text, "m")) << from << " → " << to;
  };
  refused("\"base\"", "\"bases\"");
  refused("\"manifest_sha256\": \"a", "\"manifest_sha256\": \"A");
  refused("\"snapshot\": \"one\"", "\"snapshot\": \"../one\"");
  refused("\"stored\": \"delta\"", "\"stored\": \"patch\"");
  refused("\"stored\": \"delta\"", "\"stored\": 1");
  refused("\"delta\": {", "\"deltas\": {");
  refused("\"size_bytes\": 4096", "\"size_bytes\": -1");
  refused("\"size_bytes\": 700", "\"size_bytes\": 18446744073709551615");
  refused("\"stored\": \"whole\"", "\"stored\": \"unchanged\"");  // the definition
}

TEST(ManifestTest, TwoFilesOfOneNameAreRefused) {
  Manifest manifest = increment();
  manifest.files.push_back({.path = "/d/disk.delta", .role = FileRole::kImage, .size_bytes = 1, .sha256 = kSum});
  const auto parsed = parse_manifest(to_json(manifest), "m");
  ASSERT_FALSE(parsed);
  EXPECT_THAT(parsed.error().message, HasSubstr("two files would be"));
}

}  // namespace
}  // namespace varve
