#include "host/choose_host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>

#include "base/unique_fd.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using testing::HasSubstr;

// Listens where a libvirtd would, below this run directory.
UniqueFd listen_as(const std::string& run_directory, const char* name) {
  std::filesystem::create_directories(run_directory + "/libvirt");
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = run_directory + "/libvirt/" + name;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  EXPECT_EQ(::listen(fd.get(), 1), 0);
  return fd;
}

class ChooseHostTest : public testing::Test {
 protected:
  ChooseHostTest() {
    query_.data_home = "/home/u/.local/share";
    query_.runtime_directory = dir_ / "user";
    query_.system_run = dir_ / "system";
  }
  test::TempDir dir_;
  HostQuery query_;
};

TEST_F(ChooseHostTest, TheOptionComesBeforeTheEnvironment) {
  query_.option = "dir:/srv/vm/";
  query_.environment = "dir:/other";
  const auto choice = choose_host(query_);
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, HostKind::kDirectory);
  EXPECT_EQ(choice->root, "/srv/vm");
  EXPECT_THAT(choice->reason, HasSubstr("-c"));
}

TEST_F(ChooseHostTest, TheEnvironmentComesBeforeALibvirtdThatAnswers) {
  const UniqueFd libvirtd = listen_as(query_.runtime_directory, "libvirt-sock");
  query_.environment = "dir:/other";
  EXPECT_EQ(choose_host(query_)->root, "/other");
}

TEST_F(ChooseHostTest, ALibvirtdThatAnswersComesBeforeADirectory) {
  const UniqueFd libvirtd = listen_as(query_.runtime_directory, "virtqemud-sock");
  auto choice = choose_host(query_);
  ASSERT_TRUE(choice);
  EXPECT_EQ(choice->kind, HostKind::kLibvirt);
  EXPECT_EQ(choice->uri, "qemu:///session");
  EXPECT_THAT(choice->reason, HasSubstr("virtqemud-sock"));

  query_.is_root = true;  // root's is another one, and none answers
  EXPECT_EQ(choose_host(query_)->uri, "dir:/");
  const UniqueFd system = listen_as(query_.system_run, "libvirt-sock");
  EXPECT_EQ(choose_host(query_)->uri, "qemu:///system");
}

TEST_F(ChooseHostTest, ASocketThatNobodyListensOnIsNoLibvirtd) {
  {
    const UniqueFd gone = listen_as(query_.runtime_directory, "libvirt-sock");
  }
  EXPECT_EQ(choose_host(query_)->uri, "dir:/home/u/.local/share/varve");
}

TEST_F(ChooseHostTest, WithoutAHomeTheUserHasToSay) {
  query_.data_home = "";
  const auto choice = choose_host(query_);
  ASSERT_FALSE(choice);
  EXPECT_THAT(choice.error().notes, testing::Contains(HasSubstr("-c dir:ROOT")));
}

TEST_F(ChooseHostTest, WhatIsNoHostIsRefused) {
  for (const char* uri : {"", "dir:", "/srv/vm", "http://example.org", "qemu:/system"}) {
    query_.option = uri;
    const auto choice = choose_host(query_);
    ASSERT_FALSE(choice) << uri;
    EXPECT_EQ(choice.error().kind, ErrorKind::kInvalidArgument) << uri;
  }
}

TEST_F(ChooseHostTest, WhatLibvirtTakesIsALibvirtHost) {
  for (const char* uri : {"qemu:///system", "qemu:///session", "qemu+ssh://root@example.org/system", "test:///default",
                          "qemu:///system?socket=/run/other", "qemu+unix:///system", "xen:///system"}) {
    query_.option = uri;
    const auto choice = choose_host(query_);
    ASSERT_TRUE(choice) << uri;
    EXPECT_EQ(choice->kind, HostKind::kLibvirt) << uri;
    EXPECT_EQ(choice->uri, uri);
  }
}

TEST_F(ChooseHostTest, TheRootOfTheSystemStaysASlash) {
  query_.option = "dir:/";
  EXPECT_EQ(choose_host(query_)->root, "/");
}

}  // namespace
}  // namespace varve
