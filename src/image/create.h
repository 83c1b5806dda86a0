// New images as files.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "image/format.h"
#include "image/new_space.h"
#include "qcow2/image.h"

namespace varve::image {

// What the file system is asked for.
struct FileOptions {
  NewSpace space = NewSpace::kSparse;  // kMetadata: qcow2 only, where it goes with options.preallocate_metadata
  bool nocow = false;                  // btrfs: no copy on write; of no effect elsewhere
  // XFS: bytes that are allocated at once where the file grows, 0: none; of no effect elsewhere.
  std::optional<uint64_t> extent_size_hint = std::nullopt;  // without one, 1 MiB as with QEMU
  std::function<void(const std::string&)> warn = nullptr;   // told that an explicit hint was not taken
};

// Creates the image file at `path`, or overwrites what is there once nobody else uses it. What was not there before and
// can't be finished is removed again.
Result<void> create_raw(const std::string& path, uint64_t size,  // size: bytes, rounded up to whole sectors
                        const FileOptions& file_options = {});
// LUKS, with `passphrase` in its first key slot. The disk reads as noise until it is written to. kMetadata: kSparse.
Result<void> create_luks(const std::string& name, uint64_t size, const crypto::LuksFormat& format,
                         const crypto::SecretBytes& passphrase, const FileOptions& file_options = {});
// With options.data_file, that file is made, too, or overwritten; then it is the one that takes the space.
Result<void> create_qcow2(const std::string& path, const qcow2::CreateOptions& options,
                          const FileOptions& file_options = {});

}  // namespace varve::image
