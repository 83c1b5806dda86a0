// The command line of `image convert`, which has many options that must fit together.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/image_source.h"
#include "cli/snapshot_selector.h"

namespace varve::cli {

struct ConvertRequest {
  std::vector<std::string> sources;
  std::string target;
  SourceArguments source;
  std::optional<std::string> target_format;  // -O; raw if it is not given
  bool target_image_opts = false;
  std::optional<std::string> options;  // -o
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::optional<SnapshotSelector> snapshot;
  uint64_t sparse_size = 4096;
  bool skip_create = false;  // -n
  bool target_is_zero = false;
  std::string cache = "unsafe";            // -t
  std::string source_cache = "writeback";  // -T
  uint64_t bytes_per_second = 0;           // -r
  bool sparse_given = false;
  bool offload = false;  // -C
  bool compress = false;
  bool salvage = false;
  bool progress = false;
  bool quiet = false;
  bool bitmaps = false;
  bool skip_broken_bitmaps = false;
};

struct ConvertArguments {
  ConvertRequest request;
  std::optional<ImageExit> finished;  // printed: the help, or why not
};

ConvertArguments parse_convert_arguments(const ImageCall& call);

}  // namespace varve::cli
