#include "guestfs/device_names.h"

#include <gtest/gtest.h>

namespace varve::guestfs {
namespace {

TEST(DeviceNames, DisksAreLetteredInTheirOrder) {
  EXPECT_EQ(appliance_disk(0), "/dev/sda");
  EXPECT_EQ(appliance_disk(25), "/dev/sdz");
  EXPECT_EQ(appliance_disk(26), "/dev/sdaa");
  EXPECT_EQ(appliance_disk(27), "/dev/sdab");
  EXPECT_EQ(appliance_disk(26 + 26 * 26), "/dev/sdaaa");
}

TEST(DeviceNames, PeopleSeeTheTargetsOfTheDefinition) {
  const std::vector<std::string> targets = {"vda", "sda"};
  EXPECT_EQ(name_for_people("/dev/sda1", targets), "vda1");
  EXPECT_EQ(name_for_people("/dev/sda", targets), "vda");
  EXPECT_EQ(name_for_people("/dev/sdb12", targets), "sda12");
  EXPECT_EQ(name_for_people("/dev/vg/root", targets), "vg/root");
  EXPECT_EQ(name_for_people("btrfsvol:/dev/sda2/@home", targets), "btrfsvol:vda2/@home");
}

TEST(DeviceNames, ADiskIsNotTakenForAnotherOneThatBeginsTheSame) {
  std::vector<std::string> targets;
  for (int i = 0; i < 28; ++i) targets.push_back("disk" + std::to_string(i) + "-");
  EXPECT_EQ(name_for_people("/dev/sdab3", targets), "disk27-3");
  EXPECT_EQ(name_for_people("/dev/sda3", targets), "disk0-3");
}

}  // namespace
}  // namespace varve::guestfs
