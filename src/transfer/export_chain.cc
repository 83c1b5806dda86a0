#include "transfer/export_chain.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "domain/xml.h"
#include "qcow2/image.h"
#include "transfer/checksum.h"
#include "transfer/export_directory.h"

namespace varve {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSayWhere =
    "bring that back, or say where it is now: `vm import … --base DIRECTORY`, once for each that has moved";

// Where the export is that the one above stands on: the directory that its manifest names, unless one of those that the
// user names holds the right one.
class Bases {
 public:
  static Result<Bases> open(const std::vector<std::string>& directories, const std::string& domain) {
    Bases bases;
    for (const std::string& directory : directories) {
      Said said{.layout = TRY(Layout::open(directory)), .sha256 = {}};
      TRY(load_manifest(said.layout, domain, &said.sha256));
      bases.said_.push_back(std::move(said));
    }
    return bases;
  }

  Result<Layout> find(const ExportLevel& above) {
    for (Said& said : said_) {
      if (said.sha256 != above.manifest.base->manifest_sha256) continue;
      said.is_used = true;
      return said.layout;
    }
    const std::string path =
        (fs::path(above.layout.root()) / above.manifest.base->directory).lexically_normal().string();
    auto base = Layout::open(path);
    if (!base) {
      return std::move(base)
          .error()
          .context(fmt::format("the export in {} stands on an earlier one", above.layout.root()))
          .with_note(kSayWhere);
    }
    if (base->root() == path) return base;
    return make_error(ErrorKind::kRefused,
                      fmt::format("{}, which the export in {} stands on, is reached through a link", path,
                                  above.layout.root()))
        .with_note(fmt::format("`--base '{}'` says that it is meant", base->root()));
  }

  Result<void> check_all_used(const ExportLevel& top) const {
    for (const Said& said : said_) {
      if (said.is_used) continue;
      return make_error(ErrorKind::kRefused, fmt::format("the export in {} is none that the one in {} stands on: its "
                                                         "manifest is another one",
                                                         said.layout.root(), top.layout.root()))
          .with_note("it was changed or made anew since, or another one is meant");
    }
    return {};
  }

 private:
  struct Said {
    Layout layout;
    std::string sha256;
    bool is_used = false;
  };
  std::vector<Said> said_;
};

Result<void> check_paths(const ExportLevel& level) {
  for (const ManifestFile& file : level.manifest.files) {
    if (!file.path.starts_with(Layout::varve_directory() + "/")) continue;
    return make_error(ErrorKind::kCorrupt,
                      fmt::format("the manifest of '{}' in {} lists {}, which is no part of a machine",
                                  level.manifest.domain, level.layout.root(), file.path));
  }
  return {};
}

// A file where the manifest says, as long as that says.
Result<std::shared_ptr<FileDevice>> open_stored(const Layout& layout, const std::string& path, uint64_t size) {
  const std::string shown = layout.shown(path);
  const auto host_path = layout.resolve(path);
  if (!host_path && host_path.error().kind == ErrorKind::kNotFound) {
    return make_error(ErrorKind::kCorrupt, fmt::format("{} is missing, which the manifest lists", shown));
  }
  if (!host_path) return host_path.error();
  if (*host_path != shown) {
    return make_error(ErrorKind::kRefused,
                      fmt::format("{} is reached through a symbolic link, and an export has none", shown));
  }
  std::shared_ptr<FileDevice> file =
      TRY(FileDevice::open(*host_path, Access::kReadOnly, LockRequest::backing_reader()));
  const uint64_t there = TRY(file->size());
  if (there == size && !file->is_block_device()) return file;
  return make_error(ErrorKind::kCorrupt, fmt::format("{} has {} bytes, and the manifest says {}", shown, there, size))
      .with_note("the export was cut short, or changed afterwards");
}

// Nothing that the image names is opened: what it stands on is the manifests' affair, and it has to agree with them.
Result<std::shared_ptr<qcow2::Image>> open_delta(const std::shared_ptr<FileDevice>& file, const DeltaBacking& backing,
                                                 uint64_t size) {
  const auto lies = [&](const std::string& what) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("{} is no delta of the export: {}", file->name(), what));
    error.path = file->name();
    return error;
  };
  const qcow2::Header header = TRY(qcow2::read_header(*file));
  if (header.has_data_file()) return lies("it has its data in another file");
  if (header.crypt_method != qcow2::CryptMethod::kNone) return lies("it is encrypted");
  if (header.is_dirty() || header.is_corrupt()) return lies("it is marked as damaged");
  if (header.nb_snapshots != 0) return lies("it has snapshots");
  if (header.backing_file != backing.name || header.backing_format != backing.format) {
    return lies(fmt::format("it stands on '{}' ({}), and by the manifest it should on '{}' ({})",
                            header.backing_file.value_or(""), header.backing_format.value_or("no format"), backing.name,
                            backing.format));
  }
  if (header.version != 3 || header.cluster_size() != kDeltaCluster || header.refcount_order != 4 ||
      header.incompatible_features != 0 || header.autoclear_features != 0 || header.bitmaps) {
    return lies("it is a qcow2 image of another kind than varve writes");
  }
  if (header.size != in_sectors(size)) {
    return lies(fmt::format("its disk has {} bytes, for a file of {}", header.size, size));
  }
  return std::shared_ptr<qcow2::Image>(TRY(qcow2::Image::open(file, {})));
}

}  // namespace

Result<ExportChain> ExportChain::open(const Layout& layout, const std::string& domain,
                                      const std::vector<std::string>& bases) {
  Bases said = TRY(Bases::open(bases, domain));
  ExportChain chain;
  Layout at = layout;
  for (;;) {
    std::string sha256;
    Manifest manifest = TRY(load_manifest(at, domain, &sha256));
    if (chain.levels_.empty()) {
      chain.sha256_ = sha256;
    } else if (const ExportLevel& above = chain.levels_.back(); above.manifest.base->manifest_sha256 != sha256) {
      return make_error(ErrorKind::kCorrupt,
                        fmt::format("the export of '{}' in {} is not the one that {} was made upon: its manifest is "
                                    "another one",
                                    domain, at.root(), above.layout.root()))
          .with_note(
              "it was changed or made anew since; `vm import … --base DIRECTORY` takes the right one, if it is "
              "elsewhere");
    }
    chain.add({.layout = at, .manifest = std::move(manifest)});
    const ExportLevel& level = chain.levels_.back();
    TRY(check_paths(level));
    if (chain.levels_.size() > 1) TRY(chain.check_against_base(chain.levels_.size() - 2));
    if (!level.manifest.base) break;
    if (chain.levels_.size() > kMaxIncrements) {
      return make_error(ErrorKind::kRefused, fmt::format("more than {} incremental exports stand on one another in {}",
                                                         kMaxIncrements, layout.root()))
          .with_note("a full export begins anew: `varve vm export VM DIRECTORY`");
    }
    at = TRY(said.find(level));
    const bool is_circle =
        std::ranges::any_of(chain.levels_, [&](const ExportLevel& one) { return one.layout.root() == at.root(); });
    if (is_circle) {
      return make_error(ErrorKind::kCorrupt,
                        fmt::format("the export of '{}' in {} stands on itself", domain, at.root()));
    }
  }
  TRY(said.check_all_used(chain.levels_.front()));
  return chain;
}

ExportChain ExportChain::on(ExportLevel top, const ExportChain& base) {
  ExportChain chain;
  chain.add(std::move(top));
  for (const ExportLevel& level : base.levels_) chain.add(level);
  return chain;
}

void ExportChain::add(ExportLevel level) {
  Index& index = indexes_.emplace_back();
  for (const ManifestFile& file : level.manifest.files) index.emplace(file.path, index.size());
  levels_.push_back(std::move(level));
}

const ManifestFile* ExportChain::listed(const std::string& path, size_t level) const {
  const auto found = indexes_[level].find(path);
  return found == indexes_[level].end() ? nullptr : &levels_[level].manifest.files[found->second];
}

Result<const ManifestFile*> ExportChain::find(const std::string& path, size_t level) const {
  if (const ManifestFile* file = listed(path, level)) return file;
  return make_error(ErrorKind::kNotFound,
                    fmt::format("the export in {} has no {}", levels_[level].layout.root(), path));
}

// That what it says of files in its base is so.
Result<void> ExportChain::check_against_base(size_t level) const {
  const ExportLevel& above = levels_[level];
  const ExportLevel& below = levels_[level + 1];
  const auto lies = [&](const std::string& what) {
    return make_error(ErrorKind::kCorrupt,
                      fmt::format("the manifest of '{}' in {} does not fit that of its base, {}: {}",
                                  above.manifest.domain, above.layout.root(), below.layout.root(), what));
  };
  if (below.manifest.uuid != above.manifest.uuid) return lies("that is another machine, by its UUID");
  for (const ManifestFile& file : above.manifest.files) {
    if (file.storage == Storage::kWhole) continue;
    const ManifestFile* earlier = listed(file.path, level + 1);
    if (earlier == nullptr) return lies(fmt::format("that has no {}", file.path));
    if (file.storage != Storage::kUnchanged) continue;
    if (earlier->size_bytes != file.size_bytes || earlier->sha256 != file.sha256) {
      return lies(fmt::format("{} is another one there", file.path));
    }
  }
  return {};
}

DeltaBacking ExportChain::backing_of(const std::string& path, size_t level) const {
  const Manifest& top = levels_[level].manifest;
  fs::path name;
  const fs::path directory = fs::path(Layout::increment_directory(top.domain) + path).parent_path();
  for (const fs::path& part : directory.relative_path()) {
    if (!part.empty()) name /= "..";
  }
  for (size_t below = level; levels_[below].manifest.base; ++below) {
    name /= levels_[below].manifest.base->directory;
    const Manifest& manifest = levels_[below + 1].manifest;
    const ManifestFile* file = listed(path, below + 1);
    if (file == nullptr) break;
    if (file->storage == Storage::kUnchanged) continue;
    name /= stored_path(manifest, *file).substr(1);
    return {.name = name.lexically_normal().string(), .format = file->storage == Storage::kDelta ? "qcow2" : "raw"};
  }
  return {};
}

std::string ExportChain::path_in_qemu(const std::string& directory, const std::string& path) const {
  std::string there = directory;
  for (size_t level = 0; level < levels_.size(); ++level) {
    const ManifestFile* file = listed(path, level);
    if (file == nullptr) break;
    if (level == 0) there += stored_path(levels_[0].manifest, *file);
    if (file->storage == Storage::kWhole) break;
    if (file->storage == Storage::kDelta) there = directory_of(there) + "/" + backing_of(path, level).name;
  }
  return there;
}

std::vector<StoredFile> ExportChain::stored_files(const std::string& path) const {
  std::vector<StoredFile> stored;
  for (size_t level = 0; level < levels_.size(); ++level) {
    const ManifestFile* file = listed(path, level);
    if (file == nullptr) break;
    const bool is_delta = file->storage == Storage::kDelta;
    if (file->storage == Storage::kUnchanged) continue;
    stored.push_back({.layout = levels_[level].layout,
                      .path = stored_path(levels_[level].manifest, *file),
                      .size_bytes = is_delta ? file->delta_bytes : file->size_bytes,
                      .sha256 = is_delta ? file->delta_sha256 : file->sha256});
    if (!is_delta) break;
  }
  return stored;
}

Result<std::unique_ptr<ExportedFile>> ExportChain::open_file(const std::string& path) const {
  std::vector<std::shared_ptr<BlockDevice>> layers;
  std::vector<std::shared_ptr<FileDevice>> files;
  std::shared_ptr<qcow2::Image> above;
  for (size_t level = 0; level < levels_.size(); ++level) {
    const ManifestFile& said = *TRY(find(path, level));
    if (said.storage == Storage::kUnchanged) continue;
    const bool is_delta = said.storage == Storage::kDelta;
    std::shared_ptr<FileDevice> file =
        TRY(open_stored(levels_[level].layout, stored_path(levels_[level].manifest, said),
                        is_delta ? said.delta_bytes : said.size_bytes));
    std::shared_ptr<qcow2::Image> image;
    if (is_delta) image = TRY(open_delta(file, backing_of(path, level), said.size_bytes));
    layers.push_back(image ? std::shared_ptr<BlockDevice>(image) : file);
    files.push_back(std::move(file));
    if (above) above->set_backing(layers.back());
    above = image;
    if (!is_delta) break;
  }
  if (files.empty() || above) {
    return make_error(ErrorKind::kCorrupt, fmt::format("no export has the whole of {}", path));
  }
  return std::make_unique<ExportedFile>(std::move(layers), std::move(files), listed(path, 0)->size_bytes);
}

Result<std::string> ExportChain::document(const std::string& path) const {
  const ManifestFile* file = TRY(find(path, 0));
  const std::string place = stored_path(manifest(), *file);
  const std::string text = TRY(read_file(TRY(layout().resolve(place)), xml::kMaxDocumentSize));
  if (TRY(checksum_of(text)) == file->sha256) return text;
  return make_error(ErrorKind::kCorrupt, fmt::format("{} is not what the manifest says", layout().shown(place)));
}

Result<void> ExportChain::check_files(
    const std::function<Result<void>(const ManifestFile&, ExportedFile&)>& seen) const {
  for (const ManifestFile& file : manifest().files) {
    const auto opened = TRY(open_file(file.path));
    if (seen) TRY(seen(file, *opened));
  }
  return {};
}

Manifest whole(Manifest manifest) {
  manifest.base.reset();
  for (ManifestFile& file : manifest.files) {
    file.storage = Storage::kWhole;
    file.delta_bytes = 0;
    file.delta_sha256.clear();
  }
  return manifest;
}

}  // namespace varve
