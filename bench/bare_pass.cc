// The yardstick: the least that a program could do which changes all snapshot metadata of a qcow2 image. It reads every
// refcount block and every L2 table, adds one to every refcount in use, flips the COPIED flag of every mapped cluster,
// writes everything back in place and calls fdatasync. It keeps no order and survives no crash, and the image is not
// fit for use afterwards. Understands only what `qemu-img create -o preallocation=metadata` makes: 16-bit refcounts,
// plain L2 entries. Shares no code with the engine.
//
//   varve_bare_pass IMAGE
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

namespace {

constexpr uint64_t kCopied = uint64_t{1} << 63;
constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
constexpr size_t kBatchBytes = size_t{4} << 20;  // neighbouring tables are read and written together, up to this much

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "varve_bare_pass: %s: %s\n", what, errno != 0 ? std::strerror(errno) : "not as expected");
  std::exit(1);
}

void read_all(int fd, void* buffer, size_t length, uint64_t offset) {
  if (pread(fd, buffer, length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length)) die("read");
}

void write_all(int fd, const void* buffer, size_t length, uint64_t offset) {
  if (pwrite(fd, buffer, length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length)) die("write");
}

template <typename T>
T load(const void* from);
template <>
uint32_t load(const void* from) {
  uint32_t raw = 0;
  std::memcpy(&raw, from, sizeof raw);
  return __builtin_bswap32(raw);
}
template <>
uint64_t load(const void* from) {
  uint64_t raw = 0;
  std::memcpy(&raw, from, sizeof raw);
  return __builtin_bswap64(raw);
}

std::vector<uint64_t> read_table(int fd, uint64_t offset, size_t entries) {
  std::vector<uint64_t> table(entries);
  read_all(fd, table.data(), entries * sizeof(uint64_t), offset);
  for (uint64_t& entry : table) entry = __builtin_bswap64(entry) & kOffsetMask;
  return table;
}

void change_refcounts(std::span<uint16_t> refcounts) {
  for (uint16_t& raw : refcounts) {
    const uint16_t value = __builtin_bswap16(raw);
    raw = value == 0 ? raw : __builtin_bswap16(static_cast<uint16_t>(value + 1));
  }
}

void change_entries(std::span<uint64_t> entries) {
  for (uint64_t& raw : entries) raw ^= raw == 0 ? 0 : __builtin_bswap64(kCopied);
}

// Reads, changes and writes back the clusters at `offsets`; clusters that stand side by side go together.
template <typename Entry>
uint64_t pass(int fd, const std::vector<uint64_t>& offsets, size_t cluster_size, void (*change)(std::span<Entry>)) {
  std::vector<Entry> buffer(std::max(cluster_size, kBatchBytes) / sizeof(Entry));
  uint64_t done = 0;
  for (size_t i = 0; i < offsets.size();) {
    if (offsets[i] == 0) {
      ++i;
      continue;
    }
    size_t bytes = cluster_size;
    size_t next = i + 1;
    while (next < offsets.size() && offsets[next] == offsets[i] + bytes && bytes + cluster_size <= kBatchBytes) {
      bytes += cluster_size;
      ++next;
    }
    read_all(fd, buffer.data(), bytes, offsets[i]);
    change(std::span(buffer).first(bytes / sizeof(Entry)));
    write_all(fd, buffer.data(), bytes, offsets[i]);
    done += bytes;
    i = next;
  }
  return done;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: varve_bare_pass IMAGE\n");
    return 2;
  }
  const int fd = open(argv[1], O_RDWR | O_CLOEXEC);
  if (fd < 0) die(argv[1]);
  unsigned char header[104];
  read_all(fd, header, sizeof header, 0);
  errno = 0;
  const uint32_t cluster_bits = load<uint32_t>(header + 20);
  const bool extended_l2 = (load<uint64_t>(header + 72) & 0x10) != 0;
  if (load<uint32_t>(header) != 0x514649fb || cluster_bits < 9 || cluster_bits > 21 || extended_l2 ||
      load<uint32_t>(header + 96) != 4) {
    die("this image (16-bit refcounts and plain L2 entries are what this program knows)");
  }
  const size_t cluster_size = size_t{1} << cluster_bits;
  const auto l1 = read_table(fd, load<uint64_t>(header + 40), load<uint32_t>(header + 36));
  const auto refcount_table =
      read_table(fd, load<uint64_t>(header + 48), load<uint32_t>(header + 56) * cluster_size / sizeof(uint64_t));

  const uint64_t l2_bytes = pass<uint64_t>(fd, l1, cluster_size, change_entries);
  const uint64_t refcount_bytes = pass<uint16_t>(fd, refcount_table, cluster_size, change_refcounts);
  if (fdatasync(fd) != 0) die("fdatasync");
  close(fd);
  std::printf("changed %llu bytes of L2 tables and %llu bytes of refcount blocks\n",
              static_cast<unsigned long long>(l2_bytes), static_cast<unsigned long long>(refcount_bytes));
  return 0;
}
