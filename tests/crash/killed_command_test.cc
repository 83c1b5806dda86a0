// Fifty commands killed, on three file systems; five hundred in tests/long.
#include <gtest/gtest.h>
#include <unistd.h>

#include "crash/killed_commands.h"
#include "support/loop_file_system.h"
#include "support/process.h"

namespace varve::test {
namespace {

class KilledCommand : public testing::TestWithParam<KilledCommandFileSystem> {};

TEST_P(KilledCommand, IsFinishedOrUndoneByTheNext) {
  REQUIRES_ROOT();
  REQUIRES_PROGRAM("qemu-img");
  REQUIRES_PROGRAM("qemu-io");
  const LoopFileSystem disk(GetParam().mkfs, GetParam().bytes);
  REQUIRES_MOUNTED(disk);
  kill_commands(disk / "host", 17, 1);
}

INSTANTIATE_TEST_SUITE_P(All, KilledCommand, testing::ValuesIn(kKilledCommandFileSystems),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace varve::test
