#include "image/compare.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>

#include "base/aligned_vector.h"
#include "base/zero_bytes.h"
#include "image/chain_map.h"

namespace varve::image {

namespace {

constexpr uint64_t kWindow = uint64_t{1} << 32;   // guest bytes whose map is in memory at a time
constexpr uint64_t kPiece = uint64_t{768} << 10;  // read at a time; with a third of it, a third more time is taken
constexpr uint64_t kSector = 512;
constexpr unsigned kThreads = 4;

struct Side {
  const OpenImage* image = nullptr;
  ChainMap map;
  std::vector<std::pair<dev_t, ino_t>> files;  // of the layers
};

Result<Side> open_side(const OpenImage& image) {
  Side side{.image = &image, .map = TRY(ChainMap::open(image)), .files = {}};
  for (const Layer& layer : image.layers()) {
    struct stat st = {};
    if (::stat(layer.path.c_str(), &st) != 0) return system_error(errno, "cannot examine '" + layer.path + "'");
    side.files.emplace_back(st.st_dev, st.st_ino);
  }
  return side;
}

// Bytes that have to be looked at: of both images, or of one that must read as zeroes.
struct Work {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool read[2] = {};
};

// The first sector of `size` bytes that is unlike: same(at, length) tells whether a piece is the same. `size` if none.
template <typename Same>
uint64_t first_difference(uint64_t size, Same same) {
  if (same(0, size)) return size;
  for (uint64_t at = 0; at < size; at += kSector)
    if (!same(at, std::min(kSector, size - at))) return at;
  return size;
}

class Reader {
 public:
  Reader(const OpenImage& first, const OpenImage& second) : devices_{first.device().get(), second.device().get()} {}

  // The first pieces in order that are unlike decide; later ones may have been looked at in vain.
  std::optional<Comparison> run(const std::vector<Work>& all) {
    next_ = 0;
    bad_ = all.size();
    found_.reset();
    std::vector<std::jthread> threads;
    const size_t wanted = std::min<size_t>({kThreads, std::max(1u, std::thread::hardware_concurrency()), all.size()});
    for (size_t i = 1; i < wanted; ++i) threads.emplace_back([&] { drain(all); });
    drain(all);
    threads.clear();
    return std::move(found_);
  }

 private:
  using Buffers = std::array<AlignedVector<std::byte>, 2>;

  void drain(const std::vector<Work>& all) {
    Buffers buffers = {AlignedVector<std::byte>(kPiece), AlignedVector<std::byte>(kPiece)};
    for (;;) {
      const size_t index = next_++;
      if (index >= bad_) return;
      std::optional<Comparison> unlike = look(all[index], buffers);
      if (!unlike) continue;
      const std::lock_guard guard(lock_);
      if (index >= bad_) continue;
      bad_ = index;
      found_ = std::move(unlike);
    }
  }

  std::optional<Comparison> look(const Work& work, Buffers& buffers) {
    std::span<std::byte> bytes[2];  // of those that are read
    for (size_t i = 0; i < 2; ++i) {
      if (!work.read[i]) continue;
      bytes[i] = std::span(buffers[i]).first(work.length);
      if (Result<void> read = devices_[i]->read_at(work.offset, bytes[i]); !read) {
        return Comparison{.kind = Comparison::Kind::kReadFailed,
                          .offset = work.offset,
                          .image = static_cast<int>(i),
                          .failure = read.error()};
      }
    }
    const uint64_t at = first_difference(work.length, [&](uint64_t from, uint64_t length) {
      if (!work.read[0]) return all_zero(bytes[1].subspan(from, length));
      if (!work.read[1]) return all_zero(bytes[0].subspan(from, length));
      return std::memcmp(&bytes[0][from], &bytes[1][from], length) == 0;
    });
    if (at == work.length) return std::nullopt;
    return Comparison{.kind = Comparison::Kind::kContentMismatch, .offset = work.offset + at, .failure = std::nullopt};
  }

  BlockDevice* devices_[2];
  std::atomic<size_t> next_ = 0;
  std::atomic<size_t> bad_ = 0;
  std::mutex lock_;
  std::optional<Comparison> found_;
};

void add_work(std::vector<Work>& all, uint64_t offset, uint64_t length, bool first, bool second) {
  while (length != 0) {
    if (!all.empty() && all.back().offset + all.back().length == offset && all.back().read[0] == first &&
        all.back().read[1] == second && all.back().length < kPiece) {
      const uint64_t more = std::min(length, kPiece - all.back().length);
      all.back().length += more;
      offset += more;
      length -= more;
      continue;
    }
    const uint64_t n = std::min(length, kPiece);
    all.push_back({offset, n, {first, second}});
    offset += n;
    length -= n;
  }
}

bool is_same_place(const Side& a, const ChainExtent& x, const Side& b, const ChainExtent& y) {
  if (a.image->has_filters() || b.image->has_filters()) return false;  // reading may fail, or fail the one side only
  return x.data && y.data && x.host_offset && x.host_offset == y.host_offset && x.compressed == y.compressed &&
         a.files[x.depth] == b.files[y.depth];
}

ChainExtent cut(const ChainExtent& e, uint64_t offset, uint64_t length) {
  ChainExtent part = e;
  if (part.host_offset && !part.compressed) *part.host_offset += offset - e.offset;
  part.offset = offset;
  part.length = length;
  return part;
}

bool is_same_status(const ChainExtent& x, const ChainExtent& y) {
  const bool x_placed = x.host_offset.has_value() && !x.compressed;
  const bool y_placed = y.host_offset.has_value() && !y.compressed;
  return x.present == y.present && x.zero == y.zero && x.data == y.data && x_placed == y_placed;
}

class Walk {
 public:
  Walk(Side& first, Side& second, const CompareOptions& options)
      : sides_{&first, &second}, options_(options), reader_(*first.image, *second.image) {}

  Comparison run() {
    const uint64_t sizes[2] = {sides_[0]->map.size(), sides_[1]->map.size()};
    if (options_.strict && sizes[0] != sizes[1])
      return {.kind = Comparison::Kind::kSizeMismatch, .failure = std::nullopt};
    const uint64_t common = std::min(sizes[0], sizes[1]);
    const uint64_t whole = std::max(sizes[0], sizes[1]);
    for (uint64_t at = 0; at < whole;) {
      const uint64_t border = at < common ? common : whole;
      const uint64_t length = std::min(kWindow, border - at);
      std::optional<Comparison> ended = at < common ? both(at, length) : one(sizes[0] > sizes[1] ? 0 : 1, at, length);
      if (ended) {
        ended->reached_end_of_shorter = at >= common;
        return std::move(*ended);
      }
      at += length;
      if (options_.progress) options_.progress(at, whole);
    }
    return {.failure = std::nullopt};
  }

 private:
  using Extents = std::vector<ChainExtent>;

  std::optional<Comparison> map(int side, uint64_t at, uint64_t length, Extents& extents) {
    Result<Extents> read = sides_[side]->map.extents(at, length);
    if (!read) return Comparison{.kind = Comparison::Kind::kMapFailed, .image = side, .failure = read.error()};
    extents = std::move(*read);
    return std::nullopt;
  }

  std::optional<Comparison> both(uint64_t at, uint64_t length) {
    Extents a;
    Extents b;
    if (auto failed = map(0, at, length, a)) return failed;
    if (auto failed = map(1, at, length, b)) return failed;
    std::vector<Work> work;
    size_t i = 0;
    size_t j = 0;
    for (uint64_t position = at; position < at + length;) {
      const uint64_t end = std::min(a[i].offset + a[i].length, b[j].offset + b[j].length);
      const ChainExtent x = cut(a[i], position, end - position);
      const ChainExtent y = cut(b[j], position, end - position);
      if (options_.strict && !is_same_status(x, y)) {
        if (auto ended = reader_.run(work)) return ended;  // what comes first is said first
        return Comparison{.kind = Comparison::Kind::kStatusMismatch, .offset = position, .failure = std::nullopt};
      }
      if (!(x.zero && y.zero) && !is_same_place(*sides_[0], x, *sides_[1], y))
        add_work(work, position, end - position, !x.zero, !y.zero);
      if (end == a[i].offset + a[i].length) ++i;
      if (end == b[j].offset + b[j].length) ++j;
      position = end;
    }
    return reader_.run(work);
  }

  std::optional<Comparison> one(int side, uint64_t at, uint64_t length) {
    Extents extents;
    if (auto failed = map(side, at, length, extents)) return failed;
    std::vector<Work> work;
    for (const ChainExtent& e : extents)
      if (!e.zero) add_work(work, e.offset, e.length, side == 0, side == 1);
    return reader_.run(work);
  }

  Side* sides_[2];
  const CompareOptions& options_;
  Reader reader_;
};

}  // namespace

Result<Comparison> compare(const OpenImage& first, const OpenImage& second, const CompareOptions& options) {
  Side a = TRY(open_side(first));
  Side b = TRY(open_side(second));
  return Walk(a, b, options).run();
}

}  // namespace varve::image
