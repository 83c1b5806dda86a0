#include "guestfs/copy_out.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <thread>

#include "base/unique_fd.h"

namespace varve::guestfs {

namespace {

constexpr size_t kPiece = 1U << 18U;

struct FreeReader {
  void operator()(::archive* reader) const { ::archive_read_free(reader); }
};
struct FreeWriter {
  void operator()(::archive* writer) const { ::archive_write_free(writer); }
};

Error exists(const std::string& target) {
  return make_error(ErrorKind::kAlreadyExists, fmt::format("'{}' is there already", target))
      .with_note("choose another name, or remove it first; nothing was changed");
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
  return ("/" + path + "/").find("/../") != std::string::npos;
}

// Unpacks what the guest packed; runs beside it.
class Unpacking {
 public:
  // `directory` is a path without links, so that those that libarchive meets are the guest's own.
  explicit Unpacking(std::string directory) : directory_(std::move(directory)) {}

  Result<CopiedOut> run(int fd) {
    if (!reader_ || !writer_) return make_error(ErrorKind::kInternal, "libarchive gives no reader");
    ::archive_read_support_format_tar(reader_.get());
    ::archive_write_disk_set_options(writer_.get(), ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                                                        ARCHIVE_EXTRACT_SECURE_NODOTDOT | ARCHIVE_EXTRACT_NO_OVERWRITE |
                                                        ARCHIVE_EXTRACT_SPARSE);
    if (::archive_read_open_fd(reader_.get(), fd, kPiece) != ARCHIVE_OK) return failed(reader_.get());
    CopiedOut copied;
    for (;;) {
      archive_entry* entry = nullptr;
      const int next = ::archive_read_next_header(reader_.get(), &entry);
      if (next == ARCHIVE_EOF) break;
      if (next != ARCHIVE_OK && next != ARCHIVE_WARN) return failed(reader_.get());
      TRY(unpack(entry, copied));
    }
    if (::archive_write_close(writer_.get()) != ARCHIVE_OK) return failed(writer_.get());
    return copied;
  }

 private:
  Error failed(::archive* which) const {
    const char* text = ::archive_error_string(which);
    const int code = ::archive_errno(which);
    return make_error(code == ENOSPC || code == EDQUOT ? ErrorKind::kNoSpace : ErrorKind::kIo,
                      text == nullptr ? "libarchive does not say why" : text);
  }

  Result<void> unpack(archive_entry* entry, CopiedOut& copied) {
    const std::string path = below(::archive_entry_pathname(entry));
    if (path.empty()) return {};
    const auto type = ::archive_entry_filetype(entry);
    const char* linked = ::archive_entry_hardlink(entry);
    if (leads_out(path) || (linked != nullptr && leads_out(below(linked)))) {
      return make_error(ErrorKind::kCorrupt, fmt::format("'{}' leads out of the directory that is copied", path));
    }
    if (linked == nullptr && type != AE_IFREG && type != AE_IFDIR && type != AE_IFLNK) {
      copied.left_out.push_back(path);
      return {};
    }
    if (linked != nullptr) {
      ::archive_entry_set_hardlink(entry, (directory_ + "/" + below(linked)).c_str());
    }
    ::archive_entry_set_pathname(entry, (directory_ + "/" + path).c_str());
    // No setuid program of a guest comes into being on this host.
    ::archive_entry_set_perm(entry, ::archive_entry_perm(entry) & 0777U);
    if (::archive_write_header(writer_.get(), entry) != ARCHIVE_OK) return failed(writer_.get()).context(path);
    for (;;) {
      const void* bytes = nullptr;
      size_t length = 0;
      la_int64_t offset = 0;
      const int read = ::archive_read_data_block(reader_.get(), &bytes, &length, &offset);
      if (read == ARCHIVE_EOF) break;
      if (read != ARCHIVE_OK) return failed(reader_.get());
      if (::archive_write_data_block(writer_.get(), bytes, length, offset) != ARCHIVE_OK) {
        return failed(writer_.get()).context(path);
      }
      copied.bytes += length;
    }
    if (::archive_write_finish_entry(writer_.get()) != ARCHIVE_OK) return failed(writer_.get()).context(path);
    ++copied.files;
    return {};
  }

  const std::string directory_;
  std::unique_ptr<::archive, FreeReader> reader_{::archive_read_new()};
  std::unique_ptr<::archive, FreeWriter> writer_{::archive_write_disk_new()};
};

// Runs `give`, which writes to the pipe, and beside it `take`, which reads from it until the end or says no: then what
// the guest still sends is thrown away, and it is asked to stop.
Result<void> through_pipe(GuestFiles& guest, const std::function<Result<void>(int fd)>& give,
                          const std::function<bool(int fd)>& take) {
  std::array<int, 2> ends = {-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return system_error(errno, "cannot make a pipe");
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  bool taken = false;
  std::thread taking([&] {
    taken = take(read_end.get());
    if (!taken) guest.cancel();
    std::array<char, 65536> rest;
    while (::read(read_end.get(), rest.data(), rest.size()) > 0) {
    }
  });
  auto given = give(write_end.get());
  write_end = UniqueFd();
  taking.join();
  if (!taken) return {};
  return given;
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

Result<CopiedOut> copy_file_out(GuestFiles& guest, const std::string& path, const std::string& target) {
  const GuestFile file = TRY(guest.look_up(path));
  UniqueFd fd(::open(target.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, file.mode & 0777U));
  if (!fd)
    return errno == EEXIST ? exists(target) : system_error(errno, fmt::format("cannot make '{}'", target), target);
  const auto copy = [&]() -> Result<CopiedOut> {
    TRY(guest.read(path, fd.get()));
    const std::array<timespec, 2> times = {timespec{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
                                           timespec{.tv_sec = file.modified_sec, .tv_nsec = file.modified_nsec}};
    ::futimens(fd.get(), times.data());
    struct stat there = {};
    if (::fstat(fd.get(), &there) != 0) return system_error(errno, target);
    return CopiedOut{.files = 1, .bytes = static_cast<uint64_t>(there.st_size), .left_out = {}};
  };
  auto copied = copy();
  if (!copied) ::unlink(target.c_str());
  return copied;
}

Result<CopiedOut> copy_directory_out(GuestFiles& guest, const std::string& path, const std::string& target) {
  if (::mkdir(target.c_str(), 0777) != 0) {
    return errno == EEXIST ? exists(target) : system_error(errno, fmt::format("cannot make '{}'", target), target);
  }
  std::error_code error;
  const std::string directory = std::filesystem::canonical(target, error);
  if (error) return system_error(error.value(), target);
  Result<CopiedOut> copied = make_error(ErrorKind::kInternal, "nothing was unpacked");
  const auto packed = through_pipe(
      guest, [&](int fd) { return guest.read_tree(path, fd); },
      [&](int fd) {
        copied = Unpacking(directory).run(fd);
        return copied.has_value();
      });
  if (!packed) copied = packed.error();
  if (!copied) std::filesystem::remove_all(directory, error);
  return copied;
}

}  // namespace varve::guestfs
