// Any bytes as a qcow2 image: opened, read in full (as far as sizes are sane), every snapshot read, written to, and put
// through a snapshot's whole life. Nothing is asserted about what such an image holds; only that we survive it, and
// that what we commit can be opened again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"

namespace {

using varve::qcow2::Image;
using varve::qcow2::SnapshotTransaction;

constexpr uint64_t kMostRead = uint64_t{256} << 10;  // of one disk; so that an input takes milliseconds

void read_through(varve::BlockDevice& disk) {
  const auto size = disk.size();
  if (!size) return;
  std::vector<std::byte> buffer(4096);
  const uint64_t end = std::min(*size, kMostRead);
  for (uint64_t offset = 0; offset < end; offset += buffer.size()) {
    const auto part = std::span(buffer).first(std::min<uint64_t>(buffer.size(), end - offset));
    static_cast<void>(disk.read_at(offset, part));
  }
  static_cast<void>(disk.extents(0, end));
}

void look(const std::shared_ptr<varve::BlockDevice>& file) {
  auto opened = Image::open(file, {.writable = false});
  if (!opened) return;
  Image& image = **opened;
  read_through(image);
  for (size_t i = 0; i < std::min<size_t>(image.snapshots().size(), 4); ++i) {
    auto snapshot = image.open_snapshot(i);
    if (snapshot) read_through(**snapshot);
    static_cast<void>(image.snapshot_usage(i));
  }
}

// Create, revert to it, delete it, each a commit of its own; stops at the first refusal.
varve::Result<void> change(const std::shared_ptr<varve::BlockDevice>& file) {
  auto image = TRY(Image::open(file, {.writable = true}));
  const std::vector<std::byte> data(3000, std::byte{0x5a});
  static_cast<void>(image->write_at(700, data));
  static_cast<void>(image->write_zeroes(0, 5000, varve::ZeroMode::kMayUnmap));
  static_cast<void>(image->discard(2048, 4096));
  TRY(image->flush());
  for (int step = 0; step < 3; ++step) {
    auto transaction = TRY(SnapshotTransaction::begin(*image));
    const size_t last = transaction.snapshots().size() - 1;
    if (step == 0) TRY(transaction.create({.name = "fuzz", .date_sec = 1}));
    if (step == 1) TRY(transaction.revert(last));
    if (step == 2) TRY(transaction.remove(std::span(&last, 1)));
    const auto prepared = TRY(transaction.prepare());
    TRY(SnapshotTransaction::commit(*image, prepared));
    static_cast<void>(SnapshotTransaction::discard_freed(*image, prepared));
    if (!Image::open(file, {.writable = false})) __builtin_trap();
  }
  return {};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::make_shared<varve::MemoryDevice>("fuzz");
  if (!file->write_at(0, std::as_bytes(std::span(data, size)))) return 0;
  look(file);
  static_cast<void>(change(file));
  look(file);
  return 0;
}
