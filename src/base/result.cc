#include "base/result.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace varve {

ErrorKind kind_of_errno(int err) {
  switch (err) {
    case ENOENT:
    case ENOTDIR:
      return ErrorKind::kNotFound;
    case EEXIST:
      return ErrorKind::kAlreadyExists;
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
      return ErrorKind::kInUse;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ErrorKind::kNoSpace;
    case EACCES:
    case EPERM:
    case EROFS:
      return ErrorKind::kPermission;
    case EINVAL:
    case ENAMETOOLONG:
    case EISDIR:
    case ELOOP:
      return ErrorKind::kInvalidArgument;
    case ENOTSUP:
      return ErrorKind::kUnsupported;
    case EINTR:
      return ErrorKind::kInterrupted;
    default:
      return ErrorKind::kIo;
  }
}

Error system_error(int err, const std::string& what, const std::string& path) {
  Error e;
  e.kind = kind_of_errno(err);
  e.sys_errno = err;
  char buffer[128];
  e.message = what + ": " + strerror_r(err, buffer, sizeof buffer);
  e.path = path;
  return e;
}

const char* name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return "invalid-argument";
    case ErrorKind::kNotFound:
      return "not-found";
    case ErrorKind::kAlreadyExists:
      return "already-exists";
    case ErrorKind::kInUse:
      return "in-use";
    case ErrorKind::kRefused:
      return "refused";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kCorrupt:
      return "corrupt";
    case ErrorKind::kNoSpace:
      return "no-space";
    case ErrorKind::kPermission:
      return "permission";
    case ErrorKind::kIo:
      return "io";
    case ErrorKind::kInterrupted:
      return "interrupted";
    case ErrorKind::kInternal:
      return "internal";
  }
  return "internal";
}

void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "varve: internal error: %s does not hold (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace varve
