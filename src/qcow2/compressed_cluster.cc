#include "qcow2/compressed_cluster.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <memory>
#include <string>

#include "qcow2/incompressible.h"

namespace varve::qcow2 {
namespace {

constexpr int kMaxZstdWindowLog = 23;  // 8 MiB, which RFC 8878 asks of every decoder; QEMU writes 2 MiB at the most

Error broken(const std::string& why) {
  return make_error(ErrorKind::kCorrupt, "compressed cluster does not decode: " + why);
}

Result<void> inflate_cluster(std::span<const std::byte> input, std::span<std::byte> cluster) {
  z_stream stream{};
  if (::inflateInit2(&stream, -12) != Z_OK) return broken("zlib does not start");
  const auto end = [](z_stream* s) { ::inflateEnd(s); };
  const std::unique_ptr<z_stream, decltype(end)> guard(&stream, end);
  // zlib's interface is not const-correct; it does not write to its input.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(input.data()));
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef*>(cluster.data());
  stream.avail_out = static_cast<uInt>(cluster.size());
  const int ret = ::inflate(&stream, Z_FINISH);
  if ((ret == Z_STREAM_END || ret == Z_BUF_ERROR) && stream.avail_out == 0) return {};
  return broken(stream.msg != nullptr ? stream.msg : "the stream ends too early");
}

constexpr int kDeflateWindowBits = -12;
constexpr int kDeflateMemoryLevel = 9;

Error compressor_failed(const std::string& why) {
  return make_error(ErrorKind::kIo, "compressing a cluster: " + why);
}

class Deflater final : public ClusterCompressor {
 public:
  explicit Deflater(uint64_t cluster_size) : output_(cluster_size - 1) {}
  Deflater(const Deflater&) = delete;
  Deflater& operator=(const Deflater&) = delete;
  ~Deflater() override {
    if (started_) ::deflateEnd(&stream_);
  }
  Result<void> start() {
    started_ = ::deflateInit2(&stream_, Z_DEFAULT_COMPRESSION, Z_DEFLATED, kDeflateWindowBits, kDeflateMemoryLevel,
                              Z_DEFAULT_STRATEGY) == Z_OK;
    if (!started_) return compressor_failed("zlib does not start");
    return {};
  }
  Result<std::span<const std::byte>> compress(std::span<const std::byte> cluster) override {
    if (is_incompressible(cluster)) return std::span<const std::byte>{};
    if (::deflateReset(&stream_) != Z_OK) return compressor_failed("zlib does not start again");
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(cluster.data()));
    stream_.avail_in = static_cast<uInt>(cluster.size());
    stream_.next_out = reinterpret_cast<Bytef*>(output_.data());
    stream_.avail_out = static_cast<uInt>(output_.size());
    if (::deflate(&stream_, Z_FINISH) != Z_STREAM_END) return std::span<const std::byte>{};
    return std::span<const std::byte>(output_).first(output_.size() - stream_.avail_out);
  }

 private:
  z_stream stream_{};
  bool started_ = false;
  std::vector<std::byte> output_;
};

class Zstd final : public ClusterCompressor {
 public:
  explicit Zstd(uint64_t cluster_size) : context_(ZSTD_createCCtx(), &ZSTD_freeCCtx), output_(cluster_size - 1) {}
  Result<std::span<const std::byte>> compress(std::span<const std::byte> cluster) override {
    if (!context_) return compressor_failed("zstd does not start");
    const size_t size =
        ::ZSTD_compress2(context_.get(), output_.data(), output_.size(), cluster.data(), cluster.size());
    if (::ZSTD_isError(size) != 0) {
      if (::ZSTD_getErrorCode(size) == ZSTD_error_dstSize_tooSmall) return std::span<const std::byte>{};
      return compressor_failed(::ZSTD_getErrorName(size));
    }
    return std::span<const std::byte>(output_).first(size);
  }

 private:
  std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context_;
  std::vector<std::byte> output_;
};

Result<void> unzstd_cluster(std::span<const std::byte> input, std::span<std::byte> cluster) {
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(), &ZSTD_freeDCtx);
  if (!context) return broken("zstd does not start");
  // What a frame may make us allocate: far more than a cluster needs, far less than zstd would go along with.
  if (::ZSTD_isError(::ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kMaxZstdWindowLog)) != 0)
    return broken("zstd does not start");
  ZSTD_inBuffer in{input.data(), input.size(), 0};
  ZSTD_outBuffer out{cluster.data(), cluster.size(), 0};
  size_t ret = 0;
  while (out.pos < out.size) {
    const size_t in_before = in.pos;
    const size_t out_before = out.pos;
    ret = ::ZSTD_decompressStream(context.get(), &out, &in);
    if (::ZSTD_isError(ret) != 0) return broken(::ZSTD_getErrorName(ret));
    if (in.pos == in_before && out.pos == out_before) return broken("the stream ends too early");
  }
  if (ret != 0) return broken("its last frame does not end with the cluster");  // as QEMU sees it
  return {};
}

}  // namespace

Result<void> decompress_cluster(CompressionType type, std::span<const std::byte> input, std::span<std::byte> cluster) {
  return type == CompressionType::kZstd ? unzstd_cluster(input, cluster) : inflate_cluster(input, cluster);
}

Result<std::unique_ptr<ClusterCompressor>> ClusterCompressor::create(CompressionType type, uint64_t cluster_size) {
  if (type == CompressionType::kZstd) return std::unique_ptr<ClusterCompressor>(std::make_unique<Zstd>(cluster_size));
  auto deflater = std::make_unique<Deflater>(cluster_size);
  TRY(deflater->start());
  return std::unique_ptr<ClusterCompressor>(std::move(deflater));
}

}  // namespace varve::qcow2
