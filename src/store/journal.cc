#include "store/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>

#include "base/atomic_file.h"
#include "base/endian.h"
#include "base/unique_fd.h"
#include "io/file_device.h"

namespace varve {

namespace {

constexpr std::string_view kSuffix = ".journal";
constexpr std::string_view kTemporarySuffix = ".journal.new";
constexpr uint64_t kMaxRecordBytes = uint64_t{1} << 30;
constexpr size_t kRefcountTableOffsetField = 48;  // bytes 48–55 of the header (qcow2 specification, "Header")

Result<void> remove_if_there(const std::string& path) {
  Result<void> removed = remove_file_durably(path);
  if (!removed && removed.error().kind == ErrorKind::kNotFound) return {};
  return removed;
}

// What a crash left beside the documents that it was replacing. Only in a directory that nobody but the holder of the
// domain's lock writes to.
void remove_temporary_files(const std::string& directory) {
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(directory.c_str()), ::closedir);
  if (!entries) return;
  while (const dirent* entry = ::readdir(entries.get())) {
    if (is_temporary_file_name(entry->d_name)) ::unlinkat(::dirfd(entries.get()), entry->d_name, 0);
  }
}

// What recovery finds an image to be.
enum class ImageState {
  kCommitted,  // has the new header, or one that QEMU made out of it since
  kPrepared,   // as it was when the record was written: the new header can be put in
  kChanged,    // not committed, and written to since: its prepared clusters may have been overwritten
};

struct OpenImage {
  const JournalImage* record = nullptr;
  std::unique_ptr<FileDevice> file;  // null where the file is gone
  ImageState state = ImageState::kChanged;
};

// Every commit moves the refcount table into clusters that were free before; QEMU moves it only to enlarge it. So it
// tells which of the two states a header that is neither descends from.
uint64_t refcount_table_offset(const qcow2::HeaderSector& sector) {
  return load_be<uint64_t>(sector.data() + kRefcountTableOffsetField);
}

Result<ImageState> state_of(FileDevice& file, const JournalImage& image) {
  if (TRY(file.size()) < qcow2::kHeaderSectorSize) return ImageState::kChanged;
  qcow2::HeaderSector present;
  TRY(file.read_at(0, present));
  if (present == image.after) return ImageState::kCommitted;
  if (present == image.before) {
    // The time of a block device's node says nothing of what is on it: what can't be shown to be unchanged isn't.
    const bool unchanged = !file.is_block_device() && TRY(stamp_of(file)).same_state_as(image.prepared);
    return unchanged ? ImageState::kPrepared : ImageState::kChanged;
  }
  const bool descends = refcount_table_offset(image.after) != refcount_table_offset(image.before) &&
                        refcount_table_offset(present) == refcount_table_offset(image.after);
  return descends ? ImageState::kCommitted : ImageState::kChanged;
}

// Opens and classifies all of them, in the order in which image locks are taken everywhere (by path).
Result<std::vector<OpenImage>> open_images(const Layout& layout, const JournalRecord& record) {
  std::vector<OpenImage> images;
  for (const JournalImage& image : record.images) images.push_back({.record = &image, .file = nullptr});
  std::ranges::sort(images, {}, [](const OpenImage& image) { return image.record->path; });
  for (OpenImage& image : images) {
    Result<std::string> path = layout.resolve(image.record->path);
    if (!path && path.error().kind == ErrorKind::kNotFound) continue;
    if (!path) return std::move(path).error();
    auto file = FileDevice::open(*path, Access::kReadWrite, LockRequest::format_writer());
    if (!file && file.error().kind == ErrorKind::kNotFound) continue;
    if (!file) return std::move(file).error();
    image.file = std::move(*file);
    image.state = TRY(state_of(*image.file, *image.record));
  }
  return images;
}

std::string named(const OpenImage& image) {
  return fmt::format("disk {} ({})", image.record->target, image.record->path);
}

}  // namespace

Result<FileStamp> stamp_of(const FileDevice& file) {
  struct stat status;
  if (::fstat(file.fd(), &status) != 0) {
    return system_error(errno, fmt::format("can't look at {}", file.name()), file.name());
  }
  return FileStamp{.device = status.st_dev,
                   .inode = status.st_ino,
                   .size = static_cast<uint64_t>(status.st_size),
                   .mtime_sec = status.st_mtim.tv_sec,
                   .mtime_nsec = static_cast<uint32_t>(status.st_mtim.tv_nsec)};
}

Result<FileStamp> sync_and_stamp(FileDevice& file) {
  TRY(file.sync_all());  // the time of the last write has to be on the disk too
  return stamp_of(file);
}

Journal::Journal(Layout layout, StepHook hook, std::shared_ptr<DocumentWriter> writer)
    : layout_(std::move(layout)), hook_(std::move(hook)), writer_(std::move(writer)) {
  if (!writer_) writer_ = std::make_shared<FileWriter>(layout_);
}

std::string Journal::directory() const {
  return layout_.resolve(Layout::journal_directory()).value_or(layout_.shown(Layout::journal_directory()));
}

std::string Journal::record_path(const std::string& domain) {
  return fmt::format("{}/{}{}", Layout::journal_directory(), domain, kSuffix);
}

std::string Journal::path_of(const std::string& domain) const {
  return fmt::format("{}/{}{}", directory(), domain, kSuffix);
}

std::string Journal::temporary_path_of(const std::string& domain) const {
  return fmt::format("{}/{}{}", directory(), domain, kTemporarySuffix);
}

Result<std::vector<std::string>> Journal::domains() const {
  const std::string path = directory();
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), ::closedir);
  if (!directory) {
    if (errno == ENOENT || errno == ENOTDIR) return std::vector<std::string>{};
    return system_error(errno, fmt::format("can't read the journal in {}", path), path);
  }
  std::set<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(directory.get())) {
    std::string_view name = entry->d_name;
    for (const std::string_view suffix : {kSuffix, kTemporarySuffix}) {
      if (name.size() > suffix.size() && name.ends_with(suffix)) {
        names.emplace(name.substr(0, name.size() - suffix.size()));
      }
    }
  }
  if (errno != 0) return system_error(errno, fmt::format("can't read the journal in {}", path), path);
  return std::vector<std::string>(names.begin(), names.end());
}

Result<std::optional<JournalRecord>> Journal::read(const std::string& domain) const {
  const std::string path = path_of(domain);
  Result<std::string> bytes = read_file(path, kMaxRecordBytes);
  if (!bytes && bytes.error().kind == ErrorKind::kNotFound) return std::optional<JournalRecord>{};
  Result<JournalRecord> record =
      bytes ? parse_record(std::as_bytes(std::span(*bytes))) : Result<JournalRecord>(std::move(bytes).error());
  if (record && record->domain != domain) {
    record = make_error(ErrorKind::kCorrupt, fmt::format("it belongs to a domain called '{}'", record->domain));
  }
  if (!record) {
    Error e = std::move(record).error();
    if (e.path.empty()) e.message = fmt::format("the journal record {}: {}", path, e.message);
    e.path = path;
    if (e.kind == ErrorKind::kPermission || e.kind == ErrorKind::kIo) return e;
    e.notes.push_back(fmt::format(
        "'{}' may be between two states; look at its disks with `varve where` and `varve image snapshot -l`, and "
        "remove the record when they are right",
        domain));
    return e;
  }
  return std::optional(std::move(*record));
}

Result<void> Journal::write(const JournalRecord& record) {
  const std::vector<std::byte> bytes = serialize_record(record);
  const std::string made = TRY(layout_.make_directories(Layout::journal_directory(), 0755));
  const std::string temporary = temporary_path_of(record.domain);
  step("create the journal record's temporary file");
  {
    // What a torn write left may be there; it is nobody's. Nor is it written into, whatever it is by now.
    if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) {
      return system_error(errno, fmt::format("can't remove {}", temporary), temporary);
    }
    const UniqueFd fd = TRY(create_empty_file(temporary, 0600, layout_.new_file_owner()));
    step("write the journal record's temporary file");
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (auto written = write_all(fd.get(), text, "write the journal record", temporary); !written) {
      ::unlink(temporary.c_str());
      return std::move(written).error();
    }
    // Separates the contents from the name that makes them count.
    if (::fsync(fd.get()) != 0) {
      Error e = system_error(errno, fmt::format("can't sync the journal record {}", temporary), temporary);
      ::unlink(temporary.c_str());
      return e;
    }
  }
  step("give the journal record its name");
  if (::rename(temporary.c_str(), path_of(record.domain).c_str()) != 0) {
    return system_error(errno, fmt::format("can't write the journal record {}", path_of(record.domain)));
  }
  // Separates the record from the headers that it answers for.
  return sync_directory(made);
}

Result<void> Journal::remove_image(const std::string& root_path) {
  const Result<std::string> path = layout_.resolve(root_path);
  if (!path && path.error().kind == ErrorKind::kNotFound) return {};
  if (!path) return path.error();
  // The lock is QEMU's own: nobody has the image open when it goes. Held over the removal.
  auto file = FileDevice::open(*path, Access::kReadOnly, LockRequest::format_writer());
  if (!file && file.error().kind == ErrorKind::kNotFound) return {};
  if (!file) return std::move(file).error().context(fmt::format("{} is not removed", root_path));
  return remove_if_there(*path);
}

Result<void> Journal::remove_directory(const std::string& root_path) {
  if (!writer_->writes_file(root_path)) return {};
  const Result<std::string> path = layout_.resolve(root_path);
  if (!path && path.error().kind == ErrorKind::kNotFound) return {};
  if (!path) return path.error();
  if (::rmdir(path->c_str()) != 0 && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) {
    return system_error(errno, fmt::format("can't remove {}", *path), *path);
  }
  return {};
}

Result<std::vector<Error>> Journal::apply_changes(const JournalRecord& record) {
  std::vector<Error> refused;
  for (const FileChange& change : record.changes) {
    step(fmt::format("{} {}", change.contents ? "write" : "remove", change.path));
    // What somebody may still need is not removed.
    if (!refused.empty() && !change.contents && writer_->writes_file(change.path)) continue;
    auto written = writer_->write(change);
    if (!written && written.error().kind != ErrorKind::kRefused) return std::move(written).error();
    if (!written) refused.push_back(std::move(written).error());
  }
  if (!refused.empty()) return refused;
  if (!record.removed_images.empty() && record.removes_definition()) {
    JournalRecord rest = record;
    rest.images.clear();
    rest.changes.clear();
    // It may be the space that is wanted. The images are nobody's now, whether that is on record or not.
    (void)write(rest);
  }
  for (const std::string& path : record.removed_images) {
    step(fmt::format("remove the image {}", path));
    TRY(remove_image(path));
  }
  for (const std::string& path : record.removed_directories) {
    step(fmt::format("remove the directory {}", path));
    TRY(remove_directory(path));
  }
  return refused;
}

Result<void> Journal::clear(const std::string& domain) {
  step("remove the journal record");
  TRY(remove_if_there(path_of(domain)));
  step("done");
  return {};
}

Result<Recovery> Journal::abandon(const JournalRecord& record) {
  const std::vector<OpenImage> images = TRY(open_images(layout_, record));
  TRY(clear(record.domain));
  Recovery recovery;
  recovery.outcome = Recovery::Outcome::kAbandoned;
  recovery.domain = record.domain;
  recovery.operation = record.operation;
  recovery.message =
      fmt::format("an interrupted `varve {}` is given up: '{}' is another domain by now, which is left alone",
                  record.operation, record.domain);
  for (const OpenImage& image : images) {
    if (image.state != ImageState::kCommitted) continue;
    recovery.notes.push_back(named(image) + " has the change already");
  }
  for (const std::string& path : record.removed_images) {
    if (layout_.resolve(path)) recovery.notes.push_back(fmt::format("the image {} was to be removed, and stays", path));
  }
  return recovery;
}

Result<Recovery> Journal::recover(const std::string& domain, const std::vector<SparedImage>& spared) {
  std::optional<JournalRecord> record = TRY(read(domain));
  // A temporary file never counted.
  if (::unlink(temporary_path_of(domain).c_str()) != 0 && errno != ENOENT) {
    return system_error(errno, fmt::format("can't remove {}", temporary_path_of(domain)));
  }
  if (const auto directory = layout_.resolve(Layout::snapshots_directory(domain))) remove_temporary_files(*directory);
  if (!record) return Recovery{};

  Recovery recovery;
  for (const auto& [path, reason] : spared) {
    if (std::erase(record->removed_images, path) == 0 || !layout_.resolve(path)) continue;
    recovery.notes.push_back(fmt::format("the image {} stays: {}", path, reason));
  }
  recovery.domain = domain;
  recovery.operation = record->operation;
  const auto failed = [&](Error error) {
    return std::move(error)
        .context(fmt::format("an interrupted `varve {}` can't be finished", record->operation))
        .with_note(fmt::format("the next command on '{}' tries again; the record is {}", domain, path_of(domain)));
  };
  Result<std::vector<OpenImage>> opened = open_images(layout_, *record);
  if (!opened) return failed(std::move(opened).error());
  std::vector<OpenImage>& images = *opened;

  std::vector<std::string> changed;
  for (const OpenImage& image : images) {
    if (image.state != ImageState::kChanged) continue;
    recovery.unchanged.push_back(image.record->target);
    changed.push_back(image.file ? named(image) + " was written to by another program meanwhile"
                                 : named(image) + " is gone");
  }
  const bool any_committed =
      std::ranges::any_of(images, [](const OpenImage& image) { return image.state == ImageState::kCommitted; });

  if (!changed.empty() && !any_committed) {
    // Nothing of the operation is visible yet, and it can't become true everywhere: it has not happened.
    TRY(clear(domain));
    recovery.outcome = Recovery::Outcome::kUndone;
    recovery.unchanged.clear();
    recovery.message = fmt::format("an interrupted `varve {}` was undone, nothing is changed: {}", record->operation,
                                   fmt::join(changed, ", "));
    return recovery;
  }

  for (OpenImage& image : images) {
    Result<void> done;
    if (image.state == ImageState::kPrepared) {
      step(fmt::format("commit disk {}", image.record->target));
      done = qcow2::SnapshotTransaction::commit_sector(*image.file, image.record->before, image.record->after);
    } else if (image.state == ImageState::kCommitted) {
      done = image.file->flush();  // whoever wrote it may have ended before its flush
    }
    if (!done) return failed(std::move(done).error());
  }
  const Result<std::vector<Error>> refused = apply_changes(*record);
  if (!refused) return failed(refused.error());
  images.clear();
  TRY(clear(domain));

  if (!changed.empty()) {
    recovery.outcome = Recovery::Outcome::kPartly;
    recovery.message = fmt::format("an interrupted `varve {}` is finished EXCEPT for: {}", record->operation,
                                   fmt::join(changed, ", "));
    recovery.notes.push_back(fmt::format("disk {} lacks the change; `varve where '{}'{}` shows what is there",
                                         fmt::join(recovery.unchanged, ", disk "), domain,
                                         record->snapshot.empty() ? "" : fmt::format(" '{}'", record->snapshot)));
  } else if (record->purpose == RecordPurpose::kUndo) {
    recovery.outcome = Recovery::Outcome::kUndone;
    recovery.message = fmt::format("an interrupted `varve {}` was undone", record->operation);
  } else {
    recovery.outcome = Recovery::Outcome::kFinished;
    recovery.message = fmt::format("an interrupted `varve {}` was finished", record->operation);
  }
  for (const Error& error : *refused) {
    recovery.notes.push_back(
        fmt::format("not all of it: {}; `varve verify '{}'` shows what is missing", error.message, domain));
  }
  return recovery;
}

}  // namespace varve
