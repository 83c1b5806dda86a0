// Eight processes at once do what they like to four domains, for ten minutes (VARVE_STRESS_SECONDS: another time). They
// may be refused, never harmed: in the end every document and every image is right.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "crash/domain_operations.h"
#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {
namespace {

using Words = std::vector<std::string>;

TEST(Stress, EightProcessesOnFourDomainsHarmNothing) {
  REQUIRES_PROGRAM("qemu-img");
  const char* wanted = std::getenv("VARVE_STRESS_SECONDS");
  const std::chrono::seconds duration(wanted == nullptr ? 600 : std::atoi(wanted));
  const TempDir dir;
  const std::string root = dir / "host";
  const auto varve = [&](const Words& words) {
    Words all = {VARVE_COMMAND, "-c", "dir:" + root};
    all.insert(all.end(), words.begin(), words.end());
    return run(all);
  };
  const std::vector<std::string> domains = {"one", "two", "three and a half", "vier ä"};
  for (const std::string& domain : domains) {
    const auto made = varve({"vm", "create", domain, "--disk", "64M", "--disk", "64M"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  std::mutex mutex;
  std::map<int, unsigned> exits;
  const auto until = std::chrono::steady_clock::now() + duration;
  const auto work = [&](unsigned seed) {
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t limit) { return random() % limit; };
    while (std::chrono::steady_clock::now() < until) {
      const std::string& domain = domains[below(domains.size())];
      const std::string name = fmt::format("s{}", below(12));
      Words words;
      switch (below(8)) {
        case 0:
        case 1:
        case 2:
          words = {"snapshot", "create", domain, name};
          break;
        case 3:
          words = {"snapshot", "revert", domain, name};
          break;
        case 4:
          words = {"snapshot", "delete", domain, name};
          break;
        case 5:
          words = {"snapshot", "edit", domain, name, "--name", fmt::format("t{}", below(12))};
          break;
        case 6:
          words = {"where", domain};
          break;
        default:
          words = {"verify", domain};
      }
      const ProcessResult result = varve(words);
      // Done; refused for what is there or not there; in use. Never failed, never killed.
      const bool expected = result.exit_code == 0 || (result.exit_code >= 3 && result.exit_code <= 5);
      EXPECT_TRUE(expected) << testing::PrintToString(words) << " " << result.exit_code << "\n" << result.err;
      const std::lock_guard lock(mutex);
      ++exits[result.exit_code];
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 8; ++i) threads.emplace_back(work, i + 1);
  for (std::thread& thread : threads) thread.join();

  const ProcessResult verified = varve({"verify", "--all"});
  EXPECT_EQ(verified.exit_code, 0) << verified.out << verified.err;
  for (const auto& entry : std::filesystem::directory_iterator(root + "/var/lib/libvirt/images")) {
    const ProcessResult check = run({"qemu-img", "check", "-f", "qcow2", entry.path()});
    EXPECT_EQ(check.exit_code, 0) << entry.path() << check.out << check.err;
  }
  for (const auto& [code, count] : exits) std::printf("%u commands ended with %d\n", count, code);
  EXPECT_GT(exits[0], 20u);
}

}  // namespace
}  // namespace varve::test
