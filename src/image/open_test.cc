#include "image/open.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "image/create.h"
#include "support/temp_dir.h"

namespace varve::image {
namespace {

class OpenImageTest : public testing::Test {
 protected:
  void make(const std::string& name, const std::string& backing = "", const std::string& format = "qcow2",
            uint64_t size = 1 << 20) {
    qcow2::CreateOptions options;
    options.size = size;
    if (!backing.empty()) options.backing_file = backing;
    if (!backing.empty() && !format.empty()) options.backing_format = format;
    const Result<void> made = create_qcow2(dir_ / name, options);
    ASSERT_TRUE(made) << made.error().message;
  }
  void write(const std::string& name, uint64_t offset, uint64_t length, unsigned char value) {
    Result<OpenImage> image = open(name, {.use = Use::kWrite});
    ASSERT_TRUE(image) << image.error().message;
    const std::vector<std::byte> data(length, std::byte{value});
    ASSERT_TRUE(image->device()->write_at(offset, data));
    ASSERT_TRUE(image->device()->flush());
  }
  Result<OpenImage> open(const std::string& name, const OpenOptions& options = {}) {
    return open_image(dir_ / name, options);
  }
  static unsigned byte_at(const OpenImage& image, uint64_t offset) {
    std::byte byte{0xee};
    const Result<void> read = image.device()->read_at(offset, {&byte, 1});
    EXPECT_TRUE(read) << read.error().message;
    return std::to_integer<unsigned>(byte);
  }

  test::TempDir dir_;
};

TEST_F(OpenImageTest, ShowsTheWholeChain) {
  ASSERT_TRUE(create_raw(dir_ / "base", 512 << 10));
  make("middle", "base", "raw");
  make("top", "middle");
  write("base", 0, 512 << 10, 1);
  write("middle", 65536, 65536, 2);
  write("top", 131072, 65536, 3);
  const Result<OpenImage> image = open("top");
  ASSERT_TRUE(image) << image.error().message;
  ASSERT_EQ(image->layers().size(), 3u);
  EXPECT_EQ(image->layers()[1].path, dir_ / "middle");
  EXPECT_EQ(image->layers()[2].format, Format::kRaw);
  EXPECT_EQ(byte_at(*image, 0), 1u);
  EXPECT_EQ(byte_at(*image, 65536), 2u);
  EXPECT_EQ(byte_at(*image, 131072), 3u);
  EXPECT_EQ(byte_at(*image, (512 << 10) - 1), 1u);
  EXPECT_EQ(byte_at(*image, 512 << 10), 0u);  // beyond the end of the base

  std::vector<BlockDevice*> layers;
  for (const auto& device : image->devices()) layers.push_back(device.get());
  const Result<std::vector<Extent>> extents = visible_extents(layers, 0, ~uint64_t{0} >> 1);
  ASSERT_TRUE(extents);
  const std::vector<Extent> expected = {{0, 512 << 10, ExtentKind::kData}, {512 << 10, 512 << 10, ExtentKind::kZero}};
  EXPECT_EQ(*extents, expected);
}

TEST_F(OpenImageTest, OpensOneFileWhenAskedForOne) {
  make("top", "nowhere");
  const Result<OpenImage> image = open("top", {.use = Use::kInspect, .open_backing = false});
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->layers().size(), 1u);
}

TEST_F(OpenImageTest, NamesTheChainThatIsBroken) {
  make("middle", "gone");
  make("top", "middle");
  OpenFailure failure;
  const Result<OpenImage> image = open_image(dir_ / "top", {}, &failure);
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(image.error().notes.back(),
            fmt::format("the chain: {} → {} → {}", dir_ / "top", dir_ / "middle", dir_ / "gone"));
  EXPECT_EQ(failure.layer, 2u);
  EXPECT_EQ(failure.path, dir_ / "gone");
  EXPECT_EQ(failure.cause->sys_errno, ENOENT);
}

TEST_F(OpenImageTest, NeverGuessesABackingFormat) {
  make("base");
  make("top", "base", "");
  const Result<OpenImage> image = open("top");
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().kind, ErrorKind::kRefused);
  EXPECT_NE(image.error().message.find("does not say which format"), std::string::npos) << image.error().message;
  EXPECT_NE(image.error().notes.front().find("rebase -u -F FORMAT -b 'base'"), std::string::npos);
}

TEST_F(OpenImageTest, ReadsARawBackingFileAsRawWhateverItHolds) {
  make("guest-controlled", "/etc/passwd", "raw");  // a guest wrote a qcow2 header into its raw disk
  make("top", "guest-controlled", "raw");
  const Result<OpenImage> image = open("top");
  ASSERT_TRUE(image) << image.error().message;
  EXPECT_EQ(image->layers().size(), 2u);
  EXPECT_EQ(byte_at(*image, 0), static_cast<unsigned>('Q'));
}

TEST_F(OpenImageTest, RefusesNamesThatAreNoPaths) {
  for (const char* name : {"json:{\"driver\":\"raw\"}", "nbd://localhost/x", "http://localhost/x", "ssh:x"}) {
    make("top", name, "raw");
    const Result<OpenImage> image = open("top");
    ASSERT_FALSE(image) << name;
    EXPECT_EQ(image.error().kind, ErrorKind::kRefused) << name;
    EXPECT_FALSE(open_image(name, {})) << name;
  }
}

TEST_F(OpenImageTest, FindsCyclesWhateverTheirNames) {
  make("one", "two");
  make("two", "link");
  ASSERT_EQ(::symlink("one", (dir_ / "link").c_str()), 0);
  const Result<OpenImage> image = open("one");
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().kind, ErrorKind::kCorrupt);
  EXPECT_NE(image.error().message.find("is its own backing file"), std::string::npos) << image.error().message;
}

TEST_F(OpenImageTest, TakesChainsUpToTheLimit) {
  make("0");
  for (size_t i = 1; i <= kMaxChainDepth; ++i) make(fmt::format("{}", i), fmt::format("{}", i - 1));
  const Result<OpenImage> longest = open(fmt::format("{}", kMaxChainDepth - 1));
  ASSERT_TRUE(longest) << longest.error().message;
  EXPECT_EQ(longest->layers().size(), kMaxChainDepth);
  EXPECT_EQ(byte_at(*longest, 0), 0u);
  const Result<OpenImage> too_long = open(fmt::format("{}", kMaxChainDepth));
  ASSERT_FALSE(too_long);
  EXPECT_EQ(too_long.error().kind, ErrorKind::kRefused);
}

TEST_F(OpenImageTest, LetsOnlyOneWriteAndManyRead) {
  make("base");
  make("top", "base");
  const Result<OpenImage> first = open("top", {.use = Use::kWrite});
  ASSERT_TRUE(first);
  const Result<OpenImage> second = open("top");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().kind, ErrorKind::kInUse);
  EXPECT_TRUE(open("top", {.share_with_writers = true}));
  EXPECT_TRUE(open("base"));                         // it is only read below the overlay…
  EXPECT_FALSE(open("base", {.use = Use::kWrite}));  // …and must not change there
}

TEST_F(OpenImageTest, RoundsRawImagesUpToSectors) {
  dir_.write("odd", std::string(1000, 'x'));
  const Result<OpenImage> image = open("odd");
  ASSERT_TRUE(image);
  EXPECT_TRUE(image->was_probed());
  EXPECT_EQ(*image->device()->size(), 1024u);
  EXPECT_EQ(byte_at(*image, 999), static_cast<unsigned>('x'));
  EXPECT_EQ(byte_at(*image, 1000), 0u);
  std::byte byte;
  EXPECT_FALSE(image->device()->read_at(1024, {&byte, 1}));
  const Result<std::vector<Extent>> extents = image->device()->extents(0, 4096);
  ASSERT_TRUE(extents);
  EXPECT_EQ(extents->back().offset + extents->back().length, 1024u);
}

TEST_F(OpenImageTest, LeavesNothingBehindWhenCreationFails) {
  qcow2::CreateOptions options;
  options.size = 1 << 20;
  options.cluster_size = 3000;
  EXPECT_FALSE(create_qcow2(dir_ / "new", options));
  EXPECT_NE(::access((dir_ / "new").c_str(), F_OK), 0);
}

}  // namespace
}  // namespace varve::image
