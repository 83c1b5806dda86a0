#include "transfer/archive.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <locale.h>  // NOLINT(modernize-deprecated-headers): uselocale
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <vector>

#include "archive/library.h"
#include "base/aligned_vector.h"
#include "base/atomic_file.h"
#include "base/unique_fd.h"
#include "transfer/manifest.h"

namespace varve {

namespace {

constexpr size_t kPiece = size_t{1} << 20;
constexpr mode_t kMode = 0600;

struct FreeEntry {
  void operator()(archive_entry* entry) const { archive::library().archive_entry_free(entry); }
};
struct FreeReader {
  void operator()(::archive* reader) const { archive::library().archive_read_free(reader); }
};

// libarchive takes names for characters of the thread's locale, and nobody has set one: they are UTF-8. Those that are
// not it writes as bytes.
class Utf8Names {
 public:
  Utf8Names() : locale_(::newlocale(LC_CTYPE_MASK, "C.UTF-8", nullptr)) {
    if (locale_ != nullptr) before_ = ::uselocale(locale_);
  }
  Utf8Names(const Utf8Names&) = delete;
  Utf8Names& operator=(const Utf8Names&) = delete;
  ~Utf8Names() {
    if (locale_ == nullptr) return;
    ::uselocale(before_);
    ::freelocale(locale_);
  }

 private:
  locale_t locale_ = nullptr;
  locale_t before_ = nullptr;
};

std::string name_of(archive_entry* entry) {
  const char* name = archive::library().archive_entry_pathname(entry);
  return name == nullptr ? "" : name;
}

}  // namespace

struct ArchiveWriter::Archive {
  std::string path;
  int64_t now_sec = 0;
  UniqueFd fd;
  ::archive* writer = nullptr;
  AlignedVector<std::byte> buffer = AlignedVector<std::byte>(kPiece);
  AlignedVector<std::byte> zeroes = AlignedVector<std::byte>(kPiece);

  Archive() = default;
  Archive(const Archive&) = delete;
  Archive& operator=(const Archive&) = delete;
  ~Archive() {
    if (writer != nullptr) archive::library().archive_write_free(writer);
  }

  Error failed() const {
    const int err = archive::library().archive_errno(writer);
    const char* text = archive::library().archive_error_string(writer);
    Error error = err > 0 ? system_error(err, fmt::format("can't write {}", path), path)
                          : make_error(ErrorKind::kIo, fmt::format("can't write {}: {}", path,
                                                                   text == nullptr ? "unknown error" : text));
    error.path = path;
    return error;
  }
  Result<void> begin(const std::string& name, uint64_t size, const std::vector<Extent>& extents) {
    const Utf8Names names;
    const std::unique_ptr<archive_entry, FreeEntry> entry(archive::library().archive_entry_new2(writer));
    archive::library().archive_entry_set_pathname(entry.get(), name.c_str());
    archive::library().archive_entry_set_size(entry.get(), static_cast<int64_t>(size));
    archive::library().archive_entry_set_filetype(entry.get(), S_IFREG);
    archive::library().archive_entry_set_perm(entry.get(), kMode);
    archive::library().archive_entry_set_mtime(entry.get(), now_sec, 0);
    const bool has_holes = std::ranges::any_of(extents, [](const Extent& e) { return e.kind != ExtentKind::kData; });
    for (const Extent& extent : extents) {
      if (!has_holes || extent.kind != ExtentKind::kData) continue;
      archive::library().archive_entry_sparse_add_entry(entry.get(), static_cast<int64_t>(extent.offset),
                                                        static_cast<int64_t>(extent.length));
    }
    // One that is nothing but a hole still has to say that it has holes.
    if (has_holes && archive::library().archive_entry_sparse_count(entry.get()) == 0) {
      archive::library().archive_entry_sparse_add_entry(entry.get(), static_cast<int64_t>(size), 0);
    }
    return archive::library().archive_write_header(writer, entry.get()) == ARCHIVE_OK ? Result<void>()
                                                                                      : Result<void>(failed());
  }
  Result<void> write(const void* bytes, size_t length) {
    const auto* at = static_cast<const char*>(bytes);
    while (length > 0) {
      const la_ssize_t written = archive::library().archive_write_data(writer, at, length);
      if (written <= 0) return failed();
      at += written;
      length -= static_cast<size_t>(written);
    }
    return {};
  }
};

ArchiveWriter::ArchiveWriter(std::unique_ptr<Archive> archive) : archive_(std::move(archive)) {}
ArchiveWriter::ArchiveWriter(ArchiveWriter&&) noexcept = default;
ArchiveWriter::~ArchiveWriter() = default;

Result<ArchiveWriter> ArchiveWriter::create(const std::string& path, int64_t now_sec) {
  const archive::Library& call = *TRY(archive::load_library());
  auto archive = std::make_unique<Archive>();
  archive->path = path + ".XXXXXX";
  archive->now_sec = now_sec;
  archive->fd = UniqueFd(::mkostemp(archive->path.data(), O_CLOEXEC));  // mode 0600
  if (!archive->fd) return system_error(errno, fmt::format("can't make {}", path), path);
  archive->writer = call.archive_write_new();
  if (archive->writer == nullptr) return make_error(ErrorKind::kInternal, "libarchive gives no writer");
  call.archive_write_set_format_pax_restricted(archive->writer);
  call.archive_write_set_bytes_per_block(archive->writer, kPiece);
  call.archive_write_set_bytes_in_last_block(archive->writer, 512);
  if (call.archive_write_open_fd(archive->writer, archive->fd.get()) != ARCHIVE_OK) return archive->failed();
  return ArchiveWriter(std::move(archive));
}

Result<void> ArchiveWriter::add(const std::string& name, std::string_view contents) {
  TRY(archive_->begin(name, contents.size(), {}));
  return archive_->write(contents.data(), contents.size());
}

Result<void> ArchiveWriter::add(const std::string& name, BlockDevice& device, const CopyObserver& observer) {
  const uint64_t size = TRY(device.size());
  const std::vector<Extent> extents = TRY(device.extents(0, size));
  TRY(archive_->begin(name, size, extents));
  for (const Extent& extent : extents) {
    const bool is_data = extent.kind == ExtentKind::kData;
    if (!is_data && observer.zeroes) observer.zeroes(extent.length);
    for (uint64_t done = 0; done < extent.length; done += kPiece) {
      const size_t length = std::min<uint64_t>(kPiece, extent.length - done);
      if (is_data) {
        const std::span piece = std::span(archive_->buffer).first(length);
        TRY(device.read_at(extent.offset + done, piece));
        if (observer.bytes) observer.bytes(piece);
      }
      // Holes are handed over, too; the archive knows that they are none of its bytes.
      TRY(archive_->write(is_data ? archive_->buffer.data() : archive_->zeroes.data(), length));
      if (observer.progress) TRY(observer.progress(extent.offset + done));
    }
  }
  return {};
}

const std::string& ArchiveWriter::part() const {
  return archive_->path;
}

Result<void> ArchiveWriter::finish() {
  if (archive::library().archive_write_close(archive_->writer) != ARCHIVE_OK) return archive_->failed();
  if (::fsync(archive_->fd.get()) != 0) {
    return system_error(errno, fmt::format("can't write {}", archive_->path), archive_->path);
  }
  return {};
}

Result<void> extract_archive(const std::string& path, const std::string& directory,
                             const std::function<Result<void>(uint64_t done)>& progress) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error(errno, fmt::format("can't open {}", path), path);
  const archive::Library& call = *TRY(archive::load_library());
  const std::unique_ptr<::archive, FreeReader> reader(call.archive_read_new());
  if (!reader) return make_error(ErrorKind::kInternal, "libarchive gives no reader");
  const auto corrupt = [&](const std::string& what) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("{} can't be read: {}", path, what));
    error.path = path;
    return error;
  };
  const auto failed = [&]() {
    const char* text = call.archive_error_string(reader.get());
    return corrupt(text == nullptr ? "it is no archive" : text);
  };
  call.archive_read_support_format_tar(reader.get());
  if (call.archive_read_open_fd(reader.get(), fd.get(), kPiece) != ARCHIVE_OK) return failed();
  std::set<std::string> seen;
  const Utf8Names names;
  for (;;) {
    archive_entry* entry = nullptr;
    const int next = call.archive_read_next_header(reader.get(), &entry);
    if (next == ARCHIVE_EOF) break;
    if (next != ARCHIVE_OK) return failed();
    std::string name = name_of(entry);
    if (call.archive_entry_filetype(entry) == AE_IFDIR) continue;
    if (call.archive_entry_filetype(entry) != AE_IFREG || call.archive_entry_hardlink(entry) != nullptr) {
      return corrupt(fmt::format("'{}' is no file", name));
    }
    if (name.starts_with("./")) name.erase(0, 2);  // as `tar c .` names them
    if (!is_plain_path("/" + name)) return corrupt(fmt::format("'{}' is no path below a directory", name));
    if (!seen.insert(name).second) return corrupt(fmt::format("it has '{}' twice", name));
    const std::string target = directory + "/" + name;
    std::error_code error;
    std::filesystem::create_directories(std::filesystem::path(target).parent_path(), error);
    if (error) return system_error(error.value(), fmt::format("can't make the directory of {}", target), target);
    const UniqueFd file = TRY(create_empty_file(target, kMode, std::nullopt));
    for (;;) {
      const void* bytes = nullptr;
      size_t length = 0;
      la_int64_t offset = 0;
      const int read = call.archive_read_data_block(reader.get(), &bytes, &length, &offset);
      if (read == ARCHIVE_EOF) break;
      if (read != ARCHIVE_OK) return failed();
      for (size_t done = 0; done < length;) {
        const ssize_t written = ::pwrite(file.get(), static_cast<const char*>(bytes) + done, length - done,
                                         offset + static_cast<off_t>(done));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return system_error(errno, fmt::format("can't write {}", target), target);
        done += static_cast<size_t>(written);
      }
      if (progress) TRY(progress(static_cast<uint64_t>(call.archive_filter_bytes(reader.get(), -1))));
    }
    if (::ftruncate(file.get(), call.archive_entry_size(entry)) != 0) {
      return system_error(errno, fmt::format("can't write {}", target), target);
    }
  }
  if (seen.empty()) return corrupt("it is no archive, or nothing is in it");
  return {};
}

}  // namespace varve
