// Commands that ended in the middle, as in a crash, and what the next one makes of that.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "host/directory_host.h"
#include "interop/host_directory.h"
#include "operation/create_snapshot.h"
#include "operation/undefine_domain.h"

namespace varve {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

Result<Operation> create_half(Host& host) {
  CreateSnapshotRequest request;
  request.domain = "vm";
  request.name = "half";
  request.now_sec = 1'800'000'000;
  return plan_create_snapshot(host, request);
}

Result<Operation> undefine_with_storage(Host& host) {
  UndefineDomainRequest request;
  request.domain = "vm";
  request.snapshots = true;
  request.storage = true;
  return plan_undefine_domain(host, request);
}

class InterruptedCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    host_.fill("vm.qcow2", 1);
    host_.varve_ok({"snapshot", "create", "vm", "base"});
  }

  // Ends before the step that is called so.
  void stop_before(const std::string& step, const std::function<Result<Operation>(Host&)>& plan) const {
    const pid_t child = ::fork();
    if (child == 0) {
      HostEvents events;
      events.step = [&](std::string_view name) {
        if (name == step) ::_exit(42);
      };
      const auto host = DirectoryHost::open(host_.root(), events);
      if (!host) ::_exit(1);
      auto operation = plan(**host);
      if (!operation || !operation->run()) ::_exit(2);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 42) << status;
  }

  // The definition of "vm", put there by another program than varve.
  void define_by_hand(const std::string& definition) const {
    std::filesystem::create_directories(std::filesystem::path(host_.definition("vm")).parent_path());
    scratch_.write("vm.xml", definition);
    std::filesystem::copy_file(scratch_ / "vm.xml", host_.definition("vm"),
                               std::filesystem::copy_options::overwrite_existing);
  }
  std::string definition() const { return test::read_whole_file(host_.definition("vm")); }
  static std::string with_another_uuid(std::string definition) {
    const size_t at = definition.find("<uuid>") + 6;
    return definition.replace(at, definition.find('<', at) - at, "11111111-2222-4333-8444-555555555555");
  }

  test::HostDirectory host_;
  test::TempDir scratch_;
};

TEST_F(InterruptedCommandTest, AnInterruptedCommandIsFinishedByTheNextOneAndSaid) {
  // In the order of the images' paths.
  stop_before("commit disk vda", create_half);
  EXPECT_THAT(host_.points("vm-2.qcow2"), testing::ElementsAre("base", "half"));
  EXPECT_THAT(host_.points("vm.qcow2"), testing::ElementsAre("base"));
  const auto list = host_.varve({"snapshot", "list", "vm"});
  EXPECT_EQ(list.exit_code, 0);
  EXPECT_THAT(list.err, HasSubstr("varve: an interrupted `varve snapshot create 'vm' 'half'` was finished"));
  EXPECT_THAT(list.out, HasSubstr("half"));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    EXPECT_THAT(host_.points(file), testing::ElementsAre("base", "half"));
    host_.expect_clean(file);
  }
  EXPECT_THAT(host_.varve({"snapshot", "list", "vm"}).err, IsEmpty());
}

TEST_F(InterruptedCommandTest, AnInterruptedCommandIsUndoneWhereQemuHasWrittenMeanwhile) {
  stop_before("commit disk vdb", create_half);
  host_.fill("vm-2.qcow2", 9);
  const auto list = host_.varve({"snapshot", "list", "vm"});
  EXPECT_THAT(list.err, AllOf(HasSubstr("was undone, nothing is changed"), HasSubstr("disk vdb")));
  EXPECT_THAT(list.out, Not(HasSubstr("half")));
  EXPECT_TRUE(host_.is_filled("vm-2.qcow2", 9));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
    EXPECT_THAT(host_.points(file), testing::ElementsAre("base"));
    host_.expect_clean(file);
  }
}

TEST_F(InterruptedCommandTest, AnInterruptedCommandWaitsForAnImageInUse) {
  stop_before("commit disk vdb", create_half);
  {
    test::BackgroundProcess user({"qemu-io", "-r", "-f", "qcow2", host_.image("vm-2.qcow2")});
    user.write("read 0 64k\n");
    ASSERT_TRUE(user.wait_for("read 65536"));
    const auto create = host_.varve({"snapshot", "create", "vm", "more"});
    EXPECT_EQ(create.exit_code, 5) << create.err;
    EXPECT_THAT(create.err, HasSubstr("an interrupted `varve snapshot create 'vm' 'half'` can't be finished"));
    // Other domains are not held up, and whoever only looks is told once, and sees what is there.
    host_.varve_ok({"vm", "list"});
    const auto list = host_.varve({"snapshot", "list", "vm"});
    EXPECT_EQ(list.exit_code, 0);
    EXPECT_THAT(list.out, AllOf(HasSubstr("base"), Not(HasSubstr("half"))));
    const std::string said = "an interrupted `varve snapshot create 'vm' 'half'` can't be finished";
    EXPECT_THAT(list.err, HasSubstr(said));
    EXPECT_EQ(list.err.find(said), list.err.rfind(said));
  }
  host_.varve_ok({"snapshot", "create", "vm", "more"});
  EXPECT_THAT(host_.points("vm-2.qcow2"), testing::ElementsAre("base", "half", "more"));
}

// Whoever knows nothing of the journal has undefined the domain and made another one of that name since.
TEST_F(InterruptedCommandTest, AnotherDomainOfThatNameIsLeftAlone) {
  stop_before("remove /etc/libvirt/qemu/vm.xml", undefine_with_storage);
  const std::string successor = with_another_uuid(definition());
  define_by_hand(successor);
  const auto list = host_.varve({"vm", "list"});
  EXPECT_THAT(list.err, AllOf(HasSubstr("'vm' is another domain by now, which is left alone"),
                              HasSubstr("the image /var/lib/libvirt/images/vm.qcow2 was to be removed, and stays")));
  EXPECT_EQ(definition(), successor);
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_THAT(host_.varve({"vm", "list"}).err, IsEmpty());
}

TEST_F(InterruptedCommandTest, AChangeOfAnotherDomainIsGivenUp) {
  stop_before("commit disk vda", create_half);
  define_by_hand(with_another_uuid(definition()));
  // In the order of the images' paths, "vm-2.qcow2" comes first.
  EXPECT_THAT(host_.varve({"snapshot", "list", "vm"}).err,
              AllOf(HasSubstr("is another domain by now"), HasSubstr("vm-2.qcow2) has the change already")));
  for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) host_.expect_clean(file);
  EXPECT_THAT(host_.points("vm.qcow2"), testing::ElementsAre("base"));
  EXPECT_FALSE(std::filesystem::exists(host_.metadata("vm", "half")));
}

// The same domain, defined again out of a copy: its disks are needed again.
TEST_F(InterruptedCommandTest, ImagesThatAreNeededAgainStay) {
  const std::string copy = definition();
  stop_before("remove the image /var/lib/libvirt/images/vm.qcow2", undefine_with_storage);
  define_by_hand(copy);
  const auto list = host_.varve({"vm", "list"});
  EXPECT_THAT(list.err, HasSubstr("the image /var/lib/libvirt/images/vm.qcow2 stays: domain 'vm' needs it now"));
  EXPECT_EQ(definition(), copy);
  EXPECT_TRUE(host_.is_filled("vm.qcow2", 1));
  EXPECT_TRUE(std::filesystem::exists(host_.image("vm-2.qcow2")));
}

TEST_F(InterruptedCommandTest, ImagesThatNobodyNeedsGo) {
  const std::string copy = definition();
  stop_before("remove the image /var/lib/libvirt/images/vm-2.qcow2", undefine_with_storage);
  std::string one_disk = with_another_uuid(copy);
  for (size_t at = 0; (at = one_disk.find("vm-2.qcow2", at)) != std::string::npos; ++at) {
    one_disk.replace(at, 10, "other.img2");
  }
  define_by_hand(one_disk);
  EXPECT_THAT(host_.varve({"vm", "list"}).err, HasSubstr("was finished"));
  EXPECT_EQ(definition(), one_disk);
  EXPECT_FALSE(std::filesystem::exists(host_.image("vm-2.qcow2")));
}

}  // namespace
}  // namespace varve
