// The LUKS (version 1) header inside an encrypted qcow2 image, as far as `image info` tells of it: nothing is
// decrypted.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "io/block_device.h"
#include "qcow2/header.h"

namespace varve::image {

struct LuksSlot {
  bool active = false;
  uint32_t iterations = 0;
  uint32_t stripes = 0;
  uint64_t key_offset = 0;  // bytes from the header
};

struct LuksHeader {
  std::string cipher;  // "aes-256"
  std::string mode;    // "xts"
  std::string iv_generator;
  std::string iv_hash;  // empty unless the generator needs one
  std::string hash;
  std::string uuid;
  uint64_t payload_offset = 0;  // bytes
  uint32_t master_key_iterations = 0;
  std::array<LuksSlot, 8> slots;
};

// Reads the header that the crypto extension of `header` points to. kCorrupt where there is none.
Result<LuksHeader> read_luks_header(BlockDevice& file, const qcow2::Header& header);

}  // namespace varve::image
