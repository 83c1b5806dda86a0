// One of the options that describe an image: driver=…, file.filename=…, or the same as a member of a json: name.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace varve::cli {

struct SourceOption {
  std::string key;
  std::string value;
  std::string json;  // the value as a json: name has it
};
using SourceOptions = std::vector<SourceOption>;

// Takes those whose keys begin with `prefix` out of `options`, and returns them without it.
SourceOptions take_prefixed(SourceOptions& options, std::string_view prefix);

// Of one that is given twice the last counts.
std::optional<std::string> value_of(const SourceOptions& options, std::string_view key);

// Whether it is one that tunes QEMU's own caches and threads: of no effect here, and no reason to refuse.
bool is_tuning_option(std::string_view key);

}  // namespace varve::cli
