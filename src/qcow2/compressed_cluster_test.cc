#include "qcow2/compressed_cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <random>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "support/image_bytes.h"

namespace varve::qcow2 {
namespace {

using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes noise(size_t bytes, unsigned seed = 1) {
  Bytes out(bytes);
  std::mt19937 random(seed);
  for (auto& b : out) b = static_cast<std::byte>(random());
  return out;
}

Bytes deflated(const Bytes& plain, int window_bits = 12, int last = Z_FINISH) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, -window_bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
  Bytes out(plain.size() + 1000);
  Bytes input = plain;
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, last);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

Bytes zstd_frame(const Bytes& plain, int window_log = 0, bool with_size = true) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  if (window_log != 0) ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, with_size ? 1 : 0);
  Bytes out(ZSTD_compressBound(plain.size()) + 1000);
  ZSTD_inBuffer in{plain.data(), plain.size(), 0};
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  // In two calls, so that the size is not known when the frame begins.
  if (!with_size) {
    EXPECT_FALSE(ZSTD_isError(ZSTD_compressStream2(context, &to, &in, ZSTD_e_flush)));
  }
  EXPECT_EQ(ZSTD_compressStream2(context, &to, &in, ZSTD_e_end), 0u);
  ZSTD_freeCCtx(context);
  out.resize(to.pos);
  return out;
}

Bytes operator+(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Decompresses into a cluster with something behind it, which must stay.
Result<Bytes> cluster_from(CompressionType type, const Bytes& input, size_t cluster_size) {
  Bytes room(cluster_size + 64, std::byte{0xcc});
  const auto result = decompress_cluster(type, input, std::span(room).first(cluster_size));
  EXPECT_EQ(Bytes(room.end() - 64, room.end()), Bytes(64, std::byte{0xcc}));
  if (!result) return result.error();
  room.resize(cluster_size);
  return room;
}

void expect_broken(const Result<Bytes>& result) {
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(result.error().message, HasSubstr("compressed cluster does not decode: "));
}

TEST(CompressedCluster, ZlibStreamsMayHaveAnythingBehindThem) {
  const Bytes plain = noise(3000) + Bytes(1096);
  EXPECT_EQ(*cluster_from(CompressionType::kZlib, deflated(plain), 4096), plain);
  EXPECT_EQ(*cluster_from(CompressionType::kZlib, deflated(plain) + noise(600, 2), 4096), plain);
  // Without its last block the cluster is whole, too.
  EXPECT_EQ(*cluster_from(CompressionType::kZlib, deflated(plain, 12, Z_SYNC_FLUSH), 4096), plain);
}

TEST(CompressedCluster, ZlibStreamsOfLargerWindowsAreRead) {
  // Distances of 8000 bytes: more than the window of 4 KiB that QEMU names, but it has the whole cluster before it.
  const Bytes block = noise(8000);
  const Bytes plain = block + block + block;
  const Bytes stream = deflated(plain, 15);
  ASSERT_LT(stream.size(), 10000u);
  EXPECT_EQ(*cluster_from(CompressionType::kZlib, stream, plain.size()), plain);
}

TEST(CompressedCluster, ABombFillsOneClusterAndNoMore) {
  const Bytes bomb(16 << 20);
  EXPECT_EQ(*cluster_from(CompressionType::kZlib, deflated(bomb), 512), Bytes(512));
  expect_broken(cluster_from(CompressionType::kZstd, zstd_frame(bomb), 512));
}

TEST(CompressedCluster, ZlibStreamsThatEndEarlyAreRefused) {
  const Bytes plain = noise(4096);
  const Bytes stream = deflated(plain);
  for (const size_t length : {size_t{0}, size_t{1}, stream.size() / 2, stream.size() - 10})
    expect_broken(
        cluster_from(CompressionType::kZlib, Bytes(stream.begin(), stream.begin() + static_cast<long>(length)), 4096));
  expect_broken(cluster_from(CompressionType::kZlib, deflated(Bytes(4095)), 4096));
}

TEST(CompressedCluster, BytesThatAreNoStreamAreRefused) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    (void)cluster_from(CompressionType::kZlib, noise(512, seed), 65536);
    expect_broken(cluster_from(CompressionType::kZstd, noise(512, seed), 65536));
  }
  expect_broken(cluster_from(CompressionType::kZlib, Bytes(512, std::byte{0xff}), 4096));
  expect_broken(cluster_from(CompressionType::kZstd, {}, 4096));
}

TEST(CompressedCluster, ZstdFramesMayBeSeveralAndHaveAnythingBehindThem) {
  const Bytes a = noise(2048);
  const Bytes b(2048, std::byte{7});
  EXPECT_EQ(*cluster_from(CompressionType::kZstd, zstd_frame(a) + zstd_frame(b), 4096), a + b);
  EXPECT_EQ(*cluster_from(CompressionType::kZstd, zstd_frame(a + b) + noise(300, 3), 4096), a + b);
}

TEST(CompressedCluster, AZstdFrameThatIsLongerThanTheClusterIsRefused) {
  expect_broken(cluster_from(CompressionType::kZstd, zstd_frame(noise(5000)), 4096));
  expect_broken(cluster_from(CompressionType::kZstd, zstd_frame(Bytes(5000), 0, false), 4096));
  expect_broken(cluster_from(CompressionType::kZstd, zstd_frame(Bytes(4095)), 4096));
  const Bytes whole = zstd_frame(noise(4096));
  expect_broken(cluster_from(CompressionType::kZstd, Bytes(whole.begin(), whole.end() - 5), 4096));
}

TEST(CompressedCluster, AZstdFrameThatWantsAWindowOf128MiBIsRefused) {
  const Bytes plain = noise(4096);
  EXPECT_EQ(*cluster_from(CompressionType::kZstd, zstd_frame(plain, 23, false), 4096), plain);
  expect_broken(cluster_from(CompressionType::kZstd, zstd_frame(plain, 27, false), 4096));
}

// An image of 4 KiB clusters whose first guest cluster is compressed, as its L2 entry says.
class CompressedEntry : public testing::Test {
 protected:
  static constexpr uint64_t kSectorsAt = 62 - (12 - 8);

  void SetUp() override {
    ASSERT_TRUE(Image::create(*file_, {.size = 1 << 20, .cluster_size = 4096}));
    const auto image = *Image::open(file_, {.writable = true});
    ASSERT_TRUE(image->write_at(0, Bytes(8192, std::byte{1})));
    ASSERT_TRUE(image->flush());
    l2_ = test::peek<uint64_t>(*file_, image->header().l1_table_offset) & ~(uint64_t{1} << 63);
    data_ = test::peek<uint64_t>(*file_, l2_) & ~(uint64_t{1} << 63);
  }
  void put_entry(uint64_t offset, uint64_t sectors_less_one) {
    test::poke(*file_, l2_, uint64_t{1} << 62 | sectors_less_one << kSectorsAt | offset);
  }
  Result<Bytes> read_first_cluster() {
    const auto image = TRY(Image::open(file_, {}));
    Bytes out(4096);
    TRY(image->read_at(0, out));
    return out;
  }
  void expect_refused(const std::string& message) {
    const auto before = test::contents(*file_);
    const auto read = read_first_cluster();
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().kind, ErrorKind::kCorrupt);
    EXPECT_THAT(read.error().message, HasSubstr("disk.qcow2: "));
    EXPECT_THAT(read.error().message, HasSubstr(message));
    EXPECT_TRUE(read.error().offset.has_value());
    EXPECT_EQ(test::contents(*file_), before);
  }

  std::shared_ptr<MemoryDevice> file_ = std::make_shared<MemoryDevice>("disk.qcow2");
  uint64_t l2_ = 0;
  uint64_t data_ = 0;
};

TEST_F(CompressedEntry, OfDataThatIsThereIsRead) {
  const Bytes plain = noise(2000) + Bytes(2096);
  const Bytes stream = deflated(plain);
  ASSERT_TRUE(file_->write_at(data_ + 100, stream));
  put_entry(data_ + 100, 4);
  EXPECT_EQ(*read_first_cluster(), plain);
}

TEST_F(CompressedEntry, BehindTheEndOfTheFileIsRefused) {
  put_entry(uint64_t{1} << 40, 0);
  expect_refused("compressed cluster at offset 0x10000000000 lies outside of the file");
  put_entry((uint64_t{1} << kSectorsAt) - 1, 15);
  expect_refused("compressed cluster at offset 0x3ffffffffffffff lies outside of the file");
}

TEST_F(CompressedEntry, ThatEndsBehindTheFileIsReadAsFarAsItGoes) {
  const Bytes plain = noise(1000) + Bytes(3096);
  const Bytes stream = deflated(plain);
  const uint64_t at = *file_->size() - stream.size();
  ASSERT_TRUE(file_->write_at(at, stream));
  put_entry(at, 15);
  EXPECT_EQ(*read_first_cluster(), plain);
  ASSERT_TRUE(file_->resize(*file_->size() - 30));
  expect_refused("does not decode");
}

TEST_F(CompressedEntry, OfGarbageIsRefused) {
  ASSERT_TRUE(file_->write_at(data_, Bytes(4096, std::byte{0xff})));
  put_entry(data_, 7);
  expect_refused("compressed cluster does not decode: ");
}

class CompressorOf : public testing::TestWithParam<CompressionType> {};

TEST_P(CompressorOf, ClustersComeBack) {
  std::mt19937_64 random(3);
  for (const uint64_t size : {512u, 4096u, 65536u, 2u << 20}) {
    const auto compressor = ClusterCompressor::create(GetParam(), size);
    ASSERT_TRUE(compressor);
    for (int round = 0; round < 4; ++round) {
      std::vector<std::byte> cluster(size);
      for (size_t i = 0; i < size; ++i) {
        const uint64_t value = round == 0 ? i / 100 : random() % 16 * (i % 300 < 250 ? 0 : 1);
        cluster[i] = static_cast<std::byte>(value);
      }
      const auto stream = (*compressor)->compress(cluster);
      ASSERT_TRUE(stream);
      ASSERT_FALSE(stream->empty());
      EXPECT_LT(stream->size(), size);
      std::vector<std::byte> back(size);
      ASSERT_TRUE(decompress_cluster(GetParam(), *stream, back));
      EXPECT_EQ(back, cluster);
    }
  }
}

TEST_P(CompressorOf, WhatDoesNotGetSmallerIsLeft) {
  std::mt19937_64 random(4);
  std::vector<std::byte> cluster(65536);
  for (std::byte& b : cluster) b = static_cast<std::byte>(random());
  const auto compressor = ClusterCompressor::create(GetParam(), cluster.size());
  ASSERT_TRUE(compressor);
  const auto stream = (*compressor)->compress(cluster);
  ASSERT_TRUE(stream);
  EXPECT_TRUE(stream->empty());
  // And the next one is not the worse for it.
  std::vector<std::byte> zeroes(65536);
  const auto next = (*compressor)->compress(zeroes);
  ASSERT_TRUE(next);
  std::vector<std::byte> back(65536, std::byte{1});
  ASSERT_TRUE(decompress_cluster(GetParam(), *next, back));
  EXPECT_EQ(back, zeroes);
}

INSTANTIATE_TEST_SUITE_P(Types, CompressorOf, testing::Values(CompressionType::kZlib, CompressionType::kZstd),
                         [](const auto& shape) { return shape.param == CompressionType::kZstd ? "Zstd" : "Zlib"; });

}  // namespace
}  // namespace varve::qcow2
