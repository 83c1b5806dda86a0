#include "cli/dirty_image.h"

#include <fmt/format.h>

#include "check/check.h"
#include "io/file_device.h"
#include "qcow2/header.h"
#include "qcow2/snapshot_table.h"

namespace varve::cli {

bool is_dirty_image(const std::string& path) {
  const auto file = FileDevice::open(path, Access::kReadOnly, LockRequest::none());
  if (!file) return false;
  const Result<qcow2::Header> header = qcow2::read_header(**file);
  return header && header->is_dirty() && !header->is_corrupt();
}

Result<void> repair_dirty_image(const std::string& path, const std::function<void(const std::string&)>& line) {
  const auto file = TRY(FileDevice::open(path, Access::kReadWrite, LockRequest::format_writer()));
  // A repair that nobody asked for must not take what only a damaged snapshot holds for leaks.
  const qcow2::Header header = TRY(qcow2::read_header(*file));
  const qcow2::SnapshotTable table = TRY(qcow2::read_snapshot_table(*file, header));
  for (const qcow2::Snapshot& snapshot : table.snapshots) {
    if (snapshot.fault && !snapshot.fault->table_is_known) return qcow2::fault_of(path, header, snapshot);
  }
  const check::CheckResult result = TRY(
      check::check_image(*file, {.repair = check::Repair::kAll, .progress = nullptr}, {.line = line, .error = line}));
  if (result.tally.error == 0 && result.tally.check_errors == 0) return {};
  return make_error(ErrorKind::kCorrupt, "Could not repair dirty image")
      .with_note(fmt::format("`image check {}` says what is wrong", path));
}

}  // namespace varve::cli
