// Takes a domain back to a snapshot: its disks, its definition, its memory where the snapshot has it, and which
// snapshot is current. What it holds until then is kept in a safety snapshot, which the next revert's replaces. Where a
// machine runs, now or then, whoever runs it does it (machine_snapshot.h).
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "operation/operation.h"

namespace varve {

struct RevertSnapshotRequest {
  std::string domain;
  std::string name;
  // Only these disks, and neither definition nor "current". Empty: everything.
  std::set<std::string> disks;
  bool safety = true;
  AfterRevert after = AfterRevert::kAsThen;
  uint64_t now_sec = 0;  // Unix time of the safety snapshot
  uint32_t now_nsec = 0;
};

struct RevertSnapshot {
  Operation operation;
  std::string safety_name;  // empty: none is made
};

Result<RevertSnapshot> plan_revert_snapshot(Host& host, const RevertSnapshotRequest& request);

}  // namespace varve
