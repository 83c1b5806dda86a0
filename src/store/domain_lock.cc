#include "store/domain_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>

#include "base/atomic_file.h"
#include "store/file_change.h"

namespace varve {

namespace {

struct LockFile {
  UniqueFd fd;  // none: nothing to lock on a tree that can't be written
  std::string path;
};

bool is_unwritable(int err) {
  return err == EROFS || err == EACCES || err == EPERM;
}

Result<LockFile> open_lock_file(const Layout& layout, const std::string& domain, DomainLock::Mode mode) {
  const bool reading = mode == DomainLock::Mode::kShared;
  LockFile file;
  auto directory = layout.make_directories(Layout::lock_directory());
  if (!directory && reading && is_unwritable(directory.error().sys_errno)) {
    directory = layout.resolve(Layout::lock_directory());
    if (!directory) return file;
  }
  file.path = TRY(std::move(directory)) + "/" + domain;
  auto made = create_empty_file(file.path, 0644, layout.new_file_owner());
  if (made) {
    file.fd = std::move(*made);
    return file;
  }
  int err = made.error().sys_errno;  // EEXIST, or in a closed directory EACCES, even where it is there
  const auto open = [&](int flags) {
    file.fd = UniqueFd(::open(file.path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!file.fd && (errno != ENOENT || err == EEXIST)) err = errno;
  };
  open(err == EEXIST ? O_RDWR | O_CREAT : O_RDWR);
  if (!file.fd && reading && is_unwritable(err)) {
    open(O_RDONLY);
    if (!file.fd && is_unwritable(err)) return file;
  }
  if (!file.fd) return system_error(err, fmt::format("can't open the lock of '{}'", domain), file.path);
  return file;
}

// flock that is not disturbed by signals. False when somebody has it and `wait` is not wanted.
Result<bool> lock(const LockFile& file, DomainLock::Mode mode, bool wait) {
  const int operation = (mode == DomainLock::Mode::kShared ? LOCK_SH : LOCK_EX) | (wait ? 0 : LOCK_NB);
  while (::flock(file.fd.get(), operation) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno != EINTR) return system_error(errno, "can't take the lock", file.path);
  }
  return true;
}

// Whether the file that is locked is the one that others would lock: it goes with a domain that is gone.
bool is_still_there(const LockFile& file) {
  struct stat st = {};
  return ::fstat(file.fd.get(), &st) == 0 && st.st_nlink != 0;
}

// The holder's own words, "PID\tCOMMAND\n"; a process that is gone has released the lock whatever the file says.
std::string holder_of(const LockFile& file) {
  char buffer[4096];
  const ssize_t length = ::pread(file.fd.get(), buffer, sizeof buffer, 0);
  const std::string text(buffer, length > 0 ? static_cast<size_t>(length) : 0);
  const size_t tab = text.find('\t');
  const size_t end = text.find('\n');
  int pid = 0;
  std::from_chars(text.data(), text.data() + text.size(), pid);
  if (tab == std::string::npos || end == std::string::npos || end < tab || pid <= 0 ||
      (::kill(pid, 0) != 0 && errno == ESRCH)) {
    return "commands that read it";
  }
  return fmt::format("pid {}, `{}`", pid, text.substr(tab + 1, end - tab - 1));
}

void say_who(const LockFile& file, const std::string& command) {
  std::string line = fmt::format("{}\t{}", ::getpid(), command);
  for (char& c : line) {
    if (c == '\n' || c == '\0') c = ' ';
  }
  line += '\n';
  // For people only; a lock that can't say whose it is still is one.
  if (::ftruncate(file.fd.get(), 0) != 0) return;
  [[maybe_unused]] const ssize_t written = ::pwrite(file.fd.get(), line.data(), line.size(), 0);
}

}  // namespace

Result<DomainLock> DomainLock::acquire(const Layout& layout, const std::string& domain, Mode mode,
                                       const std::string& command, const WaitNotice& waiting) {
  for (;;) {
    LockFile file = TRY(open_lock_file(layout, domain, mode));
    if (!file.fd) return DomainLock({}, mode);
    if (!TRY(lock(file, mode, false))) {
      if (waiting) waiting(holder_of(file));
      TRY(lock(file, mode, true));
    }
    if (!is_still_there(file)) continue;
    if (mode == Mode::kExclusive) say_who(file, command);
    return DomainLock(std::move(file.fd), mode);
  }
}

Result<std::optional<DomainLock>> DomainLock::try_acquire(const Layout& layout, const std::string& domain, Mode mode,
                                                          const std::string& command) {
  for (;;) {
    LockFile file = TRY(open_lock_file(layout, domain, mode));
    if (!file.fd) return std::optional(DomainLock({}, mode));
    if (!TRY(lock(file, mode, false))) return std::optional<DomainLock>{};
    if (!is_still_there(file)) continue;
    if (mode == Mode::kExclusive) say_who(file, command);
    return std::optional(DomainLock(std::move(file.fd), mode));
  }
}

Result<bool> DomainLock::remove_if_free(const Layout& layout, const std::string& domain) {
  const std::optional<DomainLock> held = TRY(try_acquire(layout, domain, Mode::kExclusive, "verify --repair"));
  if (!held) return false;
  // While the lock is held, so that whoever waits for it finds that its file is gone, and takes a new one.
  TRY(apply(layout, {.path = Layout::lock_file(domain), .contents = std::nullopt}));
  return true;
}

DomainLock& DomainLock::operator=(DomainLock&& other) noexcept {
  if (this != &other) {
    release();
    fd_ = std::move(other.fd_);
    mode_ = other.mode_;
  }
  return *this;
}

DomainLock::~DomainLock() {
  release();
}

void DomainLock::release() {
  if (fd_ && mode_ == Mode::kExclusive) [[maybe_unused]]
    const int ignored = ::ftruncate(fd_.get(), 0);
  fd_.reset();
}

}  // namespace varve
