#include "qcow2/compressed_cluster.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>
#include <string>

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

}  // namespace varve::qcow2
