// The format options of a new image (`-o NAME=VALUE,…`): parsed, listed and printed as qemu-img has them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "image/format.h"
#include "qcow2/image.h"

namespace varve::cli {

struct ImageOptionDescription;

// Whether `list` can follow -o: not empty, and no comma at either end (",," stands for a comma in a value).
bool is_option_list(const std::string& list);
// Whether an element of the list is `help` or `?`.
bool asks_for_help(const std::string& list);
// What `-o help` prints. `with_file`: also what the file system has to offer, as when the target is named.
std::string option_help(image::Format format, bool with_file);

std::string amend_help(image::Format format);  // the same for `amend`; not for raw, which has nothing to amend

enum class OptionUse : uint8_t { kCreate, kAmend };

class ImageOptions {
 public:
  explicit ImageOptions(image::Format format, OptionUse use = OptionUse::kCreate) : format_(format), use_(use) {}

  // `list` may be several lists joined by commas. Messages are qemu-img's.
  Result<void> parse(const std::string& list);
  Result<void> set(const std::string& name, const std::string& value);
  bool knows(const std::string& name) const;

  image::Format format() const { return format_; }
  std::optional<std::string> text(const std::string& name) const;
  std::optional<uint64_t> number(const std::string& name) const;
  bool flag(const std::string& name) const;

  // "cluster_size=65536 extended_l2=off …": given ones and those with a default, in QEMU's order.
  std::string formatted() const;

 private:
  struct Value {
    std::string text;  // as given
    uint64_t number = 0;
    bool flag = false;
  };
  image::Format format_;
  OptionUse use_;
  std::map<std::string, Value> values_;
};

// Why the image at `path` was not made with these options, in QEMU's words: the reason may be its external data file.
std::string qemu_create_reason(const Error& error, const std::string& path, const ImageOptions& options);
// Of a raw image, as QEMU does.
Result<void> check_raw_options(const ImageOptions& options);
// All that QEMU checks before it writes, in its order and words. `options` has the format qcow2 and a size.
Result<qcow2::CreateOptions> qcow2_create_options(const ImageOptions& options);

}  // namespace varve::cli
