// Makes a qcow2 image with many snapshots for scripts/bench, all of them in one commit. Clusters of 4 KiB keep the
// snapshots' L1 tables, one cluster each, small.
//
//   varve_many_snapshots NEW_IMAGE COUNT
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>

#include "io/file_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"

namespace {

varve::Result<void> make(const std::string& path, unsigned count) {
  std::shared_ptr<varve::FileDevice> file = TRY(varve::FileDevice::create(path, varve::LockRequest::format_writer()));
  varve::qcow2::CreateOptions options;
  options.size = uint64_t{1} << 30;
  options.cluster_size = 4096;
  TRY(varve::qcow2::Image::create(*file, options));
  auto image = TRY(varve::qcow2::Image::open(file, {.writable = true}));
  auto transaction = TRY(varve::qcow2::SnapshotTransaction::begin(*image));
  for (unsigned i = 0; i < count; ++i) {
    TRY(transaction.create({.name = "hourly-" + std::to_string(i), .date_sec = 1700000000 + 3600 * i}));
  }
  const auto prepared = TRY(transaction.prepare());
  TRY(varve::qcow2::SnapshotTransaction::commit(*image, prepared));
  return varve::qcow2::SnapshotTransaction::discard_freed(*image, prepared);
}

}  // namespace

int main(int argc, char** argv) {
  unsigned count = 0;
  if (argc != 3 || std::from_chars(argv[2], argv[2] + std::strlen(argv[2]), count).ec != std::errc()) {
    std::fprintf(stderr, "usage: varve_many_snapshots NEW_IMAGE COUNT\n");
    return 2;
  }
  const auto made = make(argv[1], count);
  if (!made) std::fprintf(stderr, "varve_many_snapshots: %s\n", made.error().message.c_str());
  return made ? 0 : 1;
}
