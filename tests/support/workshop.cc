#include "support/workshop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {
namespace {

RunOptions in_directory(const std::string& path, const std::string& stdin_text = {}) {
  RunOptions options;
  options.stdin_text = stdin_text;
  options.working_directory = path;
  return options;
}

}  // namespace

std::string Workshop::img(const std::string& words) const {
  Arguments argv = {"qemu-img"};
  std::istringstream in(words);
  for (std::string word; in >> word;) argv.push_back(word);
  return run_ok(argv, in_directory(path_));
}

void Workshop::create(const std::string& options, const std::string& size, const std::string& image) const {
  img("create -q -f qcow2 " + (options.empty() ? "" : "-o " + options + " ") + image + " " + size);
}

void Workshop::io(const Arguments& commands, const std::string& image) const {
  Arguments argv = {"qemu-io", "-f", "qcow2"};
  for (const auto& c : commands) argv.insert(argv.end(), {"-c", c});
  argv.push_back(image);
  run_ok(argv, in_directory(path_));
}

std::string Workshop::machine(const std::string& commands, const Arguments& options) const {
  Arguments argv = {"qemu-system-x86_64",
                    "-accel",
                    "tcg",
                    "-S",
                    "-nodefaults",
                    "-display",
                    "none",
                    "-monitor",
                    "stdio",
                    "-drive",
                    "file=disk,if=none,id=d0,format=qcow2"};
  argv.insert(argv.end(), options.begin(), options.end());
  const std::string out = run_ok(argv, in_directory(path_, commands + "\nquit\n"));
  EXPECT_THAT(out, testing::Not(testing::HasSubstr("Error")));
  return out;
}

std::string Workshop::raw(const std::string& what) const {
  img("convert -O raw " + what + " out.raw");
  return read_whole_file(*this / "out.raw");
}

}  // namespace varve::test
