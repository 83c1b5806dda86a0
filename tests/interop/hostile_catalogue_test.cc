// The catalogue of hostile images, tests/corpus/hostile: what every command makes of every one of them. Promised for
// all: the exit code and the message of the catalogue; no crash, no hang, bounded memory; who only looks, or refuses,
// changes nothing; who looks at an image opens no file that the image names; strangers' names do not reach a terminal
// as commands. And qemu-img does the same, or the catalogue says why not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "interop/image_command_peer.h"
#include "support/sanitizer.h"

namespace varve::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

const std::string kImages = VARVE_CORPUS "/hostile/";

const json& catalogue() {
  static const json document = json::parse(std::ifstream(kImages + "catalogue.json"), nullptr, false);
  return document;
}

std::vector<json> entries() {
  std::vector<json> all;
  if (!catalogue().is_object()) return all;
  for (const json& entry : catalogue()["images"]) all.push_back(entry);
  return all;
}

// Names of files in a directory that were opened since the last look, by anybody.
class OpenedFiles {
 public:
  explicit OpenedFiles(const std::string& directory) : fd_(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) {
    EXPECT_GE(::inotify_add_watch(fd_.get(), directory.c_str(), IN_OPEN), 0) << std::strerror(errno);
  }
  std::set<std::string> take() const {
    std::set<std::string> names;
    alignas(inotify_event) std::array<char, 1 << 16> buffer;
    for (ssize_t bytes; (bytes = ::read(fd_.get(), buffer.data(), buffer.size())) > 0;) {
      for (const char* at = buffer.data(); at < buffer.data() + bytes;) {
        const auto* event = reinterpret_cast<const inotify_event*>(at);
        if ((event->mask & IN_ISDIR) == 0 && event->len != 0) names.insert(event->name);
        at += sizeof *event + event->len;
      }
    }
    return names;
  }

 private:
  UniqueFd fd_;
};

class HostileCatalogue : public testing::TestWithParam<json> {
 protected:
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("prlimit");
    ASSERT_EQ(::symlink(VARVE_COMMAND, (bin_ / "qemu-img").c_str()), 0);
  }

  // The image, the files that hostile images like to name, and nothing else.
  void prepare() const {
    for (const auto& old : std::filesystem::directory_iterator(dir_.path())) std::filesystem::remove_all(old);
    put_image(GetParam()["image"]);
    for (const json& other : GetParam().value("with", json::array())) put_image(other);
    std::ofstream(dir_ / "secret") << std::string(2048, 's');
    ASSERT_EQ(::mkfifo((dir_ / "fifo").c_str(), 0600), 0);
  }
  void put_image(const std::string& name) const {
    uint64_t size = 0;
    for (const json& entry : catalogue()["images"])
      if (entry["image"] == name) size = entry["size"];
    std::filesystem::copy_file(kImages + name, dir_ / name);
    std::filesystem::permissions(dir_ / name, std::filesystem::perms::owner_all);
    std::filesystem::resize_file(dir_ / name, size);
  }

  std::vector<std::string> arguments(const std::string& command) const {
    std::vector<std::string> argv = words(command);
    const std::string image = GetParam()["image"];
    for (std::string& word : argv)
      if (const size_t at = word.find("IMAGE"); at != std::string::npos) word.replace(at, 5, image);
    return argv;
  }

  ProcessResult run_in_dir(std::vector<std::string> argv, const std::string& command) const {
    const std::vector<std::string> rest = arguments(command);
    argv.insert(argv.end(), rest.begin(), rest.end());
    return run(argv, {.stdin_text = "", .working_directory = dir_.path(), .environment = {{"LC_ALL", "C"}}});
  }
  // A minute, a gigabyte, and files of 256 MiB are more than any of these needs.
  ProcessResult run_ours(const std::vector<std::string>& program, const std::string& command) const {
    std::vector<std::string> argv = {"timeout", "60", "prlimit", "--fsize=268435456"};
    if (!kSanitized) argv.push_back("--as=1073741824");  // sanitizers reserve terabytes
    argv.insert(argv.end(), program.begin(), program.end());
    return run_in_dir(argv, command);
  }
  ProcessResult run_qemus(const std::string& command) const {
    return run_in_dir({"timeout", "60", "prlimit", "--fsize=268435456", find_program("qemu-img")}, command);
  }

  static bool only_looks(const std::string& command) {
    return !command.starts_with("snapshot -c") && !command.starts_with("snapshot -a") &&
           !command.starts_with("snapshot -d") && !command.starts_with("bitmap");
  }
  static bool may_open_others(const std::string& command) {
    if (command.starts_with("info")) return command.find("--backing-chain") != std::string::npos;
    return !command.starts_with("check") && !command.starts_with("snapshot") && !command.starts_with("bitmap");
  }

  void expect_ours(const json& outcome, const std::string& command) const {
    prepare();
    const std::string image = GetParam()["image"];
    const std::string before = read_whole_file(dir_ / image);
    const OpenedFiles opened(dir_.path());
    const ProcessResult result = run_ours({VARVE_COMMAND, "image"}, command);
    std::set<std::string> names = opened.take();
    names.erase(image);
    if (command.starts_with("convert")) names.erase("out");
    std::set<std::string> allowed;
    if (may_open_others(command))
      for (const json& name : GetParam().value("opens", json::array())) allowed.insert(name);
    for (const std::string& name : names) EXPECT_TRUE(allowed.contains(name)) << "it opened " << name;

    EXPECT_EQ(result.exit_code, outcome["exit"].get<int>()) << result.out << result.err;
    EXPECT_THAT(result.err, HasSubstr(outcome.value("says", "")));
    EXPECT_THAT(result.out + result.err, Not(HasSubstr("\x1b")));
    EXPECT_THAT(result.out, Not(HasSubstr("root:x:")));
    if (only_looks(command) || result.exit_code != 0) {
      EXPECT_TRUE(read_whole_file(dir_ / image) == before) << "it changed the image";
    }
  }

  // Ours under QEMU's name, and QEMU's.
  void expect_theirs(const json& outcome, const std::string& command) const {
    const json& theirs = outcome["qemu"];
    if (!theirs.is_number()) return;  // it crashes or hangs
    prepare();
    const ProcessResult ours = run_ours({bin_ / "qemu-img"}, command);
    prepare();
    const ProcessResult qemus = run_qemus(command);
    EXPECT_EQ(ours.exit_code, outcome["exit"].get<int>());
    EXPECT_EQ(qemus.exit_code, theirs.get<int>()) << qemus.out << qemus.err;
    if (outcome["exit"] != theirs) {
      EXPECT_TRUE(catalogue()["reasons"].contains(outcome.value("because", ""))) << "without a reason";
    }
    if (outcome.value("same_words", false)) {
      EXPECT_EQ(ours.err, qemus.err);
      EXPECT_EQ(ours.out, qemus.out);
    }
  }

  TempDir dir_;
  TempDir bin_;
};

TEST_P(HostileCatalogue, IsMetAsWritten) {
  for (const json& outcome : GetParam()["outcomes"]) {
    for (const std::string name : outcome["commands"]) {
      const std::string command = catalogue()["commands"][name];
      SCOPED_TRACE(command);
      ASSERT_NO_FATAL_FAILURE(expect_ours(outcome, command));
      ASSERT_NO_FATAL_FAILURE(expect_theirs(outcome, command));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, HostileCatalogue, testing::ValuesIn(entries()),
                         [](const auto& instance) { return instance.param["image"].template get<std::string>(); });

TEST(HostileCatalogueItself, NamesEveryImageAndNoOther) {
  std::set<std::string> files;
  for (const auto& file : std::filesystem::directory_iterator(kImages)) {
    if (file.path().extension() == ".json") continue;
    files.insert(file.path().filename());
    EXPECT_LE(file.file_size(), 64u << 10) << file.path();
  }
  std::set<std::string> named;
  for (const json& entry : entries()) {
    named.insert(entry["image"]);
    EXPECT_FALSE(entry["wrong"].get<std::string>().empty());
    EXPECT_FALSE(entry["outcomes"].empty());
  }
  EXPECT_EQ(files, named);
  EXPECT_GE(named.size(), 80u);
}

// An image that another program cuts, lengthens and overwrites while it is looked at: any answer will do that comes.
TEST(ChangingImages, AreReadWithoutACrashOrAHang) {
  const TempDir dir;
  const std::string whole = read_whole_file(VARVE_CORPUS "/qcow2/snapshots_v3");
  const std::string path = dir / "image";
  std::ofstream(path, std::ios::binary) << whole;
  std::atomic<bool> done = false;
  std::thread other([&] {
    for (unsigned i = 0; !done; ++i) {
      std::filesystem::resize_file(path, i % 3 == 0 ? whole.size() / 2 : whole.size() * (1 + i % 50));
      std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
      file.seekp(static_cast<std::streamoff>(i * 512 % whole.size()));
      file.write(whole.data() + i * 512 % whole.size(), 512);
    }
  });
  for (int round = 0; round < 10; ++round) {
    for (const char* command : {"info", "check", "map", "convert -O raw", "snapshot -l"}) {
      std::vector<std::string> argv = {"timeout", "60", VARVE_COMMAND, "image"};
      for (const std::string& word : words(command)) argv.push_back(word);
      argv.insert(argv.end(), {"-f", "qcow2", "-U", "image"});
      if (argv[4] == "convert") argv.push_back("out");
      const ProcessResult result = run(argv, {.stdin_text = "", .working_directory = dir.path(), .environment = {}});
      EXPECT_LT(result.exit_code, 124) << command << '\n' << result.err;
    }
  }
  done = true;
  other.join();
}

}  // namespace
}  // namespace varve::test
