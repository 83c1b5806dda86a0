#include "support/mounted_file_system.h"

#include <gtest/gtest.h>

#include "support/process.h"

namespace varve::test {

MountedFileSystem::MountedFileSystem(const std::string& type, const std::string& options) {
  const ProcessResult result = run({"mount", "-t", type, "-o", options, type, path()});
  mounted_ = result.exit_code == 0;
  EXPECT_TRUE(mounted_) << result.err;
}

MountedFileSystem::~MountedFileSystem() {
  if (mounted_) run({"umount", path()});
}

}  // namespace varve::test
