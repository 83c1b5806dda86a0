// An incremental export whose process ends before every step: there is a whole one, or none that anybody would take for
// one; and the same command, given again, makes it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "crash/domain_operations.h"
#include "crash/examined_states.h"
#include "host/directory_host.h"
#include "support/process.h"
#include "support/temp_dir.h"
#include "transfer/export_directory.h"
#include "transfer/incremental_export.h"
#include "transfer/incremental_import.h"
#include "transfer/transfer.h"
#include "transfer/transfer_state.h"

namespace varve::test {
namespace {

namespace fs = std::filesystem;

constexpr int kStopped = 42;

class IncrementalExportCrashTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    make_domain(host(), 2);
    for (const auto& entry : fs::directory_iterator(host() + "/var/lib/libvirt/qemu/snapshot/vm")) {
      snapshot_ = entry.path().stem();
    }
    run_ok({VARVE_COMMAND, "-c", "dir:" + host(), "vm", "export", "vm", dir_ / "full"});
    run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 0x77 0 2M", image_path(host(), 0)});
  }
  std::string host() const { return dir_ / "host"; }
  std::string target() const { return dir_ / "increment"; }

  // The exit code of a process that does it.
  static int in_child(const std::function<Result<void>()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      const auto done = work();
      if (!done) std::fprintf(stderr, "%s\n", done.error().message.c_str());
      ::_exit(done ? 0 : 1);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    return WEXITSTATUS(status);
  }
  // Ends before step `step`, where it gets that far.
  int export_in_child(int step = -1) const {
    return in_child([&] { return export_here(step); });
  }
  // As the command does it.
  Result<void> import_here(const std::string& to, int step) const {
    int seen = 0;
    const auto next = [&] {
      if (seen++ == step) ::_exit(kStopped);
    };
    HostEvents events;
    events.step = [&](std::string_view) { next(); };
    const auto host = TRY(DirectoryHost::open_or_create(to, events));
    const ExportChain chain = TRY(ExportChain::open(TRY(Layout::open(target())), "vm"));
    const std::string images = TRY(host->layout().make_directories(host->images_directory()));
    const bool is_done = TRY(is_imported(*host, chain));
    if (!is_done) TRY(check_import(*host, chain, "", host->images_directory(), TRY(data_bytes(chain))));
    const ImportDirectory directory = TRY(ImportDirectory::open(images, "key"));
    next();
    if (is_done) {
      TRY(directory.remove());
      next();
      return TransferStateFile(host->layout(), "vm").remove();
    }
    TRY(put_together(chain, directory.path(), {}));
    next();
    const auto source = TRY(DirectoryHost::open(directory.path(), {}));
    Transfer transfer = TRY(Transfer::plan(*source, *host,
                                           {.purpose = TransferPurpose::kImport,
                                            .domain = "vm",
                                            .images_directory = "",
                                            .verifies = true,
                                            .takes_files = true,
                                            .command = "vm import",
                                            .manifest = TRY(load_manifest(source->layout(), "vm"))}));
    TRY(transfer.run({}));
    next();
    TRY(directory.remove());
    next();
    return transfer.finish();
  }
  Result<void> export_here(int step, const Watch& watch = {}) const {
    int seen = 0;
    HostEvents events;
    events.step = [&](std::string_view) {
      if (seen++ == step) ::_exit(kStopped);
    };
    const auto from = TRY(DirectoryHost::open(host(), events));
    IncrementalExport exporting = TRY(IncrementalExport::plan(
        *from,
        {.domain = "vm", .directory = target(), .snapshot = snapshot_, .base = dir_ / "full", .verifies = true}));
    TRY(exporting.run(7, watch));
    return {};
  }
  void expect_whole() const {
    fs::remove_all(dir_ / "out");
    fs::create_directory(dir_ / "out");
    const auto chain = ExportChain::open(*Layout::open(target()), "vm");
    ASSERT_TRUE(chain) << chain.error().message;
    ASSERT_TRUE(put_together(*chain, dir_ / "out", {}));
    for (int disk : {0, 1}) run_ok({"cmp", image_path(host(), disk), image_path(dir_ / "out", disk)});
  }

  TempDir dir_{TempDir::kInMemory};
  std::string snapshot_;
};

TEST_F(IncrementalExportCrashTest, IsWholeOrNone) {
  ASSERT_FALSE(snapshot_.empty());
  int step = 0;
  int whole = 0;
  for (bool stopped = true; stopped && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    fs::remove_all(target());
    const int code = export_in_child(step);
    ASSERT_TRUE(code == kStopped || code == 0);
    stopped = code == kStopped;
    count_examined_states();
    if (fs::exists(target() + "/vm.manifest.json")) {
      ++whole;
      expect_whole();
      EXPECT_EQ(export_in_child(), 1);  // it is there already
    } else {
      EXPECT_EQ(export_in_child(), 0);
    }
    expect_whole();
  }
  EXPECT_GE(step, 6);
  EXPECT_GE(whole, 2);
}

TEST_F(IncrementalExportCrashTest, AnImportGoesOnOrComesToItsEnd) {
  ASSERT_EQ(export_in_child(), 0);
  const std::string to = dir_ / "to";
  int step = 0;
  int defined = 0;
  for (bool stopped = true; stopped && !HasFailure(); ++step) {
    SCOPED_TRACE(testing::Message() << "stopped before step " << step);
    fs::remove_all(to);
    const int code = in_child([&] { return import_here(to, step); });
    ASSERT_TRUE(code == kStopped || code == 0) << code;
    stopped = code == kStopped;
    count_examined_states();
    defined += fs::exists(to + "/etc/libvirt/qemu/vm.xml") ? 1 : 0;
    if (stopped) {
      EXPECT_EQ(in_child([&] { return import_here(to, -1); }), 0);
    }
    for (int disk : {0, 1}) run_ok({"cmp", image_path(host(), disk), image_path(to, disk)});
    EXPECT_FALSE(fs::exists(to + "/var/lib/varve/transfer/vm.json"));
    EXPECT_FALSE(fs::exists(to + "/var/lib/libvirt/images/.varve-import-key"));
    EXPECT_EQ(run({VARVE_COMMAND, "-c", "dir:" + to, "verify", "vm"}).exit_code, 0);
  }
  EXPECT_GE(step, 12);
  EXPECT_GE(defined, 3);
}

TEST_F(IncrementalExportCrashTest, StoppedByTheUserItLeavesNothing) {
  int stops = 0;
  for (int allowed = 0; !HasFailure(); ++allowed) {
    SCOPED_TRACE(testing::Message() << "stopped after " << allowed << " questions");
    int asked = 0;
    const auto done = export_here(-1, {.progress = {}, .cancelled = [&] { return asked++ == allowed; }});
    count_examined_states();
    if (done) break;
    ++stops;
    EXPECT_EQ(done.error().kind, ErrorKind::kInterrupted);
    EXPECT_FALSE(fs::exists(target()));
  }
  EXPECT_GE(stops, 3);
  expect_whole();
}

}  // namespace
}  // namespace varve::test
