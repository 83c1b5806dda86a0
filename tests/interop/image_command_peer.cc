#include "interop/image_command_peer.h"

#include <unistd.h>

#include <filesystem>
#include <regex>
#include <sstream>

namespace varve::test {

std::vector<std::string> words(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> result;
  for (std::string word; in >> word;) result.push_back(word);
  return result;
}

std::vector<std::string> io(const std::vector<std::string>& commands, const std::string& name) {
  std::vector<std::string> argv = {"qemu-io", "-f", "qcow2"};
  for (const std::string& command : commands) argv.insert(argv.end(), {"-c", command});
  argv.push_back(name);
  return argv;
}

void ImageCommandPeer::SetUp() {
  REQUIRES_PROGRAM("qemu-img");
  REQUIRES_PROGRAM("qemu-io");
  qemu_img_ = find_program("qemu-img");
  our_qemu_img_ = bin_ / "qemu-img";
  ASSERT_EQ(::symlink(VARVE_COMMAND, our_qemu_img_.c_str()), 0);
}

RunOptions ImageCommandPeer::run_options(const std::string& directory) const {
  return {
      .stdin_text = "", .working_directory = directory, .environment = {{"TZ", "America/New_York"}, {"LC_ALL", "C"}}};
}

namespace {

std::string line_of(const std::vector<std::string>& arguments) {
  std::string line;
  for (const std::string& argument : arguments) line += " " + argument;
  return line;
}

}  // namespace

ProcessResult ImageCommandPeer::qemu(const std::vector<std::string>& arguments) const {
  std::vector<std::string> argv = arguments;
  argv.insert(argv.begin(), qemu_img_);
  return run(argv, run_options(their_dir()));
}

ProcessResult ImageCommandPeer::ours(const std::vector<std::string>& arguments) const {
  std::vector<std::string> argv = arguments;
  argv.insert(argv.begin(), our_qemu_img_);
  return run(argv, run_options(our_dir()));
}

ProcessResult ImageCommandPeer::varve(const std::vector<std::string>& arguments) const {
  std::vector<std::string> argv = arguments;
  argv.insert(argv.begin(), VARVE_COMMAND);
  return run(argv, run_options(our_dir()));
}

void ImageCommandPeer::prepare(const std::vector<std::vector<std::string>>& commands) {
  for (const std::vector<std::string>& command : commands) {
    const ProcessResult done = run(command, run_options(their_dir()));
    if (done.exit_code != 0) ADD_FAILURE() << line_of(command) << " ended with " << done.exit_code << "\n" << done.err;
  }
  copy_to_ours();
}

void ImageCommandPeer::put(const std::string& name, const std::string& contents) {
  theirs_.write(name, contents);
  ours_.write(name, contents);
}

void ImageCommandPeer::copy_to_ours() const {
  run_ok({"cp", "-a", their_dir() + "/.", our_dir()});
}

namespace {

// QEMU forgets the newline after some hints.
std::string with_newline(std::string text) {
  if (!text.empty() && text.back() != '\n') text += '\n';
  return text;
}

void expect_equal(const ProcessResult& ours, const ProcessResult& theirs, const std::string& line) {
  EXPECT_EQ(ours.out, theirs.out) << line;
  EXPECT_EQ(ours.err, with_newline(theirs.err)) << line;
  EXPECT_EQ(ours.exit_code, theirs.exit_code) << line;
}

}  // namespace

void ImageCommandPeer::expect_same(const std::vector<std::string>& arguments) const {
  expect_equal(ours(arguments), qemu(arguments), line_of(arguments));
}

void ImageCommandPeer::expect_same_view(const std::vector<std::string>& arguments) const {
  std::vector<std::string> argv = arguments;
  argv.insert(argv.begin(), qemu_img_);
  expect_equal(ours(arguments), run(argv, run_options(our_dir())), line_of(arguments));
}

std::string ImageCommandPeer::properties(const std::string& directory, const std::string& name,
                                         const std::string& format) const {
  const std::string text = run_ok({qemu_img_, "info", "-f", format, "--output=json", name}, run_options(directory));
  return std::regex_replace(text, std::regex("\"(actual-size|date-sec|date-nsec)\": [0-9]+"), "\"$1\": -");
}

void ImageCommandPeer::expect_same_image(const std::string& name, const std::string& format) const {
  EXPECT_EQ(properties(our_dir(), name, format), properties(their_dir(), name, format)) << name;
  run_ok({qemu_img_, "compare", "-s", "-f", format, "-F", format, our_dir() + "/" + name, their_dir() + "/" + name});
  if (format == "qcow2") run_ok({qemu_img_, "check", "-f", format, our_dir() + "/" + name});
}

}  // namespace varve::test
