#include "inspect/safe_repair.h"

#include <algorithm>

#include "check/check.h"
#include "io/file_device.h"
#include "io/rehearsal_device.h"
#include "qcow2/header.h"
#include "qcow2/snapshot_table.h"

namespace varve {

namespace {

// Where what a snapshot refers to is not known, a repair takes what only that one holds for leaks.
bool knows_all_tables(BlockDevice& file) {
  const auto header = qcow2::read_header(file);
  if (!header) return false;
  const auto table = qcow2::read_snapshot_table(file, *header);
  return table && std::ranges::none_of(table->snapshots, [](const qcow2::Snapshot& snapshot) {
           return snapshot.fault && !snapshot.fault->table_is_known;
         });
}

bool is_clean(const check::Tally& tally) {
  return tally.error == 0 && tally.check_errors == 0 && tally.corruptions == 0 && tally.leaks == 0;
}

}  // namespace

Result<std::optional<uint64_t>> rehearse_safe_repair(const std::string& host_path, check::Repair repair) {
  auto file = TRY(FileDevice::open(host_path, Access::kReadOnly, LockRequest::none()));
  const std::optional<uint64_t> unsafe;
  if (!knows_all_tables(*file)) return unsafe;
  const auto device = TRY(RehearsalDevice::over(std::move(file)));
  const auto ignore = [](const std::string&) {};
  const check::Report report{.line = ignore, .error = ignore};
  const check::Tally found = TRY(check::check_image(*device, {}, report)).tally;
  if (found.error != 0 || found.check_errors != 0) return unsafe;
  if (found.corruptions != 0 && found.leaks != 0) return unsafe;
  bool gives_up = false;
  TRY(check::check_image(*device,
                         {.repair = repair,
                          .progress = {},
                          .planned =
                              [&](const check::RepairSummary& plan) {
                                gives_up = plan.entries_zeroed != 0 || plan.snapshot_table ||
                                           (found.corruptions != 0 && plan.refcounts_lowered != 0);
                              }},
                         report));
  if (gives_up || !is_clean(TRY(check::check_image(*device, {}, report)).tally)) return unsafe;
  return std::optional<uint64_t>(device->changes().most_new_bytes);
}

}  // namespace varve
