// Any image as one thing: a file opened by its declared format, with everything below it that shows through. What is
// above (operations, the command) sees a guest's disk as a BlockDevice and, where it wants to know, the layers that it
// is made of.
//
// Images come from strangers, so: backing files are opened by the format that the overlay's header records and never
// probed; names that are not paths (json:, nbd:, …) are refused; a chain has at most 200 layers and no cycle. An
// external data file is opened under the same rule, for every layer alike, and only where the guest's disk is looked
// at.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "image/encryption.h"
#include "image/format.h"
#include "image/luks_image.h"
#include "io/debug_device.h"
#include "io/file_device.h"
#include "qcow2/image.h"

namespace varve::image {

inline constexpr size_t kMaxChainDepth = 200;

enum class Use : uint8_t {
  kInspect,  // metadata only: no guest data is read, no external data file opened
  kRead,
  kWrite,
  kWriteMetadata,  // snapshots, bitmaps, names: no guest data is read or written, so no key is needed
};

// Devices that fail as they are told to. In both places the first lies below the others.
struct DebugFilters {
  std::vector<DebugOptions> on_file = {};  // below the format
  std::vector<DebugOptions> on_disk = {};  // over it
  bool empty() const { return on_file.empty() && on_disk.empty(); }
};

// What the user says of a layer below the top, in the place of what the header above it says.
struct LayerOptions {
  std::optional<std::string> path = std::nullopt;
  std::optional<Format> format = std::nullopt;
  Encryption encryption = {};
  DebugFilters filters = {};
};

struct OpenOptions {
  std::optional<Format> format = std::nullopt;  // without one, the top image (and only it) is probed
  Use use = Use::kRead;
  // Take no locks (-U): somebody may be writing, and what is read may be inconsistent. Not with Use::kWrite.
  bool share_with_writers = false;
  bool open_backing = true;
  // What would be opened for writing is opened to rehearse it: nothing is written (Access::kRehearse).
  bool rehearse = false;
  bool bypass_cache = false;  // files are read and written past the page cache, the ones of lower layers too
  bool no_flush = false;  // the top image is not made durable: one that is new, and of no use before it is whole
  // Besides the top, this layer of the chain is opened for writing: the image that a commit goes to.
  std::optional<size_t> writable_layer = std::nullopt;
  // In the place of the external data file that the top image names, or fails to name: the user's word, not an image's.
  std::optional<std::string> data_file = std::nullopt;
  // Of the top image. Without a passphrase, an encrypted one opens for metadata only (Use).
  Encryption encryption = {};
  DebugFilters filters = {};             // of the top image: the user's word, no image names them
  std::vector<LayerOptions> below = {};  // from the top's backing file on; there may be fewer or more than layers
};

// The file behind an image, whatever it is called: st_dev and st_ino.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  bool operator==(const FileIdentity&) const = default;
};

struct Layer {
  std::string path;  // as opened: an overlay's name for it, resolved
  Format format = Format::kRaw;
  FileIdentity file = {};
  // Of images with an external data file, where it was opened: its path, and the file behind it.
  std::optional<std::string> data_path = std::nullopt;
  FileIdentity data = {};
};

// Where opening a chain failed, for callers that have their own words for it: layer 0 is the image that was named.
struct OpenFailure {
  size_t layer = 0;
  std::string path;            // the layer's, or that of its external data file
  std::optional<Error> cause;  // without what the layers above add to it
};

class OpenImage {
 public:
  const std::vector<Layer>& layers() const { return layers_; }  // top first
  const std::string& path() const { return layers_.front().path; }
  Format format() const { return layers_.front().format; }
  bool was_probed() const { return was_probed_; }
  bool has_filters() const { return has_filters_; }  // the top layer: its files alone don't tell what it shows
  bool has_disk_filter() const { return has_disk_filter_; }

  // The guest's disk, backing files shining through. Lives as long as somebody holds it.
  const std::shared_ptr<BlockDevice>& device() const { return devices_.front(); }
  // The layers one by one, top first; extents() of each tells what it holds itself.
  const std::vector<std::shared_ptr<BlockDevice>>& devices() const { return devices_; }
  qcow2::Image* qcow2() const { return qcow2_.get(); }  // the top layer; null for other formats
  LuksImage* luks() const { return luks_.get(); }       // the top layer; null for other formats
  FileDevice& file() const { return *file_; }           // the top layer's
  // The file, or external data file, that guest data is written to in options.writable_layer, or else in the top.
  FileDevice& data_file() const { return *data_file_; }

 private:
  friend Result<OpenImage> open_image(const std::string&, const OpenOptions&, OpenFailure*);
  std::vector<Layer> layers_;
  std::vector<std::shared_ptr<BlockDevice>> devices_;
  std::shared_ptr<qcow2::Image> qcow2_;
  std::shared_ptr<LuksImage> luks_;
  std::shared_ptr<FileDevice> file_;
  std::shared_ptr<FileDevice> data_file_;
  bool was_probed_ = false;
  bool has_filters_ = false;
  bool has_disk_filter_ = false;
};

// Opens the image at `path` and, if options.open_backing, all below it: backing files for reading only, whatever the
// use of the top. Errors below the top name the chain in their notes.
Result<OpenImage> open_image(const std::string& path, const OpenOptions& options, OpenFailure* failure = nullptr);

// The chain's backing file of an overlay, as its header declares it: the resolved path and the format. kRefused where
// the format is missing, unknown, or the name is not a path; the message names the fix.
Result<Layer> declared_backing(const std::string& overlay_path, const qcow2::Header& header);

// Data or zeroes (ExtentKind::kUnallocated does not occur) of what a guest sees in [offset, offset+length), clipped to
// the size of `layers[0]`. The layers are a chain, top first; a backing file shorter than its overlay ends in zeroes.
Result<std::vector<Extent>> visible_extents(const std::vector<BlockDevice*>& layers, uint64_t offset, uint64_t length);

}  // namespace varve::image
