#include "crypto/encrypted_device.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

#include "base/checked.h"

namespace varve::crypto {
namespace {

constexpr uint64_t kPiece = 256 << 10;  // encrypted at once for a write

uint64_t shift_of(uint64_t offset, uint64_t counted) {
  const uint64_t shift = counted - offset;
  CHECK(shift % kCryptoSector == 0);
  return shift;
}
uint64_t sector_of(uint64_t offset, uint64_t shift) {
  return (offset + shift) / kCryptoSector;
}

}  // namespace

// Whole sectors, decrypted where they were read to.
Result<void> EncryptedDevice::read_sectors(uint64_t offset, uint64_t shift, std::span<std::byte> buffer) {
  const uint64_t size = TRY(inner_->size());
  const uint64_t there = offset < size ? std::min<uint64_t>(buffer.size(), size - offset) : 0;
  if (there != 0) TRY(inner_->read_at(offset, buffer.first(there)));
  if (there != buffer.size()) std::memset(buffer.data() + there, 0, buffer.size() - there);
  return cipher_->decrypt(sector_of(offset, shift), buffer, buffer);
}

Result<void> EncryptedDevice::read_numbered(uint64_t offset, uint64_t counted, std::span<std::byte> buffer) {
  const uint64_t shift = shift_of(offset, counted);
  const std::shared_lock lock(partial_lock_);
  std::array<std::byte, kCryptoSector> sector;
  const auto read_part = [&](size_t length) -> Result<void> {
    const uint64_t start = align_down(offset, kCryptoSector);
    TRY(read_sectors(start, shift, sector));
    std::memcpy(buffer.data(), &sector[offset - start], length);
    offset += length;
    buffer = buffer.subspan(length);
    return {};
  };
  if (const uint64_t in_sector = offset % kCryptoSector; in_sector != 0 && !buffer.empty())
    TRY(read_part(std::min<size_t>(buffer.size(), kCryptoSector - in_sector)));
  if (const size_t whole = align_down(buffer.size(), kCryptoSector); whole != 0) {
    TRY(read_sectors(offset, shift, buffer.first(whole)));
    offset += whole;
    buffer = buffer.subspan(whole);
  }
  if (!buffer.empty()) TRY(read_part(buffer.size()));
  return {};
}

Result<void> EncryptedDevice::write_sectors(uint64_t offset, uint64_t length,
                                            const std::function<Result<void>(std::span<std::byte>, uint64_t)>& fill) {
  std::vector<std::byte> encrypted(std::min(length, kPiece));
  for (uint64_t done = 0; done < length;) {
    const auto piece = std::span(encrypted).first(std::min(length - done, kPiece));
    TRY(fill(piece, offset + done));
    TRY(inner_->write_at(offset + done, piece));
    done += piece.size();
  }
  return {};
}

// A part of one sector.
Result<void> EncryptedDevice::change_sector(uint64_t offset, uint64_t shift, std::span<const std::byte> data) {
  const uint64_t start = align_down(offset, kCryptoSector);
  std::array<std::byte, kCryptoSector> sector;
  const std::unique_lock lock(partial_lock_);
  TRY(read_sectors(start, shift, sector));
  std::memcpy(&sector[offset - start], data.data(), data.size());
  TRY(cipher_->encrypt(sector_of(start, shift), sector, sector));
  return inner_->write_at(start, sector);
}

Result<void> EncryptedDevice::write_numbered(uint64_t offset, uint64_t counted, std::span<const std::byte> data) {
  const uint64_t shift = shift_of(offset, counted);
  if (const uint64_t in_sector = offset % kCryptoSector; in_sector != 0 && !data.empty()) {
    const auto head = data.first(std::min<size_t>(data.size(), kCryptoSector - in_sector));
    TRY(change_sector(offset, shift, head));
    offset += head.size();
    data = data.subspan(head.size());
  }
  if (const size_t whole = align_down(data.size(), kCryptoSector); whole != 0) {
    const auto plain = data.first(whole);
    TRY(write_sectors(offset, whole, [&](std::span<std::byte> encrypted, uint64_t at) {
      return cipher_->encrypt(sector_of(at, shift), plain.subspan(at - offset, encrypted.size()), encrypted);
    }));
    offset += whole;
    data = data.subspan(whole);
  }
  if (!data.empty()) TRY(change_sector(offset, shift, data));
  return {};
}

Result<void> EncryptedDevice::write_zeroes_numbered(uint64_t offset, uint64_t counted, uint64_t length) {
  const uint64_t shift = shift_of(offset, counted);
  static constexpr std::array<std::byte, kCryptoSector> kZeroes{};
  const uint64_t size = TRY(inner_->size());
  if (offset >= size) return {};
  length = std::min(length, size - offset);
  const uint64_t end = offset + length;
  const uint64_t first_whole = std::min(align_up(offset, kCryptoSector), end);
  const uint64_t last_whole = std::max(align_down(end, kCryptoSector), first_whole);
  if (first_whole != offset) TRY(change_sector(offset, shift, std::span(kZeroes).first(first_whole - offset)));
  TRY(write_sectors(first_whole, last_whole - first_whole, [&](std::span<std::byte> encrypted, uint64_t at) {
    std::ranges::fill(encrypted, std::byte{0});
    return cipher_->encrypt(sector_of(at, shift), encrypted, encrypted);
  }));
  if (last_whole != end) TRY(change_sector(last_whole, shift, std::span(kZeroes).first(end - last_whole)));
  return {};
}

Result<std::vector<Extent>> EncryptedDevice::extents(uint64_t offset, uint64_t length) {
  const uint64_t size = TRY(inner_->size());
  if (offset >= size || length == 0) return std::vector<Extent>{};
  return std::vector<Extent>{{offset, std::min(length, size - offset), ExtentKind::kData}};
}

DeviceCapabilities EncryptedDevice::capabilities() const {
  DeviceCapabilities capabilities = inner_->capabilities();
  capabilities.has_extents = false;
  capabilities.grows_by_zeroes = false;
  return capabilities;
}

}  // namespace varve::crypto
