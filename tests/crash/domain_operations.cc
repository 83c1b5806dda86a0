#include "crash/domain_operations.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "crash/disk_state.h"
#include "host/directory_host.h"
#include "operation/create_domain.h"
#include "operation/create_snapshot.h"
#include "operation/delete_snapshot.h"
#include "operation/edit_snapshot.h"
#include "operation/repair.h"
#include "operation/revert_snapshot.h"
#include "operation/undefine_domain.h"
#include "support/process.h"
#include "support/qcow2_scan.h"
#include "support/temp_dir.h"

namespace varve::test {

namespace {

constexpr uint64_t kNow = 1'800'000'000;

Work create_snapshot(const std::string& name) {
  return [name](Host& host) -> Result<void> {
    CreateSnapshotRequest request;
    request.domain = "vm";
    request.name = name;
    request.now_sec = kNow;
    Operation operation = TRY(plan_create_snapshot(host, request));
    return operation.run();
  };
}

Work revert_to(const std::string& name, bool safety) {
  return [name, safety](Host& host) -> Result<void> {
    RevertSnapshotRequest request;
    request.domain = "vm";
    request.name = name;
    request.safety = safety;
    request.now_sec = kNow;
    RevertSnapshot revert = TRY(plan_revert_snapshot(host, request));
    return revert.operation.run();
  };
}

Result<void> delete_a(Host& host) {
  DeleteSnapshotRequest request;
  request.domain = "vm";
  request.name = "a";
  Operation operation = TRY(plan_delete_snapshot(host, request));
  return operation.run();
}

Result<void> rename_a(Host& host) {
  EditSnapshotRequest request;
  request.domain = "vm";
  request.name = "a";
  request.new_name = "ä new name";
  Operation operation = TRY(plan_edit_snapshot(host, request));
  return operation.run();
}

Result<void> undefine(Host& host) {
  UndefineDomainRequest request;
  request.domain = "vm";
  request.snapshots = true;
  Operation operation = TRY(plan_undefine_domain(host, request));
  return operation.run();
}

Result<void> repair(Host& host) {
  RepairDomain repair = TRY(plan_repair_domain(host, {.domain = "vm", .now_sec = kNow}));
  return repair.operation.run();
}

// One snapshot that nobody knows, one that all images have lost, one file that can't be read.
void tear(const std::string& root) {
  for (int disk = 0; std::filesystem::exists(image_path(root, disk)); ++disk) {
    run_ok({"qemu-img", "snapshot", "-c", "unknown", image_path(root, disk)});
    run_ok({"qemu-img", "snapshot", "-d", "b", image_path(root, disk)});
  }
  std::ofstream(root + "/var/lib/libvirt/qemu/snapshot/vm/broken.xml") << "<domainsnapshot>";
}

// The same contents are looked at once in a process.
std::string look_at_image(const std::string& path) {
  static std::map<std::string, std::string> seen;
  const std::string bytes = read_whole_file(path);
  auto [known, is_new] = seen.try_emplace(bytes);
  if (!is_new) return known->second;
  const auto file = load_file(path);
  const Qcow2Scan scan = scan_qcow2(whole_contents(*file));
  EXPECT_TRUE(scan.clean()) << path << "\n" << scan.describe();
  const auto state = state_of(*file);
  EXPECT_TRUE(state) << state.error().message;
  if (!state) return {};
  std::ostringstream text;
  text << *state;
  const ProcessResult check = run({"qemu-img", "check", "-f", "qcow2", path});
  EXPECT_EQ(check.exit_code, 0) << path << "\n" << check.out << check.err;
  return known->second = text.str();
}

}  // namespace

Result<void> run_on(const std::string& root, const StepHook& step, const Work& work) {
  HostEvents events;
  events.step = step;
  const auto host = DirectoryHost::open_or_create(root, events);
  if (!host) return host.error();
  return work(**host);
}

Work create_domain(const std::string& name, int disks) {
  return [name, disks](Host& host) -> Result<void> {
    CreateDomainRequest request;
    request.name = name;
    for (int i = 0; i < disks; ++i) {
      request.disks.emplace_back();
      request.disks.back().options.size = 4 << 20;
    }
    Operation operation = TRY(plan_create_domain(host, request));
    return operation.run();
  };
}

std::string image_path(const std::string& root, int disk) {
  return root + "/var/lib/libvirt/images/vm" + (disk == 0 ? "" : fmt::format("-{}", disk + 1)) + ".qcow2";
}

void make_domain(const std::string& root, int disks) {
  ASSERT_TRUE(run_on(root, {}, create_domain("vm", disks)));
  int byte = 1;
  for (const char* name : {"a", "b", ""}) {
    for (int disk = 0; disk < disks; ++disk) {
      run_ok({"qemu-io", "-f", "qcow2", "-c", fmt::format("write -P {} 1M 256k", byte++), image_path(root, disk)});
    }
    if (*name == '\0') continue;
    const auto made = run_on(root, {}, create_snapshot(name));
    ASSERT_TRUE(made) << made.error().message;
  }
}

const std::vector<DomainOperation>& domain_operations() {
  static const std::vector<DomainOperation> operations = {
      {"Create", create_snapshot("c")},
      {"RevertWithSafetySnapshot", revert_to("a", true)},
      {"RevertWithout", revert_to("a", false)},
      {"RevertThatPrunesAnEarlierSafetySnapshot", revert_to("b", true),
       [](const std::string& root) { ASSERT_TRUE(run_on(root, {}, revert_to("a", true))); }},
      {"Delete", delete_a},
      {"Rename", rename_a},
      {"UndefineWithSnapshots", undefine},
      {"Repair", repair, tear, 8},  // no disk is prepared
  };
  return operations;
}

std::vector<std::string> look_at(const std::string& root) {
  std::vector<std::string> seen;
  std::set<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.is_regular_file()) files.insert(entry.path());
  }
  for (const auto& path : files) {
    const std::string name = path.lexically_relative(root).string();
    if (name.starts_with("var/lib/varve/lock")) continue;
    seen.push_back(name + "\n" +
                   (path.extension() == ".qcow2" ? look_at_image(path.string()) : read_whole_file(path.string())));
  }
  return seen;
}

}  // namespace varve::test
