// Snapshots that whoever runs a host's machines makes, takes back and deletes (host/machines.h): of running machines,
// of external files, and of images that can't be opened from here. What it can't do is found before it is asked, and
// said with what would work instead.
#pragma once

#include <string>

#include "operation/create_snapshot.h"
#include "operation/delete_snapshot.h"
#include "operation/metadata_edit.h"
#include "operation/operation.h"
#include "operation/revert_snapshot.h"

namespace varve {

// Whether the work is theirs. False on a host without machines.
Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, const CreateSnapshotRequest& request);
Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, const SnapshotDocument& snapshot,
                             const RevertSnapshotRequest& request);
Result<bool> is_for_machines(const Host& host, const DomainDocument& definition, MetadataEdit& metadata,
                             const DeleteSnapshotRequest& request);

Result<Operation> plan_machine_snapshot(Host& host, LockedDomain domain, const std::string& name,
                                        const CreateSnapshotRequest& request);
Result<RevertSnapshot> plan_machine_revert(Host& host, LockedDomain domain, const SnapshotDocument& snapshot,
                                           MetadataEdit& metadata, const RevertSnapshotRequest& request);
Result<Operation> plan_machine_delete(Host& host, LockedDomain domain, MetadataEdit& metadata,
                                      const DeleteSnapshotRequest& request);

// What every safety snapshot is called, and says of itself.
std::string safety_name_for(uint64_t number);
std::string safety_description(const std::string& reverted_to);

}  // namespace varve
