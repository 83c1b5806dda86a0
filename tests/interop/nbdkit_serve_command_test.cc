// `varve snapshot serve`, with real clients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <filesystem>
#include <fstream>

#include "interop/host_directory.h"

namespace varve {
namespace {

using nlohmann::json;
using test::BackgroundProcess;
using test::run;
using test::run_ok;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class NbdkitServeCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"nbdkit", "nbdinfo", "qemu-img", "qemu-io"}) REQUIRES_PROGRAM(program);
    host_.make_domain(kDomain);
    host_.fill(kImage, 1);
    host_.fill(kSecondImage, 2);
    host_.varve_ok({"snapshot", "create", kDomain, kSnapshot});
    host_.fill(kImage, 3);
    host_.fill(kSecondImage, 4);
  }

  // `varve snapshot serve …` that runs, and what it said.
  struct Serving {
    std::unique_ptr<BackgroundProcess> process;
    json said;
    std::string uri(size_t disk) const { return said["exports"][disk]["uri"]; }
    int stop(int signal = SIGTERM) const {
      ::kill(process->pid(), signal);
      return process->close_and_wait();
    }
  };
  Serving serve(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> argv = {VARVE_COMMAND, "-c",     "dir:" + host_.root(), "--json", "snapshot", "serve",
                                     kDomain,       kSnapshot};
    argv.insert(argv.end(), more.begin(), more.end());
    Serving serving{std::make_unique<BackgroundProcess>(argv, with("TMPDIR")), {}};
    EXPECT_TRUE(serving.process->wait_for("\n}\n")) << serving.process->output();
    serving.said = json::parse(serving.process->output(), nullptr, false);
    EXPECT_FALSE(serving.said.is_discarded()) << serving.process->output();
    return serving;
  }
  // The test's own directory, in the place of what the environment says.
  test::RunOptions with(const char* variable) const {
    test::RunOptions options;
    options.environment = {{variable, temp_.path()}};
    return options;
  }
  static bool holds(const std::string& uri, int byte) {
    const auto result = run({"qemu-io", "-r", "-f", "raw", "-c", "read -P " + std::to_string(byte) + " 0 8M", uri});
    return result.exit_code == 0 && result.out.find("failed") == std::string::npos;
  }
  bool left_something() const { return !std::filesystem::is_empty(temp_.path()); }

  static constexpr const char* kDomain = "büro, 'pc'";
  static constexpr const char* kImage = "büro, 'pc'.qcow2";
  static constexpr const char* kSecondImage = "büro, 'pc'-2.qcow2";
  static constexpr const char* kSnapshot = "vor dem \"Umzug\", a=b & 100%";
  test::HostDirectory host_;
  test::TempDir temp_;
};

TEST_F(NbdkitServeCommandTest, EveryDiskIsAnExport) {
  const auto before = host_.contents();
  const Serving serving = serve();
  ASSERT_EQ(serving.said["exports"].size(), 2u);
  EXPECT_EQ(serving.said["exports"][0]["disk"], "vda");
  EXPECT_EQ(serving.said["exports"][1]["disk"], "vdb");
  EXPECT_EQ(serving.said["exports"][0]["size"], 64 << 20);
  EXPECT_EQ(serving.said["exports"][0]["in_use"], false);
  EXPECT_EQ(serving.said["snapshot"], kSnapshot);
  EXPECT_TRUE(holds(serving.uri(0), 1));
  EXPECT_TRUE(holds(serving.uri(1), 2));
  const json info = json::parse(run_ok({"nbdinfo", "--json", serving.uri(0)}))["exports"][0];
  EXPECT_EQ(info["is_read_only"], true);
  EXPECT_TRUE(left_something());
  EXPECT_EQ(serving.stop(SIGINT), 0);
  EXPECT_FALSE(left_something());
  EXPECT_EQ(host_.contents(), before);
  EXPECT_NE(run({"nbdinfo", serving.uri(0)}).exit_code, 0);
}

TEST_F(NbdkitServeCommandTest, OneDiskOnASocketOfTheUsers) {
  const std::string socket = temp_ / "ein Socket, ü";
  const Serving serving = serve({"--disk", "vdb", "--socket", socket});
  ASSERT_EQ(serving.said["exports"].size(), 1u);
  EXPECT_EQ(serving.said["socket"], socket);
  EXPECT_TRUE(holds(serving.uri(0), 2));
  const auto second = host_.varve({"snapshot", "serve", kDomain, kSnapshot, "--socket", socket});
  EXPECT_EQ(second.exit_code, 3);
  EXPECT_THAT(second.err, HasSubstr("is there already"));
  EXPECT_TRUE(holds(serving.uri(0), 2));
  EXPECT_EQ(serving.stop(), 0);
  EXPECT_FALSE(left_something());
}

// A socket that has a port of this machine, which the system chose.
UniqueFd take_port(std::string& port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::listen(fd.get(), 1), 0);
  EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  port = std::to_string(ntohs(address.sin_port));
  return fd;
}

TEST_F(NbdkitServeCommandTest, OnAPort) {
  std::string port;
  {
    const UniqueFd other = take_port(port);
    const auto taken = host_.varve({"snapshot", "serve", kDomain, kSnapshot, "--port", port, "--address", "127.0.0.1"});
    EXPECT_EQ(taken.exit_code, 5);
    EXPECT_THAT(taken.err, AllOf(HasSubstr("port " + port + " of 127.0.0.1 is taken"), HasSubstr("--port")));
  }
  const Serving serving = serve({"--port", port, "--address", "127.0.0.1"});
  EXPECT_EQ(serving.uri(1), "nbd://127.0.0.1:" + port + "/vdb");
  EXPECT_EQ(serving.said["port"], std::stoi(port));
  EXPECT_TRUE(holds(serving.uri(1), 2));
  EXPECT_EQ(serving.stop(), 0);
}

TEST_F(NbdkitServeCommandTest, ADryRunServesNothing) {
  EXPECT_THAT(host_.varve_ok({"--dry-run", "snapshot", "serve", kDomain, kSnapshot}),
              AllOf(HasSubstr("Would serve"), HasSubstr("disk vda, 64 MiB")));
}

// A client that does not let go does not keep the command from ending.
TEST_F(NbdkitServeCommandTest, AClientThatStaysIsLeft) {
  const Serving serving = serve();
  BackgroundProcess client({"qemu-io", "-r", "-f", "raw", serving.uri(0)});
  client.write("read -P 1 0 64k\n");
  ASSERT_TRUE(client.wait_for("read 65536"));
  EXPECT_EQ(serving.stop(), 0);
  EXPECT_FALSE(left_something());
}

TEST_F(NbdkitServeCommandTest, WhatClientsWriteIsThrownAway) {
  const auto before = host_.contents();
  {
    const Serving serving = serve({"--rw-overlay"});
    EXPECT_EQ(serving.said["writable"], true);
    run_ok({"qemu-io", "-f", "raw", "-c", "write -P 9 0 8M", "-c", "flush", serving.uri(0)});
    EXPECT_TRUE(holds(serving.uri(0), 9));
    EXPECT_TRUE(holds(serving.uri(1), 2));  // the other disk has its own
    run_ok({"qemu-io", "-f", "raw", "-c", "write -P 8 0 8M", serving.uri(1)});
    EXPECT_TRUE(holds(serving.uri(0), 9));
    EXPECT_EQ(serving.stop(), 0);
  }
  EXPECT_FALSE(left_something());
  EXPECT_EQ(host_.contents(), before);
  EXPECT_TRUE(holds(serve().uri(0), 1));
}

// A boot sector that says its name on the serial port.
std::string boot_sector(const std::string& name) {
  // xor ax,ax; mov ds,ax; mov si,text; next: lodsb; test al,al; jz end; mov dx,0x3f8; out dx,al; jmp next;
  // end: hlt; jmp end; text:
  std::string code =
      "\x31\xc0\x8e\xd8\xbe\x15\x7c\xac\x84\xc0\x74\x06\xba\xf8\x03\xee\xeb\xf5\xf4\xeb\xfd" + name + "\n";
  code.resize(510);
  return code + "\x55\xaa";
}

TEST_F(NbdkitServeCommandTest, AMachineBootsFromTheExport) {
  REQUIRES_PROGRAM("qemu-system-x86_64");
  const auto put = [&](const std::string& name) {
    const std::string file = temp_ / "sector";
    std::ofstream(file, std::ios::binary) << boot_sector(name);
    run_ok({"qemu-io", "-f", "qcow2", "-c", "write -q -s " + file + " 0 512", host_.image(kImage)});
    std::filesystem::remove(file);
  };
  put("the old system");
  host_.varve_ok({"snapshot", "create", kDomain, "bootable"});
  put("the new system");
  host_.varve_ok({"snapshot", "delete", kDomain, kSnapshot});
  host_.varve_ok({"snapshot", "edit", kDomain, "bootable", "--name", kSnapshot});
  const Serving serving = serve({"--rw-overlay", "--disk", "vda"});
  BackgroundProcess machine({"qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none",
                             "-serial", "stdio", "-drive", "if=ide,format=raw,file=" + serving.uri(0)});
  EXPECT_TRUE(machine.wait_for("the old system", std::chrono::minutes(2))) << machine.output();
  machine.kill();
  EXPECT_EQ(serving.stop(), 0);
}

// As an external snapshot leaves it: the image of before, frozen below an overlay that the machine has now.
TEST_F(NbdkitServeCommandTest, AFrozenBackingFileIsServedToo) {
  run_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", kImage, host_.image("overlay.qcow2")});
  host_.fill("overlay.qcow2", 7);
  const std::string path = host_.metadata(kDomain, kSnapshot);
  std::string metadata = test::read_whole_file(path);
  const std::string inside = "<disk name='vda' snapshot='internal'/>";
  const size_t at = metadata.find(inside);
  ASSERT_NE(at, std::string::npos) << metadata;
  metadata.replace(at, inside.size(),
                   "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='" +
                       std::string("/var/lib/libvirt/images/overlay.qcow2") + "'/></disk>");
  std::ofstream(path) << metadata;
  BackgroundProcess machine({"qemu-io", "-f", "qcow2", host_.image("overlay.qcow2")});
  machine.write("write -P 8 0 8M\n");
  ASSERT_TRUE(machine.wait_for("wrote 8388608"));
  const Serving serving = serve({"--disk", "vda"});
  EXPECT_TRUE(holds(serving.uri(0), 3));  // what the image held when it was frozen
  EXPECT_EQ(serving.said["exports"][0]["in_use"], false);
}

TEST_F(NbdkitServeCommandTest, AnImageThatIsInUseIsServedAllTheSame) {
  BackgroundProcess user({"qemu-io", "-f", "qcow2", host_.image(kImage)});
  user.write("write -P 5 0 8M\n");
  ASSERT_TRUE(user.wait_for("wrote 8388608"));
  const Serving serving = serve();
  EXPECT_EQ(serving.said["exports"][0]["in_use"], true);
  EXPECT_EQ(serving.said["exports"][1]["in_use"], false);
  EXPECT_TRUE(holds(serving.uri(0), 1));
  user.write("write -P 6 0 8M\n");
  ASSERT_TRUE(user.wait_for("wrote 8388608"));
  EXPECT_TRUE(holds(serving.uri(0), 1));
}

TEST_F(NbdkitServeCommandTest, FurtherOptionsReachNbdkit) {
  const auto refused = host_.varve(
      {"snapshot", "serve", kDomain, kSnapshot, "--", "--tls=require", "--tls-certificates=" + (temp_ / "none")});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("could not load TLS certificates"), HasSubstr("nbdkit does not start")));
  const Serving serving = serve({"--", "--filter=truncate", "truncate=1M"});
  EXPECT_EQ(run_ok({"nbdinfo", "--size", serving.uri(0)}), "1048576\n");
}

TEST_F(NbdkitServeCommandTest, WithTlsNobodyComesWithoutTheKey) {
  test::TempDir keys;
  const std::string ours = keys.write("keys", "alice:0123456789abcdef0123456789abcdef\n");
  const std::string others = keys.write("others", "alice:00000000000000000000000000000000\n");
  const Serving serving = serve({"--", "--tls=require", "--tls-psk=" + ours});
  const std::string uri = serving.uri(0);
  ASSERT_TRUE(uri.starts_with("nbds+unix:///vda?")) << uri;
  const std::string as_alice = "nbds+unix://alice@" + uri.substr(std::string("nbds+unix://").size());
  EXPECT_EQ(run_ok({"nbdinfo", "--size", as_alice + "&tls-psk-file=" + ours}), "67108864\n");
  EXPECT_NE(run({"nbdinfo", "--size", as_alice + "&tls-psk-file=" + others}).exit_code, 0);
  EXPECT_NE(run({"nbdinfo", "--size", "nbd" + uri.substr(4)}).exit_code, 0);
}

TEST_F(NbdkitServeCommandTest, WhatCanNotBeServedIsSaid) {
  const auto unknown = host_.varve({"snapshot", "serve", kDomain, "nope"});
  EXPECT_EQ(unknown.exit_code, 4);
  EXPECT_THAT(unknown.err, HasSubstr("has no snapshot 'nope'"));
  const auto no_disk = host_.varve({"snapshot", "serve", kDomain, kSnapshot, "--disk", "vdz"});
  EXPECT_EQ(no_disk.exit_code, 4);
  EXPECT_THAT(no_disk.err, AllOf(HasSubstr("had no disk vdz"), HasSubstr("it had vda, vdb")));
  run_ok({"qemu-img", "snapshot", "-d", kSnapshot, host_.image(kSecondImage)});
  const auto gone = host_.varve({"snapshot", "serve", kDomain, kSnapshot});
  EXPECT_EQ(gone.exit_code, 4);
  EXPECT_THAT(gone.err, AllOf(HasSubstr("disk vdb"), HasSubstr("it holds no snapshot"), HasSubstr("varve verify")));
  EXPECT_TRUE(holds(serve({"--disk", "vda"}).uri(0), 1));
  const auto no_nbdkit =
      run({VARVE_COMMAND, "-c", "dir:" + host_.root(), "snapshot", "serve", kDomain, kSnapshot}, with("PATH"));
  EXPECT_EQ(no_nbdkit.exit_code, 1);
  EXPECT_THAT(no_nbdkit.err, HasSubstr("apt-get install nbdkit"));
}

}  // namespace
}  // namespace varve
