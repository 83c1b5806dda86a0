// The functions of libarchive that are used here (https://www.libarchive.org, libarchive(3)), which is loaded when
// somebody makes or reads an archive: it brings six libraries along.
#pragma once

#include <archive.h>
#include <archive_entry.h>

#include "base/result.h"

namespace varve::archive {

#define VARVE_ARCHIVE_FUNCTIONS(X)         \
  X(archive_entry_filetype)                \
  X(archive_entry_free)                    \
  X(archive_entry_hardlink)                \
  X(archive_entry_new2)                    \
  X(archive_entry_pathname)                \
  X(archive_entry_perm)                    \
  X(archive_entry_set_filetype)            \
  X(archive_entry_set_hardlink)            \
  X(archive_entry_set_mtime)               \
  X(archive_entry_set_pathname)            \
  X(archive_entry_set_perm)                \
  X(archive_entry_set_size)                \
  X(archive_entry_size)                    \
  X(archive_entry_sparse_add_entry)        \
  X(archive_entry_sparse_count)            \
  X(archive_errno)                         \
  X(archive_error_string)                  \
  X(archive_filter_bytes)                  \
  X(archive_read_data_block)               \
  X(archive_read_free)                     \
  X(archive_read_new)                      \
  X(archive_read_next_header)              \
  X(archive_read_open_fd)                  \
  X(archive_read_support_format_tar)       \
  X(archive_write_close)                   \
  X(archive_write_data)                    \
  X(archive_write_data_block)              \
  X(archive_write_disk_new)                \
  X(archive_write_disk_set_options)        \
  X(archive_write_finish_entry)            \
  X(archive_write_free)                    \
  X(archive_write_header)                  \
  X(archive_write_new)                     \
  X(archive_write_open_fd)                 \
  X(archive_write_set_bytes_in_last_block) \
  X(archive_write_set_bytes_per_block)     \
  X(archive_write_set_format_pax_restricted)

struct Library {
#define VARVE_ARCHIVE_MEMBER(name) decltype(&::name) name = nullptr;
  VARVE_ARCHIVE_FUNCTIONS(VARVE_ARCHIVE_MEMBER)
#undef VARVE_ARCHIVE_MEMBER
};

// Calls from several threads are safe. kUnsupported where there is no libarchive, or one that lacks a function.
Result<const Library*> load_library();
// After load_library() has succeeded.
const Library& library();

}  // namespace varve::archive
