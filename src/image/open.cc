#include "image/open.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "image/backing_name.h"
#include "image/raw_image.h"

namespace varve::image {

namespace {

LockRequest lock_for(size_t layer, Format format, const OpenOptions& options) {
  if (options.share_with_writers) return LockRequest::none();
  // Raw images have no metadata that a writer could change under us. QEMU takes the key slots of LUKS images for none
  // either: who changes them locks others out meanwhile.
  const bool is_plain = format != Format::kQcow2;
  if (layer > 0 && options.writable_layer == layer)
    return is_plain ? LockRequest::raw_writer() : LockRequest::format_writer();
  if (layer > 0) return LockRequest::backing_reader();
  switch (options.use) {
    case Use::kInspect:
      return is_plain ? LockRequest::none() : LockRequest::inspector();
    case Use::kRead:
      return is_plain ? LockRequest::raw_reader() : LockRequest::format_reader();
    case Use::kWrite:
    case Use::kWriteMetadata:
      return is_plain ? LockRequest::raw_writer() : LockRequest::format_writer();
  }
  return LockRequest::format_writer();
}

// Names what could not be read where it is the system that failed.
template <typename T>
Result<T> reading(Result<T> result, const char* what) {
  if (!result && result.error().sys_errno != 0)
    return std::move(result).error().context(fmt::format("Could not read {}", what));
  return result;
}

Result<FileIdentity> id_of(const FileDevice& file) {
  struct stat st = {};
  if (::fstat(file.fd(), &st) != 0) return system_error(errno, fmt::format("cannot examine '{}'", file.name()));
  return FileIdentity{st.st_dev, st.st_ino};
}

// The path of the external data file that an image names, as QEMU reads it: relative to where the program runs.
Result<std::string> data_file_path(const std::string& image_path, const qcow2::Header& header,
                                   const std::optional<std::string>& given) {
  if (!header.has_data_file()) {
    if ((header.autoclear_features & qcow2::kAutoclearRawDataFile) != 0)
      return make_error(ErrorKind::kCorrupt, "data-file-raw requires a data file");
    if (!given) return std::string();
    return make_error(ErrorKind::kInvalidArgument, "'data-file' can only be set for images with an external data file");
  }
  if (given) return *given;
  if (!header.data_file || header.data_file->empty()) {
    return make_error(ErrorKind::kInvalidArgument, "'data-file' is required for this image")
        .with_note(
            fmt::format("`--image-opts driver=qcow2,file.filename={},data-file.filename=FILE` names it", image_path));
  }
  const std::string path = resolve_backing_name("", *header.data_file);
  TRY(refuse_protocol(path));
  return path;
}

// One layer, without what is below it.
struct OpenLayer {
  Layer layer;
  std::shared_ptr<FileDevice> file;
  std::shared_ptr<FileDevice> data;      // holds guest data: `file`, or an external data file
  std::shared_ptr<BlockDevice> storage;  // `file`, with what filters it
  std::shared_ptr<BlockDevice> guest;    // the same for guest data
  std::shared_ptr<qcow2::Image> qcow2;   // null for other formats
  std::shared_ptr<LuksImage> luks;       // null for other formats
  std::shared_ptr<BlockDevice> device;
  bool probed = false;
};

void filter_file(OpenLayer& layer, const std::vector<DebugOptions>& filters) {
  layer.storage = layer.guest = layer.file;
  for (const DebugOptions& options : filters) {
    auto device = std::make_shared<DebugDevice>(layer.storage, options);
    layer.guest = std::make_shared<DebugGuestData>(device);
    layer.storage = std::move(device);
  }
}

// `data_file` is open, or null; `encryption` is what the user says of this layer.
Result<std::shared_ptr<qcow2::Image>> open_qcow2(const OpenLayer& layer, std::shared_ptr<BlockDevice> data_file,
                                                 bool writable, Use use, const Encryption& encryption) {
  const std::shared_ptr<BlockDevice>& file = layer.storage;
  const qcow2::Header header = TRY(qcow2::read_header(*file));
  if (!header.has_data_file() && layer.guest != layer.file) data_file = layer.guest;
  TRY(check_encryption_format(header, encryption));
  const bool needs_data = use == Use::kRead || use == Use::kWrite;
  qcow2::OpenOptions options{.writable = writable};
  if (header.crypt_method == qcow2::CryptMethod::kNone) {
    options.data = data_file;
  } else if (needs_data && encryption.passphrase) {
    // Without the key there is no data device: what the file holds is not what the guest sees, and nothing is to be
    // written there in plain.
    options.encrypted = TRY(open_encrypted(*file, header, *encryption.passphrase, data_file ? data_file : file));
  }
  std::shared_ptr<qcow2::Image> image = TRY(qcow2::Image::open(file, std::move(options)));
  if (needs_data && header.crypt_method != qcow2::CryptMethod::kNone) TRY(image->check_readable());
  return image;
}

Result<std::shared_ptr<LuksImage>> open_luks(const std::shared_ptr<BlockDevice>& file, Use use,
                                             const Encryption& encryption) {
  const bool needs_data = use != Use::kInspect;
  if (needs_data && !encryption.passphrase)
    return make_error(ErrorKind::kPermission, "Parameter 'key-secret' is required for cipher")
        .with_note(fmt::format("the image is encrypted; --object secret,id=ID,file=PATH and "
                               "--image-opts driver=luks,key-secret=ID,file.filename={} open it",
                               file->name()));
  return LuksImage::open(file, needs_data ? encryption.passphrase.get() : nullptr);
}

// `opening` is the file that was being opened when an error comes.
Result<OpenLayer> open_layer(size_t index, const std::string& path, std::optional<Format> format,
                             const OpenOptions& options, std::string& opening) {
  opening = path;
  TRY(refuse_protocol(path));
  const bool writes = options.use == Use::kWrite || options.use == Use::kWriteMetadata;
  const bool writable = index == 0 ? writes : options.writable_layer == index;
  OpenLayer result;
  // Which lock is right depends on the format, and reading the format needs no lock: a writer's lock would come in the
  // way of nothing but itself.
  const Access access = !writable ? Access::kReadOnly : options.rehearse ? Access::kRehearse : Access::kReadWrite;
  result.file = TRY(FileDevice::open(path, access, LockRequest::none()));
  if (options.bypass_cache) result.file->bypass_page_cache();
  result.data = result.file;
  result.probed = !format;
  const bool no_flush = index == 0 && options.no_flush;
  if (no_flush) result.file->ignore_flushes();
  const LayerOptions none;
  const LayerOptions& below = index <= options.below.size() && index != 0 ? options.below[index - 1] : none;
  const Encryption& encryption = index == 0 ? options.encryption : below.encryption;
  filter_file(result, (index == 0 ? options.filters : below.filters).on_file);
  result.layer = {path,
                  format ? *format : TRY(reading(probe_format(*result.storage), "image for determining its format")),
                  TRY(id_of(*result.file))};
  TRY(result.file->relock(lock_for(index, result.layer.format, options)));
  if (result.layer.format != Format::kQcow2 && index == 0 && options.data_file) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("Block format '{}' does not support the option 'data-file.filename'",
                                  name_of(result.layer.format)));
  }
  switch (result.layer.format) {
    case Format::kRaw:
      result.device = std::make_shared<RawImage>(
          result.guest, result.file->bypasses_page_cache() ? RawImage::Tail::kAsBefore : RawImage::Tail::kZero);
      return result;
    case Format::kLuks:
      result.luks = TRY(open_luks(result.storage, options.use, encryption));
      result.device = result.luks;
      return result;
    case Format::kQcow2:
      break;
  }
  if (!TRY(reading(looks_like_qcow2(*result.storage), "qcow2 header"))) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("'{}' is not a qcow2 image", path));
    error.path = path;
    error.offset = 0;
    return error;
  }
  std::shared_ptr<FileDevice> data;
  if (options.use != Use::kInspect) {
    const qcow2::Header header = TRY(qcow2::read_header(*result.storage));
    const std::string data_path =
        TRY(data_file_path(path, header, index == 0 ? options.data_file : std::optional<std::string>()));
    if (!data_path.empty()) {
      opening = data_path;
      data = TRY(FileDevice::open(data_path, access, lock_for(index, Format::kRaw, options)));
      result.data = data;
      if (options.bypass_cache) data->bypass_page_cache();
      if (no_flush) data->ignore_flushes();
      result.layer.data_path = data_path;
      result.layer.data = TRY(id_of(*data));
      opening = path;
    }
  }
  result.qcow2 = TRY(open_qcow2(result, std::move(data), writable, options.use, encryption));
  result.device = result.qcow2;
  return result;
}

// What the layer shows, through the user's filters.
std::shared_ptr<BlockDevice> filtered_disk(const OpenLayer& layer, size_t index, const OpenOptions& options) {
  std::shared_ptr<BlockDevice> disk = layer.device;
  if (index > options.below.size()) return disk;
  const DebugFilters& filters = index == 0 ? options.filters : options.below[index - 1].filters;
  for (const DebugOptions& filter : filters.on_disk) disk = std::make_shared<DebugDevice>(disk, filter);
  return disk;
}

std::string chain_text(const std::vector<Layer>& layers, const std::string& last) {
  std::string text = "the chain: ";
  for (const Layer& layer : layers) text += layer.path + " → ";
  return text + last;
}

}  // namespace

Result<Layer> declared_backing(const std::string& overlay_path, const qcow2::Header& header) {
  const std::string& name = *header.backing_file;
  if (!header.backing_format) {
    // Guessing it would let a guest decide: whoever writes a qcow2 header into a raw disk could name any file.
    return make_error(ErrorKind::kRefused,
                      fmt::format("'{}' does not say which format its backing file '{}' has", overlay_path, name))
        .with_note(
            fmt::format("`qemu-img rebase -u -F FORMAT -b '{}' '{}'` records it, FORMAT being raw, qcow2 or luks", name,
                        overlay_path));
  }
  const std::optional<Format> format = format_of_name(*header.backing_format);
  if (!format) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("the backing file '{}' of '{}' has the format {}, which Varve "
                                  "does not read",
                                  name, overlay_path, *header.backing_format));
  }
  Layer layer{resolve_backing_name(overlay_path, name), *format, {}};
  TRY(refuse_protocol(layer.path));
  return layer;
}

Result<OpenImage> open_image(const std::string& path, const OpenOptions& options, OpenFailure* failure) {
  CHECK(!options.share_with_writers || options.use == Use::kInspect || options.use == Use::kRead);
  OpenImage image;
  image.has_filters_ = !options.filters.empty();
  image.has_disk_filter_ = !options.filters.on_disk.empty();
  // "file:" says that a path follows, whatever it looks like.
  std::string next_path = path.starts_with("file:") ? path.substr(5) : path;
  if (path.starts_with("file:") && protocol_of(next_path)) next_path.insert(0, "./");
  std::optional<Format> next_format = options.format;

  std::string opening = next_path;
  const auto fail = [&](Error error) -> Error {
    const size_t depth = image.layers_.size();
    if (failure != nullptr) *failure = {depth, opening, error};
    if (depth == 0) return error;
    return std::move(error)
        .context(fmt::format("'{}' can't be opened, for a file below it", path))
        .with_note(chain_text(image.layers_, next_path));
  };

  std::shared_ptr<qcow2::Image> above;
  for (;;) {
    Result<OpenLayer> opened = open_layer(image.layers_.size(), next_path, next_format, options, opening);
    if (!opened) return fail(std::move(opened).error());
    if (std::ranges::any_of(image.layers_, [&](const Layer& l) { return l.file == opened->layer.file; })) {
      return fail(make_error(ErrorKind::kCorrupt,
                             fmt::format("'{}' is its own backing file, directly or through others", next_path)));
    }
    opened->device = filtered_disk(*opened, image.layers_.size(), options);
    if (above) above->set_backing(opened->device);
    image.layers_.push_back(opened->layer);
    image.devices_.push_back(opened->device);
    if (image.layers_.size() == 1) {
      image.qcow2_ = opened->qcow2;
      image.luks_ = opened->luks;
      image.file_ = opened->file;
      image.was_probed_ = opened->probed;
    }
    if (image.layers_.size() - 1 == options.writable_layer.value_or(0)) image.data_file_ = opened->data;
    const LayerOptions* given =
        image.layers_.size() <= options.below.size() ? &options.below[image.layers_.size() - 1] : nullptr;
    if (!options.open_backing || !opened->qcow2) return image;
    if (!opened->qcow2->header().backing_file && !(given && given->path)) return image;
    if (image.layers_.size() >= kMaxChainDepth) {
      return fail(
          make_error(ErrorKind::kRefused, fmt::format("the backing chain is longer than {} images", kMaxChainDepth)));
    }
    above = opened->qcow2;
    if (given && given->path) {
      next_path = *given->path;
      next_format = given->format;
      const auto& declared = above->header().backing_format;
      if (!next_format && declared) next_format = format_of_name(*declared);
      if (next_format) continue;
      return fail(
          make_error(ErrorKind::kRefused, fmt::format("the format of the backing file '{}' is not given", next_path))
              .with_note("backing.driver=FORMAT gives it, FORMAT being raw, qcow2 or luks"));
    }
    const std::string overlay_path = next_path;
    next_path = *above->header().backing_file;
    Result<Layer> below = declared_backing(overlay_path, above->header());
    opening = next_path;
    if (!below) return fail(std::move(below).error());
    next_path = below->path;
    next_format = given && given->format ? given->format : below->format;
  }
}

namespace {

Result<void> append_visible(std::span<BlockDevice* const> layers, uint64_t offset, uint64_t length,
                            std::vector<Extent>& result) {
  if (layers.empty()) {
    append_extent(result, {offset, length, ExtentKind::kZero});
    return {};
  }
  uint64_t covered = 0;
  for (const Extent& extent : TRY(layers[0]->extents(offset, length))) {
    covered += extent.length;
    if (extent.kind == ExtentKind::kUnallocated) {
      TRY(append_visible(layers.subspan(1), extent.offset, extent.length, result));
    } else {
      append_extent(result, extent);
    }
  }
  append_extent(result, {offset + covered, length - covered, ExtentKind::kZero});  // beyond a short backing file
  return {};
}

}  // namespace

Result<std::vector<Extent>> visible_extents(const std::vector<BlockDevice*>& layers, uint64_t offset, uint64_t length) {
  const uint64_t size = TRY(layers.front()->size());
  std::vector<Extent> result;
  if (offset >= size) return result;
  TRY(append_visible(layers, offset, std::min(length, size - offset), result));
  return result;
}

}  // namespace varve::image
