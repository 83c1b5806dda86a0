// Writing compressed clusters.
#include <cerrno>
#include <cstring>

#include "base/checked.h"
#include "qcow2/compressed_cluster.h"
#include "qcow2/image.h"
#include "qcow2/image_state.h"

namespace varve::qcow2 {

// Compressors that are not at work, for whoever comes next: to set one up takes longer than a cluster.
Result<std::unique_ptr<ClusterCompressor>> Image::State::take_compressor() {
  {
    const std::lock_guard lock(compressors_lock);
    if (!compressors.empty()) {
      auto compressor = std::move(compressors.back());
      compressors.pop_back();
      return compressor;
    }
  }
  return ClusterCompressor::create(header.compression_type, header.cluster_size());
}

void Image::State::give_back(std::unique_ptr<ClusterCompressor> compressor) {
  const std::lock_guard lock(compressors_lock);
  compressors.push_back(std::move(compressor));
}

Result<void> Image::write_compressed(uint64_t offset, std::span<const std::byte> data) {
  if (!state_->writer) return make_error(ErrorKind::kPermission, name() + ": the image is open for reading only");
  if (state_->header.crypt_method != CryptMethod::kNone)
    return make_error(ErrorKind::kUnsupported, name() + ": Compression and encryption not supported at the same time");
  if (state_->header.has_data_file()) {
    Error error = make_error(ErrorKind::kUnsupported, name() + ": an external data file holds no compressed clusters");
    error.sys_errno = ENOTSUP;
    return error;
  }
  const uint64_t cluster_size = state_->header.cluster_size();
  const auto end = checked_add(offset, data.size());
  if (offset % cluster_size != 0 || !end || *end > state_->header.size ||
      (*end % cluster_size != 0 && *end != state_->header.size)) {
    return make_error(ErrorKind::kInvalidArgument, name() + ": compressed clusters are written whole");
  }
  TRY(record_write(offset, data.size()));
  auto compressor = TRY(state_->take_compressor());
  std::vector<std::byte> last;
  while (!data.empty()) {
    const auto piece = data.first(std::min<uint64_t>(cluster_size, data.size()));
    std::span<const std::byte> cluster = piece;
    if (piece.size() < cluster_size) {  // the end of the disk: zeroes behind it
      last.assign(cluster_size, std::byte{0});
      std::memcpy(last.data(), piece.data(), piece.size());
      cluster = last;
    }
    const std::span<const std::byte> stream = TRY(compressor->compress(cluster));
    if (stream.empty()) {
      TRY(write_at(offset, piece));
    } else {
      const std::shared_lock io(state_->io_lock);
      const std::lock_guard lock(state_->metadata_lock);
      TRY(state_->writer->write_compressed(offset, stream));
      if (state_->writer->wants_write_back()) TRY(state_->writer->write_back());
    }
    offset += piece.size();
    data = data.subspan(piece.size());
  }
  state_->give_back(std::move(compressor));
  return {};
}

}  // namespace varve::qcow2
