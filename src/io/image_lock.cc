#include "io/image_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

namespace varve {
namespace {

constexpr off_t kUsedBase = 100;
constexpr off_t kUnsharedBase = 200;
constexpr unsigned kPermissions = 4;

const char* permission_name(unsigned p) {
  switch (p) {
    case 0:
      return "consistent read";
    case 1:
      return "write";
    case 2:
      return "write unchanged";
    default:
      return "resize";
  }
}

struct flock byte_lock(short type, off_t byte) {
  struct flock fl = {};
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  fl.l_start = byte;
  fl.l_len = 1;
  return fl;
}

// QEMU's own probe: a file system that cannot even answer whether the file is locked gets no locks.
bool has_ofd_locks(int fd) {
  struct flock whole = byte_lock(F_WRLCK, 0);
  whole.l_len = 0;
  return ::fcntl(fd, F_OFD_GETLK, &whole) == 0;
}

// 0, or the errno.
int set_byte(int fd, off_t byte, bool locked) {
  struct flock fl = byte_lock(locked ? F_RDLCK : F_UNLCK, byte);
  int r;
  do {
    r = ::fcntl(fd, F_OFD_SETLK, &fl);
  } while (r != 0 && errno == EINTR);
  return r == 0 ? 0 : errno;
}

// Somebody else's lock on the byte, of either kind.
Result<bool> held_by_others(int fd, off_t byte, const std::string& path) {
  struct flock fl = byte_lock(F_WRLCK, byte);
  if (::fcntl(fd, F_OFD_GETLK, &fl) != 0)
    return system_error(errno, fmt::format("cannot query the locks of '{}'", path), path);
  return fl.l_type != F_UNLCK;
}

// --- Who is it? An OFD lock has no pid (F_OFD_GETLK says -1), but the kernel lists the locks of every open file in its
// --- owner's /proc/PID/fdinfo/FD. What we may not look into is left out.

struct Opener {
  long pid = 0;
  std::string command;
  bool holds_byte = false;
};

std::string read_proc(const std::string& path) {
  std::string text;
  std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "re"), &std::fclose);
  if (!file) return text;
  char buffer[1024];
  size_t n;
  while (text.size() < 65536 && (n = std::fread(buffer, 1, sizeof buffer, file.get())) > 0) text.append(buffer, n);
  return text;
}

// A line reads "lock:  1: OFDLCK  ADVISORY  READ -1 fe:00:1234 101 101".
bool fdinfo_locks_byte(const std::string& fdinfo, off_t byte) {
  std::istringstream lines(fdinfo);
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with("lock:")) continue;
    const size_t last = line.rfind(' ');
    if (last == std::string::npos || last == 0) continue;
    const size_t first = line.rfind(' ', last - 1);
    if (first == std::string::npos) continue;
    const long long from = std::strtoll(line.c_str() + first + 1, nullptr, 10);
    const std::string to = line.substr(last + 1);
    if (byte >= from && (to == "EOF" || byte <= std::strtoll(to.c_str(), nullptr, 10))) return true;
  }
  return false;
}

std::optional<long> parse_pid(const char* name) {
  long pid = 0;
  const std::string_view text(name);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return pid;
}

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(directory.c_str()), &::closedir);
  if (!dir) return names;
  while (const dirent* entry = ::readdir(dir.get())) names.emplace_back(entry->d_name);
  return names;
}

std::vector<Opener> find_openers(int our_fd, off_t byte) {
  std::vector<Opener> openers;
  struct stat ours = {};
  if (::fstat(our_fd, &ours) != 0) return openers;
  for (const std::string& entry : names_in("/proc")) {
    const std::optional<long> pid = parse_pid(entry.c_str());
    if (!pid) continue;
    const std::string process = "/proc/" + entry;
    Opener opener{*pid, {}, false};
    bool opened = false;
    for (const std::string& fd : names_in(process + "/fd")) {
      if (*pid == ::getpid() && fd == std::to_string(our_fd)) continue;
      struct stat theirs = {};
      if (::stat((process + "/fd/" + fd).c_str(), &theirs) != 0) continue;
      if (theirs.st_dev != ours.st_dev || theirs.st_ino != ours.st_ino) continue;
      opened = true;
      opener.holds_byte |= fdinfo_locks_byte(read_proc(process + "/fdinfo/" + fd), byte);
    }
    if (!opened) continue;
    opener.command = read_proc(process + "/comm");
    while (!opener.command.empty() && opener.command.back() == '\n') opener.command.pop_back();
    openers.push_back(std::move(opener));
  }
  // Those that hold the very byte, if the kernel told; else everybody who has the file open.
  const bool known = std::any_of(openers.begin(), openers.end(), [](const Opener& o) { return o.holds_byte; });
  if (known) std::erase_if(openers, [](const Opener& o) { return !o.holds_byte; });
  return openers;
}

Error in_use(int fd, const std::string& path, off_t byte, const std::string& what) {
  const std::vector<Opener> openers = find_openers(fd, byte);
  const bool ourselves = openers.size() == 1 && openers[0].pid == ::getpid();
  Error e = make_error(ErrorKind::kInUse, fmt::format("'{}' is in use by {} (it {})", path,
                                                      ourselves ? "this very process" : "another process", what));
  e.path = path;
  if (!openers.empty()) {
    std::string who;
    for (const Opener& o : openers) who += fmt::format("{}{} (pid {})", who.empty() ? "" : ", ", o.command, o.pid);
    e.notes.push_back(fmt::format("it is held by {}", who));
  }
  e.notes.push_back("shut down the virtual machine that uses it, or wait until that command has ended");
  return e;
}

Result<void> check_nobody_objects(int fd, const std::string& path, LockRequest request) {
  for (unsigned p = 0; p < kPermissions; ++p) {
    const unsigned bit = 1u << p;
    if ((request.used & bit) != 0) {
      const off_t byte = kUnsharedBase + p;
      if (TRY(held_by_others(fd, byte, path))) {
        return in_use(fd, path, byte, fmt::format("does not share the {} lock", permission_name(p)));
      }
    }
  }
  for (unsigned p = 0; p < kPermissions; ++p) {
    const unsigned bit = 1u << p;
    if ((request.unshared & bit) != 0) {
      const off_t byte = kUsedBase + p;
      if (TRY(held_by_others(fd, byte, path))) {
        return in_use(fd, path, byte, fmt::format("holds the {} lock", permission_name(p)));
      }
    }
  }
  return {};
}

// Takes (locked) or gives back the bytes of `request`; stops at the first failure.
Result<void> set_bytes(int fd, const std::string& path, LockRequest request, bool locked) {
  const std::pair<unsigned, off_t> sets[] = {{request.used, kUsedBase}, {request.unshared, kUnsharedBase}};
  for (const auto& [bits, base] : sets) {
    for (unsigned p = 0; p < kPermissions; ++p) {
      if ((bits & (1u << p)) == 0) continue;
      const int err = set_byte(fd, base + p, locked);
      if (err == 0) continue;
      if (err == EAGAIN || err == EACCES) return in_use(fd, path, base + p, "holds an exclusive lock");
      return system_error(err, fmt::format("cannot lock byte {} of '{}'", base + p, path), path);
    }
  }
  return {};
}

LockRequest minus(LockRequest a, LockRequest b) {
  return {a.used & ~b.used, a.unshared & ~b.unshared};
}

}  // namespace

Result<ImageLock> ImageLock::acquire(int fd, const std::string& path, LockRequest request) {
  ImageLock lock(fd, path);
  TRY(lock.change(request));
  return lock;
}

// First take what is new, then look whether anybody objects, and only then give back what is no longer wanted: two
// processes that do this at the same time may both be refused, but never both be let in.
Result<void> ImageLock::change(LockRequest request) {
  CHECK(fd_ >= 0);
  const LockRequest added = minus(request, held_);
  const LockRequest dropped = minus(held_, request);
  if (added != LockRequest::none() && !has_ofd_locks(fd_)) return {};
  Result<void> taken = set_bytes(fd_, path_, added, true);
  if (taken) taken = check_nobody_objects(fd_, path_, request);
  if (!taken) {
    static_cast<void>(set_bytes(fd_, path_, added, false));
    return taken;
  }
  held_ = request;
  // An unlock fails only for want of memory; then we hold too much until the file is closed, which harms nobody's data.
  static_cast<void>(set_bytes(fd_, path_, dropped, false));
  return {};
}

void ImageLock::release() {
  if (fd_ >= 0) static_cast<void>(set_bytes(fd_, path_, held_, false));
  fd_ = -1;
  held_ = LockRequest::none();
}

ImageLock::ImageLock(ImageLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      held_(std::exchange(other.held_, LockRequest::none())) {}

ImageLock& ImageLock::operator=(ImageLock&& other) noexcept {
  if (this != &other) {
    release();
    fd_ = std::exchange(other.fd_, -1);
    path_ = std::move(other.path_);
    held_ = std::exchange(other.held_, LockRequest::none());
  }
  return *this;
}

ImageLock::~ImageLock() {
  release();
}

}  // namespace varve
