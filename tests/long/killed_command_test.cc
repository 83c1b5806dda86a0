// Five hundred commands killed, on three file systems.
#include <gtest/gtest.h>
#include <unistd.h>

#include "crash/killed_commands.h"
#include "support/loop_file_system.h"
#include "support/process.h"

namespace varve::test {
namespace {

class KilledCommandLong : public testing::TestWithParam<KilledCommandFileSystem> {};

TEST_P(KilledCommandLong, IsFinishedOrUndoneByTheNext) {
  REQUIRES_ROOT();
  const LoopFileSystem disk(GetParam().mkfs, GetParam().bytes);
  REQUIRES_MOUNTED(disk);
  kill_commands(disk / "host", 167, 2);
}

INSTANTIATE_TEST_SUITE_P(All, KilledCommandLong, testing::ValuesIn(kKilledCommandFileSystems),
                         [](const auto& instance) { return std::string(instance.param.name); });

}  // namespace
}  // namespace varve::test
