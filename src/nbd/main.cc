// The entry points that nbdkit calls, and nothing else: what they do is in nbd/export.h.
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <nbdkit-plugin.h>
#include <stdlib.h>

#include <exception>
#include <string>
#include <string_view>

#include "nbd/export.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {

using varve::Error;
using varve::ErrorKind;
using varve::Result;
using varve::nbd::Export;
using varve::nbd::ExportSpecs;
using varve::nbd::OpenExport;

ExportSpecs specs;
std::vector<std::unique_ptr<Export>> exports;

using Client = std::shared_ptr<OpenExport>;

OpenExport& of(void* handle) {
  return **static_cast<Client*>(handle);
}

// The errors that the NBD protocol has.
int errno_of(const Error& error) {
  switch (error.kind) {
    case ErrorKind::kInvalidArgument:
      return EINVAL;
    case ErrorKind::kNoSpace:
      return ENOSPC;
    case ErrorKind::kPermission:
      return EPERM;
    case ErrorKind::kUnsupported:
      return EOPNOTSUPP;
    default:
      return EIO;
  }
}

int failed(const Error& error) {
  std::string text = error.message;
  for (const std::string& note : error.notes) text += "; " + note;
  nbdkit_error("%s", text.c_str());
  nbdkit_set_error(errno_of(error));
  return -1;
}

int failed(const std::exception& exception) {
  nbdkit_error("%s", exception.what());  // memory, mostly
  nbdkit_set_error(ENOMEM);
  return -1;
}

// Runs a request; no exception may reach nbdkit, which is written in C.
template <typename Request>
int run(const Request& request) {
  try {
    const Result<void> done = request();
    return done ? 0 : failed(done.error());
  } catch (const std::exception& exception) {
    return failed(exception);
  }
}

int config(const char* key, const char* value) {
  return run([&]() -> Result<void> {
    if (std::string_view(key) != "file" && std::string_view(key) != "overlay") return specs.add(key, value);
    // A server in the background has another working directory.
    char* absolute = nbdkit_absolute_path(value);
    if (absolute == nullptr) return varve::make_error(ErrorKind::kInvalidArgument, "the path is not understood");
    const std::string path = absolute;
    ::free(absolute);
    return specs.add(key, path);
  });
}

int config_complete() {
  return run([] { return specs.check(); });
}

int get_ready() {
  return run([]() -> Result<void> {
    for (const auto& spec : specs.all()) {
      exports.push_back(std::make_unique<Export>(spec));
      TRY(exports.back()->prepare());
    }
    return {};
  });
}

int list_exports(int /*readonly*/, int /*is_tls*/, nbdkit_exports* list) {
  for (const auto& entry : exports) {
    const auto& point = entry->spec().point;
    const std::string what = point.snapshot ? "snapshot " + *point.snapshot : std::string();
    if (nbdkit_add_export(list, entry->spec().name.c_str(), what.empty() ? nullptr : what.c_str()) != 0) return -1;
  }
  return 0;
}

// Who does not say which gets the first.
const char* default_export(int /*readonly*/, int /*is_tls*/) {
  return exports.empty() ? "" : exports.front()->spec().name.c_str();
}

void* open_client(int readonly) {
  try {
    const std::string name = nbdkit_export_name();
    for (const auto& entry : exports) {
      if (entry->spec().name != name) continue;
      auto opened = entry->connect(readonly != 0);
      if (opened) return new Client(*std::move(opened));
      failed(opened.error());
      return nullptr;
    }
    failed(varve::make_error(ErrorKind::kNotFound, "there is no export '" + name + "'"));
  } catch (const std::exception& exception) {
    failed(exception);
  }
  return nullptr;
}

void close_client(void* handle) {
  delete static_cast<Client*>(handle);
}

int64_t get_size(void* handle) {
  return static_cast<int64_t>(of(handle).size());
}

int can_write(void* handle) {
  return of(handle).is_writable() ? 1 : 0;
}

int yes(void* /*handle*/) {
  return 1;
}

int can_fua(void* /*handle*/) {
  return NBDKIT_FUA_NATIVE;
}

int block_size(void* handle, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) {
  *minimum = 1;
  *preferred = static_cast<uint32_t>(of(handle).unit());
  *maximum = 0xffffffff;
  return 0;
}

int read_data(void* handle, void* buffer, uint32_t count, uint64_t offset, uint32_t /*flags*/) {
  return run([&] { return of(handle).read(offset, {static_cast<std::byte*>(buffer), count}); });
}

// After the request, where the client wants it durable at once.
Result<void> flush_if(void* handle, uint32_t flags) {
  return (flags & NBDKIT_FLAG_FUA) != 0 ? of(handle).flush() : Result<void>();
}

int write_data(void* handle, const void* buffer, uint32_t count, uint64_t offset, uint32_t flags) {
  return run([&]() -> Result<void> {
    TRY(of(handle).write(offset, {static_cast<const std::byte*>(buffer), count}));
    return flush_if(handle, flags);
  });
}

int zero(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  const auto mode = (flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? varve::ZeroMode::kMayUnmap : varve::ZeroMode::kKeepAllocated;
  return run([&]() -> Result<void> {
    TRY(of(handle).zero(offset, count, mode));
    return flush_if(handle, flags);
  });
}

int trim(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  return run([&]() -> Result<void> {
    TRY(of(handle).trim(offset, count));
    return flush_if(handle, flags);
  });
}

int flush(void* handle, uint32_t /*flags*/) {
  return run([&] { return of(handle).flush(); });
}

int extents(void* handle, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* list) {
  return run([&]() -> Result<void> {
    const bool only_one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
    for (const varve::Extent& extent : TRY(of(handle).extents(offset, count))) {
      const uint32_t type = extent.kind == varve::ExtentKind::kData ? 0 : NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;
      if (nbdkit_add_extent(list, extent.offset, extent.length, type) != 0)
        return varve::make_error(ErrorKind::kInternal, "nbdkit takes no more extents");
      if (only_one) break;
    }
    return {};
  });
}

constexpr const char* kHelp =
    "file=IMAGE          (required) the image\n"
    "format=qcow2|raw    its format; qcow2 unless said\n"
    "snapshot=NAME       the disk as it was there, for reading\n"
    "overlay=DIRECTORY   writes go to a file without a name there, and are thrown away at the end\n"
    "export=NAME         begins another export: what follows belongs to it";

// What no client has flushed is not lost because the server ends.
void cleanup() {
  for (const auto& entry : exports) run([&] { return entry->finish(); });
  exports.clear();
}

nbdkit_plugin entry_points() {
  nbdkit_plugin result = {};
  result.name = "varve";
  result.longname = "Varve: disks in qcow2 and raw images, and their snapshots";
  result.config = config;
  result.config_complete = config_complete;
  result.config_help = kHelp;
  result.open = open_client;
  result.close = close_client;
  result.get_size = get_size;
  result.can_write = can_write;
  result.can_flush = yes;
  result.can_trim = yes;
  result.pread = read_data;
  result.pwrite = write_data;
  result.flush = flush;
  result.trim = trim;
  result.zero = zero;
  result.magic_config_key = "file";
  result.can_multi_conn = yes;
  result.can_extents = yes;
  result.extents = extents;
  result.can_fua = can_fua;
  result.get_ready = get_ready;
  result.list_exports = list_exports;
  result.default_export = default_export;
  result.block_size = block_size;
  result.cleanup = cleanup;
  return result;
}

nbdkit_plugin plugin = entry_points();

}  // namespace

NBDKIT_REGISTER_PLUGIN(plugin)
