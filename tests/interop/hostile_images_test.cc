// Where qemu-img refuses an image, so do we. Where we refuse and it does not, that is on purpose and written down in
// the catalogue: QEMU never compares the places of tables with the size of the file.
#include <gtest/gtest.h>

#include "io/file_device.h"
#include "support/hostile_headers.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::qcow2 {
namespace {

class HostileHeaderInterop : public testing::TestWithParam<test::HostileHeader> {};

TEST_P(HostileHeaderInterop, QemuAndWeAgree) {
  REQUIRES_PROGRAM("qemu-img");
  const test::TempDir dir;
  const std::string path = dir / "disk.qcow2";
  {
    auto file = FileDevice::create(path, LockRequest::format_writer());
    ASSERT_TRUE(file) << file.error().message;
    ASSERT_TRUE(Image::create(**file, test::kGoodImage));
    ASSERT_TRUE((*file)->flush());
  }
  test::run_ok({"qemu-img", "info", "-f", "qcow2", path});
  {
    auto file = FileDevice::open(path, Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(file) << file.error().message;
    for (const test::Patch& p : GetParam().patches) test::apply(**file, p);
  }
  const auto theirs = test::run({"qemu-img", "info", "-f", "qcow2", path});
  EXPECT_EQ(theirs.exit_code == 0, GetParam().qemu_opens) << theirs.out << theirs.err;
  auto file = FileDevice::open(path, Access::kReadOnly, LockRequest::format_reader());
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_FALSE(Image::open(std::move(*file), {}));
}

INSTANTIATE_TEST_SUITE_P(All, HostileHeaderInterop, testing::ValuesIn(test::hostile_headers()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace varve::qcow2
