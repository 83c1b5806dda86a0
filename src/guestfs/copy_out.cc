#include "guestfs/copy_out.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <thread>

#include "archive/library.h"
#include "base/unique_fd.h"

namespace varve::guestfs {

namespace {

constexpr size_t kPiece = 1U << 18U;
constexpr size_t kHole = 1U << 16U;  // so many zeroes are left out

struct FreeReader {
  void operator()(::archive* reader) const { archive::library().archive_read_free(reader); }
};
struct FreeWriter {
  void operator()(::archive* writer) const { archive::library().archive_write_free(writer); }
};

Error exists(const std::string& target) {
  return make_error(ErrorKind::kAlreadyExists, fmt::format("'{}' is there already", target))
      .with_note("choose another name, or remove it first; nothing was changed");
}

Error stopped() {
  return make_error(ErrorKind::kInterrupted, "it was stopped");
}

// "./a/b" without the dot; nothing for the directory itself.
std::string below(const char* name) {
  std::string path = name == nullptr ? "" : name;
  if (path == "." || path == "./") return {};
  if (path.starts_with("./")) path.erase(0, 2);
  while (path.ends_with('/')) path.pop_back();
  return path;
}

bool leads_out(const std::string& path) {
  return path.starts_with('/') || ("/" + path + "/").find("/../") != std::string::npos;
}

// Unpacks what the guest packed; runs beside it.
class Unpacking {
 public:
  Unpacking(std::string directory, const CopyWatch& watch) : directory_(std::move(directory)), watch_(watch) {}

  Result<CopiedOut> run(int fd) {
    TRY(archive::load_library());
    reader_.reset(archive::library().archive_read_new());
    writer_.reset(archive::library().archive_write_disk_new());
    if (!reader_ || !writer_) return make_error(ErrorKind::kInternal, "libarchive gives no reader");
    archive::library().archive_read_support_format_tar(reader_.get());
    archive::library().archive_write_disk_set_options(
        writer_.get(), ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                           ARCHIVE_EXTRACT_NO_OVERWRITE | ARCHIVE_EXTRACT_SPARSE);
    if (archive::library().archive_read_open_fd(reader_.get(), fd, kPiece) != ARCHIVE_OK) return failed(reader_.get());
    for (;;) {
      archive_entry* entry = nullptr;
      const int next = archive::library().archive_read_next_header(reader_.get(), &entry);
      if (next == ARCHIVE_EOF) break;
      if (next != ARCHIVE_OK && next != ARCHIVE_WARN) return failed(reader_.get());
      TRY(unpack(entry));
    }
    if (archive::library().archive_write_close(writer_.get()) != ARCHIVE_OK) return failed(writer_.get());
    return std::move(copied_);
  }

 private:
  Error failed(::archive* which) const {
    const char* text = archive::library().archive_error_string(which);
    const int code = archive::library().archive_errno(which);
    const bool here = which == writer_.get() && code > 0;  // the system's own number
    Error error =
        make_error(here ? kind_of_errno(code) : ErrorKind::kIo, text == nullptr ? "libarchive does not say why" : text);
    if (here) error.sys_errno = code;
    return error;
  }

  Result<void> unpack(archive_entry* entry) {
    const std::string path = below(archive::library().archive_entry_pathname(entry));
    if (path.empty()) return {};
    const auto type = archive::library().archive_entry_filetype(entry);
    const char* linked = archive::library().archive_entry_hardlink(entry);
    if (leads_out(path) || (linked != nullptr && leads_out(below(linked)))) {
      return make_error(ErrorKind::kCorrupt, fmt::format("'{}' leads out of the directory that is copied", path));
    }
    if (linked == nullptr && type != AE_IFREG && type != AE_IFDIR && type != AE_IFLNK) {
      copied_.left_out.push_back(path);
      return {};
    }
    if (linked != nullptr)
      archive::library().archive_entry_set_hardlink(entry, (directory_ + "/" + below(linked)).c_str());
    archive::library().archive_entry_set_pathname(entry, (directory_ + "/" + path).c_str());
    // No setuid program of a guest comes into being on this host.
    archive::library().archive_entry_set_perm(entry, archive::library().archive_entry_perm(entry) & 0777U);
    if (archive::library().archive_write_header(writer_.get(), entry) != ARCHIVE_OK)
      return failed(writer_.get()).context(path);
    for (;;) {
      if (watch_.stop && watch_.stop()) return stopped();
      const void* bytes = nullptr;
      size_t length = 0;
      la_int64_t offset = 0;
      const int read = archive::library().archive_read_data_block(reader_.get(), &bytes, &length, &offset);
      if (read == ARCHIVE_EOF) break;
      if (read != ARCHIVE_OK) return failed(reader_.get());
      if (archive::library().archive_write_data_block(writer_.get(), bytes, length, offset) != ARCHIVE_OK) {
        return failed(writer_.get()).context(path);
      }
      copied_.bytes += length;
      if (watch_.progress) watch_.progress(copied_.bytes);
    }
    if (archive::library().archive_write_finish_entry(writer_.get()) != ARCHIVE_OK)
      return failed(writer_.get()).context(path);
    ++copied_.files;
    return {};
  }

  const std::string directory_;
  const CopyWatch& watch_;
  CopiedOut copied_;
  std::unique_ptr<::archive, FreeReader> reader_;
  std::unique_ptr<::archive, FreeWriter> writer_;
};

// Runs `give`, which has the guest write to the pipe, and beside it `take`, which reads from that to its end, or says
// no: then what the guest still sends is thrown away, and it is asked to stop. The guest's own error, unless it is one
// that the no brought about.
Result<void> through_pipe(GuestFiles& guest, const std::function<Result<void>(int fd)>& give,
                          const std::function<bool(int fd)>& take) {
  std::array<int, 2> ends = {-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return system_error(errno, "cannot make a pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::atomic<bool> given_all = false;
  bool refused = false;
  std::thread taking([&] {
    const bool taken = take(read_end.get());
    // Where the guest failed before, what came of it made no sense.
    if (!taken && !given_all) {
      refused = true;
      guest.cancel();
    }
    std::array<char, 65536> rest;
    while (::read(read_end.get(), rest.data(), rest.size()) > 0) {
    }
  });
  auto given = give(write_end.get());
  given_all = true;
  write_end = UniqueFd();
  taking.join();
  if (refused) return {};
  return given;
}

// What of a file is written here: whole pieces of zeroes become holes.
class FileWriter {
 public:
  FileWriter(int fd, const CopyWatch& watch) : fd_(fd), watch_(watch) {}

  Result<void> add(std::string_view bytes) {
    while (!bytes.empty()) {
      if (watch_.stop && watch_.stop()) return stopped();
      // Up to the next multiple, so that holes lie where the file system can have them.
      const std::string_view piece = bytes.substr(0, kHole - size_ % kHole);
      if (piece.size() < kHole || piece.find_first_not_of('\0') != std::string_view::npos) TRY(write(piece));
      size_ += piece.size();
      bytes.remove_prefix(piece.size());
      if (watch_.progress) watch_.progress(size_);
    }
    return {};
  }
  Result<void> finish() const {
    if (::ftruncate(fd_, static_cast<off_t>(size_)) != 0) return system_error(errno, "can't write");
    return {};
  }
  uint64_t size() const { return size_; }

 private:
  Result<void> write(std::string_view piece) const {
    for (size_t done = 0; done < piece.size();) {
      const ssize_t written = ::pwrite(fd_, piece.data() + done, piece.size() - done, static_cast<off_t>(size_ + done));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return system_error(errno, "can't write");
      done += static_cast<size_t>(written);
    }
    return {};
  }

  const int fd_;
  const CopyWatch& watch_;
  uint64_t size_ = 0;
};

std::array<timespec, 2> times_of(const GuestFile& file) {
  return {timespec{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
          timespec{.tv_sec = file.modified_sec, .tv_nsec = file.modified_nsec}};
}

// A tree that was made here. Directories that the guest had closed are opened first.
Error removed(const std::string& directory, Error error) {
  std::error_code failed;
  ::chmod(directory.c_str(), 0700);
  for (std::filesystem::recursive_directory_iterator at(directory, failed), end; !failed && at != end;
       at.increment(failed)) {
    if (at->is_directory(failed) && !at->is_symlink(failed)) ::chmod(at->path().c_str(), 0700);
  }
  std::filesystem::remove_all(directory, failed);
  if (failed) return std::move(error).with_note(fmt::format("what was copied of it is in '{}'", directory));
  return error;
}

}  // namespace

Result<void> pass_on(GuestFiles& guest, const std::string& path,
                     const std::function<bool(std::string_view bytes)>& take) {
  return through_pipe(
      guest, [&](int fd) { return guest.read(path, fd); },
      [&](int fd) {
        std::vector<char> piece(kPiece);
        for (;;) {
          const ssize_t length = ::read(fd, piece.data(), piece.size());
          if (length < 0 && errno == EINTR) continue;
          if (length <= 0) return true;
          if (!take({piece.data(), static_cast<size_t>(length)})) return false;
        }
      });
}

Result<CopiedOut> copy_file_out(GuestFiles& guest, const std::string& path, const std::string& target,
                                const CopyWatch& watch) {
  const GuestFile file = TRY(guest.look_up(path));
  const UniqueFd fd(::open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, file.mode & 0777U));
  if (!fd) {
    return errno == EEXIST ? exists(target) : system_error(errno, fmt::format("cannot make '{}'", target), target);
  }
  FileWriter writer(fd.get(), watch);
  Result<void> written;
  auto copied = pass_on(guest, path, [&](std::string_view bytes) {
    written = writer.add(bytes);
    return written.has_value();
  });
  if (copied && written) written = writer.finish();
  if (copied && !written) {
    copied = std::move(written).error().context(target);
  }
  if (!copied) {
    ::unlink(target.c_str());
    return std::move(copied).error();
  }
  ::futimens(fd.get(), times_of(file).data());
  return CopiedOut{.files = 1, .bytes = writer.size(), .left_out = {}};
}

Result<CopiedOut> unpack_tree(int fd, const std::string& directory, const CopyWatch& watch) {
  return Unpacking(directory, watch).run(fd);
}

Result<CopiedOut> copy_directory_out(GuestFiles& guest, const std::string& path, const std::string& target,
                                     const CopyWatch& watch) {
  const GuestFile itself = TRY(guest.look_up(path));
  // Nobody else looks into it before it has the guest's mode.
  if (::mkdir(target.c_str(), 0700) != 0) {
    return errno == EEXIST ? exists(target) : system_error(errno, fmt::format("cannot make '{}'", target), target);
  }
  std::error_code error;
  const std::string directory = std::filesystem::canonical(target, error).string();
  if (error) return system_error(error.value(), target);
  Result<CopiedOut> copied = make_error(ErrorKind::kInternal, "nothing was unpacked");
  const auto packed = through_pipe(
      guest, [&](int fd) { return guest.read_tree(path, fd); },
      [&](int fd) {
        copied = unpack_tree(fd, directory, watch);
        return copied.has_value();
      });
  if (!packed) copied = packed.error();
  if (!copied) return removed(directory, std::move(copied).error());
  const mode_t mask = ::umask(077);
  ::umask(mask);
  ::chmod(directory.c_str(), itself.mode & 0777U & ~mask);
  ::utimensat(AT_FDCWD, directory.c_str(), times_of(itself).data(), 0);
  return copied;
}

}  // namespace varve::guestfs
