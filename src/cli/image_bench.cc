// `image bench`: how long a series of reads or writes takes. As many requests are under way as -d says, as far as
// threads help: a request is a system call that a thread waits for, and beyond a few threads per processor there is
// nothing to win.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "base/aligned_vector.h"
#include "cli/cache_mode.h"
#include "cli/image_command.h"
#include "cli/image_errors.h"
#include "cli/image_source.h"

namespace varve::cli {

namespace {

constexpr unsigned kThreadsPerProcessor = 4;

struct BenchRequest {
  std::string path;
  SourceArguments source;
  uint64_t count = 75000;
  uint64_t depth = 64;
  uint64_t offset = 0;
  uint64_t buffer_size = 4096;
  uint64_t step = 0;  // 0: the buffer's size
  uint64_t flush_interval = 0;
  uint64_t pattern = 0;
  std::string cache = "writeback";
  bool native = false;
  bool drain = true;
  bool write = false;
};

class Run {
 public:
  Run(BlockDevice& device, uint64_t size, const BenchRequest& request)
      : device_(device), size_(size), request_(request) {}

  // Requests in rounds between flushes; a round is drained before its flush unless --no-drain.
  Result<void> all() {
    const uint64_t round = request_.flush_interval != 0 && request_.drain ? request_.flush_interval : request_.count;
    for (uint64_t done = 0; done < request_.count; done += round) {
      const uint64_t now = std::min(round, request_.count - done);
      TRY(part(done, now));
      if (request_.flush_interval != 0 && now == round) TRY(device_.flush());
    }
    return {};
  }

 private:
  Result<void> part(uint64_t first, uint64_t count) {
    next_ = first;
    end_ = first + count;
    const uint64_t useful = uint64_t{std::max(1u, std::thread::hardware_concurrency())} * kThreadsPerProcessor;
    const uint64_t wanted = std::min({request_.depth, useful, count});
    {
      std::vector<std::jthread> threads;
      for (uint64_t i = 1; i < wanted; ++i) threads.emplace_back([this] { drain_requests(); });
      drain_requests();
    }
    if (failure_) return *failure_;
    return {};
  }

  void drain_requests() {
    AlignedVector<std::byte> buffer(request_.buffer_size,
                                    static_cast<std::byte>(request_.write ? request_.pattern : 0));
    for (;;) {
      const uint64_t index = next_++;
      if (index >= end_) return;
      if (Result<void> done = one(index, buffer); !done) {
        const std::lock_guard guard(lock_);
        if (!failure_) failure_ = done.error();
        next_ = end_.load();
        return;
      }
    }
  }

  Result<void> one(uint64_t index, std::span<std::byte> buffer) {
    const uint64_t step = request_.step != 0 ? request_.step : request_.buffer_size;
    uint64_t offset = request_.offset;
    if (index != 0) offset = size_ == 0 ? 0 : (request_.offset + index * step) % size_;
    if (buffer.size() > size_ || offset > size_ - buffer.size()) {
      if (index == 0 || buffer.size() > size_) return make_error(ErrorKind::kIo, "the request is outside of the disk");
      offset = 0;
    }
    if (!request_.write) return device_.read_at(offset, buffer);
    TRY(device_.write_at(offset, buffer));
    if (!request_.drain && request_.flush_interval != 0 && (index + 1) % request_.flush_interval == 0)
      return device_.flush();
    return {};
  }

  BlockDevice& device_;
  uint64_t size_;
  const BenchRequest& request_;
  std::atomic<uint64_t> next_ = 0;
  std::atomic<uint64_t> end_ = 0;
  std::mutex lock_;
  std::optional<Error> failure_;
};

ImageExit bench(Output& output, const BenchRequest& request) {
  if (!request.write && request.flush_interval != 0)
    return image_failure(output, "--flush-interval is only available in write tests");
  if (request.flush_interval != 0 && request.flush_interval < request.depth)
    return image_failure(output, "Flush interval can't be smaller than depth");
  const std::optional<CacheMode> cache = parse_cache_mode(request.cache);
  if (!cache) return image_failure(output, "Invalid cache mode");
  if (request.native && !cache->direct) {
    return image_failure(output, fmt::format("Could not open '{}': aio=native was specified, but it requires "
                                             "cache.direct=on, which was not specified.",
                                             request.path));
  }
  SourceArguments source = request.source;
  source.bypass_cache = cache->direct;
  const Result<image::OpenImage> image =
      open_source(request.path, source, {.use = request.write ? image::Use::kWrite : image::Use::kRead});
  if (!image) return image_failure(output, image.error());
  const Result<uint64_t> size = image->device()->size();
  if (!size) return image_failure(output, errno_text(size.error()), &size.error());
  output.print(
      fmt::format("Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})\n",
                  request.count, request.write ? "write" : "read", request.buffer_size, request.depth, request.offset,
                  request.step != 0 ? request.step : request.buffer_size));
  if (request.flush_interval != 0) {
    output.print(fmt::format("Sending flush every {} requests\n", request.flush_interval));
  }
  const auto begin = std::chrono::steady_clock::now();
  if (Result<void> done = Run(*image->device(), *size, request).all(); !done)
    return image_failure(output, "Failed request: " + errno_text(done.error()), &done.error());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  output.print(fmt::format("Run completed in {:3.3f} seconds.\n", took.count()));
  return {0};
}

// A whole number up to INT_MAX, as QEMU reads counts; nothing where it is none, and that is printed.
std::optional<uint64_t> count_argument(Output& output, const char* what, const std::string& text, uint64_t most) {
  char* end = nullptr;
  errno = 0;
  const unsigned long number = std::strtoul(text.c_str(), &end, 0);
  if (!text.empty() && *end == '\0' && errno == 0 && number <= most && text[0] != '-') return number;
  output.error(fmt::format("Invalid {} specified", what));
  return std::nullopt;
}

enum BenchOption : int { kPattern = 1000, kFlushInterval, kNoDrain };

// Options that have a number. False: printed.
bool take_number(Output& output, int id, const std::string& value, BenchRequest& request) {
  std::optional<uint64_t> number;
  uint64_t* place = nullptr;
  switch (id) {
    case 'c':
      number = count_argument(output, "request count", value, INT_MAX);
      place = &request.count;
      break;
    case 'd':
      number = count_argument(output, "queue depth", value, INT_MAX);
      place = &request.depth;
      break;
    case kPattern:
      number = count_argument(output, "pattern byte", value, 0xff);
      place = &request.pattern;
      break;
    case kFlushInterval:
      number = count_argument(output, "flush interval", value, INT_MAX);
      place = &request.flush_interval;
      break;
    case 'o':
      number = size_argument(output, "offset", value);
      place = &request.offset;
      break;
    case 's':
      number = size_argument(output, "buffer size", value, 0, INT_MAX);
      place = &request.buffer_size;
      break;
    default:
      number = size_argument(output, "step_size", value, 0, INT_MAX);
      place = &request.step;
  }
  if (number) *place = *number;
  return number.has_value();
}

}  // namespace

ImageExit image_bench(const ImageCall& call) {
  ParsedImageArguments parsed = parse_image_arguments(call, "hc:d:f:ni:o:qs:S:t:wU",
                                                      {{"help", false, 'h'},
                                                       {"flush-interval", true, kFlushInterval},
                                                       {"pattern", true, kPattern},
                                                       {"no-drain", false, kNoDrain},
                                                       {"image-opts", false, kOptionImageOpts},
                                                       {"force-share", false, 'U'}});
  if (parsed.failed) return *parsed.failed;
  BenchRequest request;
  if (const auto ended = take_source_arguments(call, parsed, request.source)) return *ended;
  for (const auto& [id, value] : parsed.options) {
    switch (id) {
      case 'n':
        request.native = true;
        break;
      case 'i':
        if (value != "threads" && value != "native" && value != "io_uring")
          return image_failure(call.output, "Invalid aio option: " + value);
        request.native = value == "native";
        break;
      case 'q':
        break;
      case 't':
        request.cache = value;
        break;
      case 'w':
        request.write = true;
        break;
      case kNoDrain:
        request.drain = false;
        break;
      default:
        if (!take_number(call.output, id, value, request)) return {1};
    }
  }
  if (parsed.operands.size() != 1) return usage_failure(call.output, "Expecting one image file name");
  request.path = parsed.operands[0];
  if (request.write && parsed.dry_run.wanted)
    return image_failure(call.output,
                         "image bench -w has no plan to show: it writes over what the image holds, and "
                         "times that; without --dry-run it does so");
  if (request.depth == 0) return image_failure(call.output, "Invalid queue depth specified");
  return bench(call.output, request);
}

}  // namespace varve::cli
