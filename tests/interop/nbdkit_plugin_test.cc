// The nbdkit plugin, with real clients: nbdinfo, nbdcopy, qemu-img, qemu-io.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "interop/nbd_server.h"

namespace varve {
namespace {

using nlohmann::json;
using test::NbdServer;
using test::run;
using test::run_ok;
using testing::HasSubstr;
using testing::Not;

class NbdkitPluginTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"nbdkit", "nbdinfo", "nbdcopy", "qemu-img", "qemu-io"}) REQUIRES_PROGRAM(program);
    run_ok({"qemu-img", "create", "-q", "-f", "qcow2", disk_, "64M"});
    io(disk_, {"write -P 1 0 8M", "write -P 2 60M 4M"});
    run_ok({"qemu-img", "snapshot", "-c", "first", disk_});
    io(disk_, {"write -P 3 4M 8M", "write -z 0 64k", "discard 60M 1M"});
    run_ok({"qemu-img", "snapshot", "-c", "second", disk_});
    io(disk_, {"write -P 4 1M 1M"});
  }

  static void io(const std::string& image, const std::vector<std::string>& commands, const char* format = "qcow2") {
    std::vector<std::string> argv = {"qemu-io", "-f", format};
    if (std::ranges::all_of(commands, [](const std::string& c) { return c.starts_with("read"); }))
      argv.emplace_back("-r");
    for (const std::string& command : commands) argv.insert(argv.end(), {"-c", command});
    argv.push_back(image);
    const std::string out = run_ok(argv);
    EXPECT_THAT(out, Not(HasSubstr("failed"))) << testing::PrintToString(commands);
  }
  static json info(const std::string& uri) { return json::parse(run_ok({"nbdinfo", "--json", uri}))["exports"][0]; }
  // The disk as qemu-img has it.
  std::string expected(const std::string& snapshot = "") const {
    std::vector<std::string> argv = {"qemu-img", "convert", "-f", "qcow2", "-O", "raw"};
    if (!snapshot.empty()) argv.insert(argv.end(), {"-l", "snapshot.name=" + snapshot});
    argv.insert(argv.end(), {disk_, dir_ / "expected.raw"});
    run_ok(argv);
    return test::read_whole_file(dir_ / "expected.raw");
  }
  std::string copied(const std::string& uri) const {
    run_ok({"nbdcopy", uri, dir_ / "copied.raw"});
    return test::read_whole_file(dir_ / "copied.raw");
  }

  test::TempDir dir_;
  std::string disk_ = dir_ / "a disk, 'ü'.qcow2";
};

TEST_F(NbdkitPluginTest, EverySnapshotReadsAsQemuReadsIt) {
  for (const char* snapshot : {"first", "second"}) {
    const NbdServer server({disk_, std::string("snapshot=") + snapshot});
    EXPECT_TRUE(copied(server.uri()) == expected(snapshot)) << snapshot;
    const json seen = info(server.uri());
    EXPECT_EQ(seen["export-size"], 64 << 20);
    EXPECT_EQ(seen["is_read_only"], true);
    EXPECT_EQ(seen["can_multi_conn"], true);
    run_ok({"qemu-img", "convert", "-f", "raw", "-O", "raw", server.uri(), dir_ / "converted.raw"});
    EXPECT_TRUE(test::read_whole_file(dir_ / "converted.raw") == expected(snapshot)) << snapshot;
  }
}

TEST_F(NbdkitPluginTest, HolesAreToldAsHoles) {
  const NbdServer server({disk_, "snapshot=first"});
  const auto map = json::parse(run_ok({"nbdinfo", "--map", "--json", server.uri()}));
  ASSERT_EQ(map.size(), 3u);
  EXPECT_EQ(map[0]["length"], 8 << 20);
  EXPECT_EQ(map[0]["type"], 0);
  EXPECT_EQ(map[1]["length"], 52 << 20);
  EXPECT_EQ(map[1]["type"], 3);
  EXPECT_EQ(map[2]["type"], 0);
}

TEST_F(NbdkitPluginTest, TheActiveStateIsWrittenAsQemuWouldWriteIt) {
  {
    NbdServer server({"file=" + disk_});
    EXPECT_EQ(info(server.uri())["is_read_only"], false);
    io(server.uri(),
       {"read -P 4 1M 1M", "write -P 9 3M 1M", "write -P 10 20000000 12345", "write -z -u 5M 1M", "write -z 6M 100k",
        "discard 61M 1M", "write -P 11 40M 8M", "write -f -P 12 50M 4k", "flush"},
       "raw");
    io(server.uri(),
       {"read -P 9 3M 1M", "read -P 10 20000000 12345", "read -P 0 5M 1M", "read -P 0 6M 100k", "read -P 11 40M 8M",
        "read -P 12 50M 4k"},
       "raw");
    EXPECT_EQ(server.stop(), 0);
  }
  const auto checked = run({"qemu-img", "check", "-f", "qcow2", disk_});
  EXPECT_EQ(checked.exit_code, 0) << checked.out << checked.err;
  io(disk_, {"read -P 9 3M 1M", "read -P 10 20000000 12345", "read -P 0 5M 1M", "read -P 0 6M 100k",
             "read -P 11 40M 8M", "read -P 12 50M 4k", "read -P 4 1M 1M"});
  const NbdServer before({disk_, "snapshot=first"});
  io(before.uri(), {"read -P 1 0 8M", "read -P 0 8M 52M", "read -P 2 60M 4M"}, "raw");
}

// What no client has flushed is in the image all the same once the server has ended in peace.
TEST_F(NbdkitPluginTest, TheEndOfTheServerIsAFlush) {
  NbdServer server({disk_});
  io(server.uri(), {"write -P 77 30M 1M"}, "raw");
  EXPECT_EQ(server.stop(), 0);
  io(disk_, {"read -P 77 30M 1M"});
}

TEST_F(NbdkitPluginTest, AWholeDiskIsCopiedIntoAnExport) {
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", dir_ / "new.qcow2", "64M"});
  {
    NbdServer server({dir_ / "new.qcow2"});
    NbdServer source({disk_, "snapshot=first"});
    run_ok({"nbdcopy", "--flush", source.uri(), server.uri()});
    EXPECT_EQ(server.stop(), 0);
  }
  run_ok({"qemu-img", "convert", "-f", "qcow2", "-O", "raw", dir_ / "new.qcow2", dir_ / "new.raw"});
  EXPECT_TRUE(test::read_whole_file(dir_ / "new.raw") == expected("first"));
  EXPECT_EQ(run({"qemu-img", "check", dir_ / "new.qcow2"}).exit_code, 0);
}

TEST_F(NbdkitPluginTest, BackingFilesAndRawImagesShowThrough) {
  const std::string overlay = dir_ / "overlay.qcow2";
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk_, overlay});
  run_ok({"qemu-img", "snapshot", "-c", "s", overlay});
  io(overlay, {"write -P 8 0 1M"});
  const NbdServer server({"export=now", "file=" + overlay, "export=then", "file=" + overlay, "snapshot=s"}, {"-r"});
  io(server.uri("now"), {"read -P 8 0 1M", "read -P 4 1M 1M"}, "raw");
  io(server.uri("then"), {"read -P 0 0 64k", "read -P 1 64k 960k", "read -P 4 1M 1M"}, "raw");
  const std::string raw = dir_.write("disk.raw", std::string(1 << 20, 'r'));
  const NbdServer raw_server({raw, "format=raw"});
  EXPECT_TRUE(copied(raw_server.uri()) == std::string(1 << 20, 'r'));
}

TEST_F(NbdkitPluginTest, SeveralDisksAreExportsWithNames) {
  const std::string other = dir_ / "other.qcow2";
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", other, "32M"});
  io(other, {"write -P 6 0 32M"});
  const NbdServer server(
      {"export=vda", "file=" + disk_, "snapshot=second", "export=vdb", "file=" + other, "overlay=" + dir_.path()});
  const auto list = json::parse(run_ok({"nbdinfo", "--json", "--list", server.uri()}))["exports"];
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["export-name"], "vda");
  EXPECT_EQ(list[0]["description"], "snapshot second");
  EXPECT_EQ(list[0]["is_read_only"], true);
  EXPECT_EQ(list[1]["export-name"], "vdb");
  EXPECT_EQ(list[1]["is_read_only"], false);
  EXPECT_TRUE(copied(server.uri("vda")) == expected("second"));
  EXPECT_TRUE(copied(server.uri()) == expected("second"));  // who does not say gets the first
  io(server.uri("vdb"), {"write -P 5 0 1M", "read -P 5 0 1M", "read -P 6 1M 31M"}, "raw");
  EXPECT_NE(run({"nbdinfo", server.uri("vdc")}).exit_code, 0);
}

TEST_F(NbdkitPluginTest, ManyClientsReadAtOnce) {
  const NbdServer server({disk_, "snapshot=first"});
  const std::string right = expected("first");
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) {
    clients.emplace_back([&, i] {
      const std::string copy = dir_ / fmt::format("copy-{}.raw", i);
      run_ok({"nbdcopy", "--connections=4", "--requests=16", "--request-size=65536", server.uri(), copy});
      EXPECT_TRUE(test::read_whole_file(copy) == right);
    });
  }
  for (std::thread& client : clients) client.join();
}

TEST_F(NbdkitPluginTest, QemuCanNotHaveWhatIsServedForWriting) {
  {
    const NbdServer reader({disk_, "snapshot=first"});
    EXPECT_NE(run({"qemu-io", "-f", "qcow2", "-c", "write 0 64k", disk_}).exit_code, 0);
    EXPECT_EQ(run({"qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", disk_}).exit_code, 0);
  }
  const NbdServer writer({disk_});
  io(writer.uri(), {"write -P 1 0 64k"}, "raw");
  EXPECT_NE(run({"qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", disk_}).exit_code, 0);
}

TEST_F(NbdkitPluginTest, WhatIsWrongIsSaidAtTheStart) {
  const auto said = [&](std::vector<std::string> parameters) {
    parameters.insert(parameters.begin(), {"nbdkit", "-U", "-", VARVE_NBDKIT_PLUGIN});
    parameters.insert(parameters.end(), {"--run", "true"});
    const auto result = run(parameters);
    EXPECT_NE(result.exit_code, 0);
    return result.err;
  };
  EXPECT_THAT(said({disk_, "snapshot=third"}), HasSubstr("holds no snapshot 'third'; it holds first, second"));
  EXPECT_THAT(said({dir_ / "missing"}), HasSubstr("No such file"));
  EXPECT_THAT(said({disk_, "format=vdi"}), HasSubstr("it is qcow2 or raw"));
  EXPECT_THAT(said({dir_.write("text", std::string(70000, 'x'))}), HasSubstr("is not a qcow2 image"));
  EXPECT_THAT(said({}), HasSubstr("nothing is to be served"));
}

}  // namespace
}  // namespace varve
