// A libvirtd of an ordinary user's own (qemu:///session), whose files are in that user's directories.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "support/libvirtd.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using testing::HasSubstr;

constexpr unsigned kUser = 65534;

class LibvirtSessionTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_LIBVIRTD();
    REQUIRES_PROGRAM("setpriv");
    REQUIRES_PROGRAM("qemu-img");
    // The command may lie where only root gets to.
    std::filesystem::copy_file(VARVE_COMMAND, home_ / "varve");
    for (const char* name : {"config", "data", "state", "cache", "run"}) {
      std::filesystem::create_directory(home_ / name);
      std::filesystem::permissions(home_ / name, std::filesystem::perms::owner_all);
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(home_.path())) {
      ASSERT_EQ(::chown(entry.path().c_str(), kUser, kUser), 0);
    }
    ASSERT_EQ(::chown(home_.path().c_str(), kUser, kUser), 0);
    // Ends with the test, as Libvirtd does (support/libvirtd.cc), and like that one sees a /dev/kvm that it can open.
    constexpr const char* kScript = R"(
mount --make-rprivate /
if [ -e /dev/kvm ]; then
  mkdir "$1/dev" && mount -t tmpfs -o mode=755 tmpfs "$1/dev"
  if mknod -m 666 "$1/dev/kvm" c 10 232; then mount --bind "$1/dev/kvm" /dev/kvm; fi
fi
shift
exec 3<&0
"$@" </dev/null &
(read -r line <&3 || true) &
wait $!
)";
    std::vector<std::string> command = {"unshare", "--mount", "--pid", "--fork",  "--kill-child", "--mount-proc",
                                        "sh",      "-c",      kScript, "session", home_.path()};
    for (std::string& word : as_user({"libvirtd"})) command.push_back(std::move(word));
    libvirtd_ = std::make_unique<test::BackgroundProcess>(command);
    // Not before it is there: a client that finds none starts one of its own.
    for (int tries = 0; tries < 300 && !std::filesystem::exists(home_ / "run/libvirt/libvirt-sock"); ++tries) {
      ::usleep(100'000);
    }
  }
  std::vector<std::string> as_user(const std::vector<std::string>& command) const {
    const std::string id = std::to_string(kUser);
    std::vector<std::string> words = {"setpriv",        "--reuid=" + id, "--regid=" + id,
                                      "--clear-groups", "env",           "HOME=" + home_.path()};
    for (const auto& [name, directory] : {std::pair{"CONFIG_HOME", "config"},
                                          {"DATA_HOME", "data"},
                                          {"STATE_HOME", "state"},
                                          {"CACHE_HOME", "cache"},
                                          {"RUNTIME_DIR", "run"}}) {
      words.push_back(fmt::format("XDG_{}={}", name, home_ / directory));
    }
    words.insert(words.end(), command.begin(), command.end());
    return words;
  }
  test::ProcessResult run(const std::vector<std::string>& command) const { return test::run(as_user(command)); }
  std::string varve(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), home_ / "varve");
    const test::ProcessResult result = run(arguments);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << result.out << result.err;
    return result.out;
  }

  test::TempDir home_;
  std::unique_ptr<test::BackgroundProcess> libvirtd_;
};

TEST_F(LibvirtSessionTest, ItIsTheHostThatIsChosenAndItsFilesAreFound) {
  EXPECT_THAT(varve({"host"}), HasSubstr("qemu:///session"));
  const std::string image = home_ / "data/disk.qcow2";
  varve({"vm", "create", "mine", "--type", "qemu", "--disk", "16M,path=" + image});
  varve({"snapshot", "create", "mine", "first"});
  EXPECT_THAT(run({"virsh", "-c", "qemu:///session", "snapshot-list", "mine"}).out, HasSubstr("first"));
  const std::string where = varve({"where", "mine", "first"});
  EXPECT_THAT(where, HasSubstr(home_ / "config/libvirt/qemu/snapshot/mine/first.xml"));
  EXPECT_EQ(where.find("MISSING"), std::string::npos) << where;
  EXPECT_THAT(varve({"verify"}), HasSubstr("all is well"));
  varve({"snapshot", "revert", "mine", "first"});
  varve({"vm", "undefine", "mine", "--snapshots"});
  EXPECT_EQ(run({"virsh", "-c", "qemu:///session", "list", "--all", "--name"}).out, "\n");
  // What Varve keeps of its own is the user's, too.
  EXPECT_TRUE(std::filesystem::exists(home_ / "state/varve"));
}

}  // namespace
}  // namespace varve
