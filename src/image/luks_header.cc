#include "image/luks_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/endian.h"

namespace varve::image {

namespace {

// LUKS On-Disk Format Specification 1.2, "phdr".
struct RawSlot {
  be32 active;
  be32 iterations;
  std::byte salt[32];
  be32 key_offset;  // sectors
  be32 stripes;
};
struct RawLuks {
  char magic[6];
  be16 version;
  char cipher[32];
  char mode[32];
  char hash[32];
  be32 payload_offset;  // sectors
  be32 key_bytes;
  std::byte key_digest[20];
  std::byte key_digest_salt[32];
  be32 key_digest_iterations;
  char uuid[40];
  RawSlot slots[8];
};
static_assert(sizeof(RawLuks) == 592);

constexpr char kMagic[6] = {'L', 'U', 'K', 'S', '\xba', '\xbe'};
constexpr uint32_t kSlotActive = 0x00ac71f3;
constexpr uint64_t kSector = 512;

template <size_t N>
std::string text_of(const char (&field)[N]) {
  return {field, ::strnlen(field, N)};
}

Error corrupt(BlockDevice& file, const std::string& what) {
  Error error = make_error(ErrorKind::kCorrupt, fmt::format("{}: {}", file.name(), what));
  error.path = file.name();
  return error;
}

}  // namespace

Result<LuksHeader> read_luks_header(BlockDevice& file, const qcow2::Header& header) {
  const auto extension =
      std::ranges::find(header.extensions, uint32_t{qcow2::kExtensionCrypto}, &qcow2::HeaderExtension::type);
  if (extension == header.extensions.end() || extension->data.size() != 16) {
    return corrupt(file, "the header of an encrypted image does not say where its keys are");
  }
  const auto offset = load_be<uint64_t>(extension->data.data());
  const auto length = load_be<uint64_t>(extension->data.data() + 8);
  const uint64_t file_size = TRY(file.size());
  RawLuks raw;
  if (length < sizeof raw || offset > file_size || file_size - offset < sizeof raw) {
    return corrupt(file, "the encryption header lies outside of the file");
  }
  TRY(file.read_at(offset, std::as_writable_bytes(std::span(&raw, 1))));
  if (std::memcmp(raw.magic, kMagic, sizeof kMagic) != 0 || raw.version != 1) {
    return corrupt(file, "the encryption header is not one of LUKS version 1");
  }

  LuksHeader result;
  const std::string mode = text_of(raw.mode);  // "xts-plain64", "cbc-essiv:sha256"
  const size_t dash = mode.find('-');
  result.mode = mode.substr(0, dash);
  if (dash != std::string::npos) {
    const std::string generator = mode.substr(dash + 1);
    const size_t colon = generator.find(':');
    result.iv_generator = generator.substr(0, colon);
    if (colon != std::string::npos) result.iv_hash = generator.substr(colon + 1);
  }
  // XTS takes two keys.
  const uint32_t key_bytes = result.mode == "xts" ? raw.key_bytes / 2 : uint32_t{raw.key_bytes};
  result.cipher = fmt::format("{}-{}", text_of(raw.cipher), uint64_t{key_bytes} * 8);
  result.hash = text_of(raw.hash);
  result.uuid = text_of(raw.uuid);
  result.payload_offset = raw.payload_offset * kSector;
  result.master_key_iterations = raw.key_digest_iterations;
  for (size_t i = 0; i < result.slots.size(); ++i) {
    const RawSlot& slot = raw.slots[i];
    result.slots[i] = {slot.active == kSlotActive, slot.iterations, slot.stripes, slot.key_offset * kSector};
  }
  return result;
}

}  // namespace varve::image
