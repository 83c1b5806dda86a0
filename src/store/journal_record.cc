#include "store/journal_record.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "base/endian.h"
#include "store/layout.h"

namespace varve {

namespace {

constexpr char kMagic[8] = {'V', 'A', 'R', 'V', 'E', 'J', 'N', 'L'};
constexpr uint32_t kVersion = 2;      // 1 has no UUID
constexpr size_t kPrologueSize = 24;  // magic, version, CRC-32 of the payload, length of the payload
constexpr size_t kMaxPathBytes = 4096;
constexpr size_t kMaxNameBytes = 255;
constexpr uint8_t kWrite = 1;
constexpr uint8_t kRemove = 2;

class Writer {
 public:
  void u8(uint8_t v) { bytes_.push_back(std::byte{v}); }
  void u32(uint32_t v) { integer(v); }
  void u64(uint64_t v) { integer(v); }
  void raw(std::span<const std::byte> data) { bytes_.insert(bytes_.end(), data.begin(), data.end()); }
  void string(const std::string& s) {
    u64(s.size());
    raw(std::as_bytes(std::span(s)));
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  template <typename T>
  void integer(T v) {
    std::byte buffer[sizeof v];
    store_be(buffer, v);
    raw(buffer);
  }
  std::vector<std::byte> bytes_;
};

// Reads that go past the end, and values that are not allowed, set the error once; the caller asks at the end, or
// before it loops over a count.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint8_t u8() { return static_cast<uint8_t>(take(1)[0]); }
  uint32_t u32() { return load_be<uint32_t>(take(4).data()); }
  uint64_t u64() { return load_be<uint64_t>(take(8).data()); }
  void sector(qcow2::HeaderSector& out) {
    for (size_t i = 0; i < out.size(); i += 8) std::memcpy(out.data() + i, take(8).data(), 8);
  }
  std::string string(size_t limit, const char* what) {
    const uint64_t length = u64();
    if (length > limit || length > bytes_.size() - offset_) {
      fail(what);
      return {};
    }
    const auto data = bytes_.subspan(offset_, length);
    offset_ += length;
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  }
  void fail(const char* what) {
    if (!error_) error_ = what;
  }
  void require(bool holds, const char* what) {
    if (!holds) fail(what);
  }
  bool ok() const { return error_ == nullptr; }
  bool at_end() const { return offset_ == bytes_.size(); }
  Error error() const {
    Error e = make_error(ErrorKind::kCorrupt, error_ != nullptr ? error_ : "ends too early");
    e.offset = kPrologueSize + offset_;
    return e;
  }

 private:
  std::span<const std::byte> take(size_t n) {
    if (n > bytes_.size() - offset_) {
      fail("ends too early");
      return zeroes_;
    }
    offset_ += n;
    return bytes_.subspan(offset_ - n, n);
  }
  static constexpr std::array<std::byte, 8> zeroes_{};
  std::span<const std::byte> bytes_;
  size_t offset_ = 0;
  const char* error_ = nullptr;
};

std::string read_path(Reader& r) {
  std::string path = r.string(kMaxPathBytes, "a path is too long");
  r.require(path.starts_with('/'), "a path is not absolute");
  return path;
}

void write_image(Writer& w, const JournalImage& image) {
  w.string(image.target);
  w.string(image.path);
  w.raw(image.before);
  w.raw(image.after);
  w.u64(image.prepared.device);
  w.u64(image.prepared.inode);
  w.u64(image.prepared.size);
  w.u64(static_cast<uint64_t>(image.prepared.mtime_sec));
  w.u32(image.prepared.mtime_nsec);
}

JournalImage read_image(Reader& r) {
  JournalImage image;
  image.target = r.string(kMaxNameBytes, "the name of a disk is too long");
  image.path = read_path(r);
  r.sector(image.before);
  r.sector(image.after);
  image.prepared.device = r.u64();
  image.prepared.inode = r.u64();
  image.prepared.size = r.u64();
  image.prepared.mtime_sec = static_cast<int64_t>(r.u64());
  image.prepared.mtime_nsec = r.u32();
  r.require(
      load_be<uint32_t>(image.before.data()) == qcow2::kMagic && load_be<uint32_t>(image.after.data()) == qcow2::kMagic,
      "a header sector is not one of a qcow2 image");
  r.require(image.prepared.mtime_nsec < 1'000'000'000, "a time is out of range");
  return image;
}

void write_change(Writer& w, const FileChange& change) {
  w.u8(change.contents ? kWrite : kRemove);
  w.string(change.path);
  w.u32(change.mode);
  w.string(change.contents.value_or(""));
}

FileChange read_change(Reader& r) {
  FileChange change;
  const uint8_t kind = r.u8();
  r.require(kind == kWrite || kind == kRemove, "a file change is of no known kind");
  change.path = read_path(r);
  change.mode = r.u32();
  r.require(change.mode <= 0777, "the mode of a file is out of range");
  std::string contents = r.string(SIZE_MAX, "the contents of a file are cut off");
  r.require(kind == kWrite || contents.empty(), "a removal has contents");
  if (kind == kWrite) change.contents = std::move(contents);
  return change;
}

uint32_t checksum(std::span<const std::byte> payload) {
  return static_cast<uint32_t>(
      ::crc32_z(::crc32_z(0, nullptr, 0), reinterpret_cast<const Bytef*>(payload.data()), payload.size()));
}

Error corrupt(const char* what, uint64_t offset) {
  Error e = make_error(ErrorKind::kCorrupt, what);
  e.offset = offset;
  return e;
}

}  // namespace

bool JournalRecord::removes_definition() const {
  const std::string path = Layout::definition(domain);
  return std::ranges::any_of(changes,
                             [&](const FileChange& change) { return change.path == path && !change.contents; });
}

std::vector<std::byte> serialize_record(const JournalRecord& record) {
  Writer payload;
  payload.u8(static_cast<uint8_t>(record.purpose));
  payload.string(record.domain);
  payload.string(record.domain_uuid);
  payload.string(record.operation);
  payload.string(record.snapshot);
  payload.u32(static_cast<uint32_t>(record.images.size()));
  for (const JournalImage& image : record.images) write_image(payload, image);
  payload.u32(static_cast<uint32_t>(record.changes.size()));
  for (const FileChange& change : record.changes) write_change(payload, change);
  for (const auto* paths : {&record.removed_images, &record.removed_directories}) {
    payload.u32(static_cast<uint32_t>(paths->size()));
    for (const std::string& path : *paths) payload.string(path);
  }
  const std::vector<std::byte> body = payload.take();

  Writer file;
  file.raw(std::as_bytes(std::span(kMagic)));
  file.u32(kVersion);
  file.u32(checksum(body));
  file.u64(body.size());
  file.raw(body);
  return file.take();
}

Result<JournalRecord> parse_record(std::span<const std::byte> bytes) {
  if (bytes.size() < kPrologueSize || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0) {
    return corrupt("is not a journal record", 0);
  }
  const auto version = load_be<uint32_t>(bytes.data() + 8);
  if (version == 0 || version > kVersion) {
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("is a journal record of version {}, this varve knows 1 and {}", version, kVersion));
  }
  const std::span<const std::byte> body = bytes.subspan(kPrologueSize);
  if (load_be<uint64_t>(bytes.data() + 16) != body.size()) return corrupt("is cut off or has trailing bytes", 16);
  if (load_be<uint32_t>(bytes.data() + 12) != checksum(body)) return corrupt("its checksum does not hold", 12);

  Reader r(body);
  JournalRecord record;
  const uint8_t purpose = r.u8();
  r.require(purpose == 1 || purpose == 2, "it is of no known purpose");
  record.purpose = static_cast<RecordPurpose>(purpose);
  record.domain = r.string(kMaxNameBytes, "the name of the domain is too long");
  if (version >= 2) record.domain_uuid = r.string(kMaxNameBytes, "the UUID of the domain is too long");
  record.operation = r.string(kMaxPathBytes, "the name of the operation is too long");
  record.snapshot = r.string(kMaxPathBytes, "the name of the snapshot is too long");
  // Counts are believed only as far as there are bytes: a loop ends with the first read past the end.
  const uint32_t images = r.u32();
  for (uint32_t i = 0; i < images && r.ok(); ++i) record.images.push_back(read_image(r));
  const uint32_t changes = r.u32();
  for (uint32_t i = 0; i < changes && r.ok(); ++i) record.changes.push_back(read_change(r));
  for (auto* paths : {&record.removed_images, &record.removed_directories}) {
    const uint32_t count = r.u32();
    for (uint32_t i = 0; i < count && r.ok(); ++i) paths->push_back(read_path(r));
  }
  r.require(r.at_end(), "has trailing bytes");
  if (!r.ok()) return r.error();
  return record;
}

}  // namespace varve
