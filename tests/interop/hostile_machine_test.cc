// What looks at machines, put before images of the catalogue of hostile ones (tests/corpus/hostile): space, diff,
// where, verify, extract and export of a machine whose disk such an image is. Promised: an answer or an error, in
// bounded time and memory; nothing is changed; nothing of this host is read for it.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "interop/host_directory.h"
#include "support/image_bytes.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using nlohmann::json;

const std::string kImages = VARVE_CORPUS "/hostile/";

TEST(HostileMachine, IsLookedAtWithoutHarm) {
  REQUIRES_PROGRAM("prlimit");
  const json catalogue = json::parse(std::ifstream(kImages + "catalogue.json"), nullptr, false);
  ASSERT_TRUE(catalogue.is_object());
  const HostDirectory host;
  host.make_domain("vm", 1);
  // The names that the catalogue's snapshots have.
  host.varve_ok({"snapshot", "create", "vm", "one"});
  host.varve_ok({"snapshot", "create", "vm", "two"});
  const std::string image = host.image("vm.qcow2");
  const std::string out = host.root() + "/out.raw";
  const std::vector<std::vector<std::string>> commands = {
      {"snapshot", "space", "vm"},
      {"--json", "snapshot", "space", "vm", "--range", "one..two"},
      {"snapshot", "diff", "vm", "one"},
      {"--json", "snapshot", "diff", "vm", "one", "two"},
      {"where", "vm"},
      {"where", "vm", "one"},
      {"verify", "vm"},
      {"snapshot", "extract", "vm", "one", out},
      {"--dry-run", "vm", "export", "vm", host.root() + "/export"},
  };
  size_t seen = 0;
  size_t looked = 0;
  size_t answered = 0;
  for (const json& entry : catalogue["images"]) {
    const std::string name = entry["image"];
    std::filesystem::copy_file(kImages + name, image, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::permissions(image, std::filesystem::perms::owner_all);
    std::filesystem::resize_file(image, entry["size"].get<uint64_t>());
    const std::string before = read_whole_file(image);
    // A sanitized build takes seconds where the other takes none: there every sixth image has its turn.
    if (kSanitized && ++seen % 6 != 1) continue;
    for (const auto& command : commands) {
      std::vector<std::string> words = {"timeout", "60", "prlimit", "--fsize=268435456"};
      if (!kSanitized) words.push_back("--as=1073741824");
      words.insert(words.end(), {VARVE_COMMAND, "-c", "dir:" + host.root()});
      words.insert(words.end(), command.begin(), command.end());
      const ProcessResult result = run(words);
      EXPECT_LE(result.exit_code, 5) << name << ", " << testing::PrintToString(command) << ": " << result.err;
      if (result.exit_code != 0) {
        EXPECT_FALSE(result.err.empty() && result.out.empty()) << name << ", " << testing::PrintToString(command);
      }
      if (result.exit_code == 0) ++answered;
      EXPECT_EQ(result.err.find('\x1b'), std::string::npos) << name;
      const std::string said = result.out + (std::filesystem::exists(out) ? read_whole_file(out) : "");
      EXPECT_EQ(said.find("root:x:0:0"), std::string::npos) << name << ": /etc/passwd is in it";
      std::filesystem::remove(out);
    }
    EXPECT_TRUE(read_whole_file(image) == before) << name << " was changed";
    ++looked;
  }
  EXPECT_GT(looked, kSanitized ? 30u : 200u);
  EXPECT_GT(answered, looked);  // where and verify have something to say of each
}

}  // namespace
}  // namespace varve::test
