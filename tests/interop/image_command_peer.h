// The same command line, given to QEMU's qemu-img and to ours under that name: what they print and return must be
// equal, and so must be the images that they leave behind.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {

// "create -f qcow2 a 1M" as arguments; no quoting.
std::vector<std::string> words(const std::string& line);
// qemu-io with these commands on a qcow2 image.
std::vector<std::string> io(const std::vector<std::string>& commands, const std::string& name);

class ImageCommandPeer : public testing::Test {
 protected:
  void SetUp() override;

  ProcessResult qemu(const std::vector<std::string>& arguments) const;   // in theirs()
  ProcessResult ours(const std::vector<std::string>& arguments) const;   // in ours(), called as qemu-img
  ProcessResult varve(const std::vector<std::string>& arguments) const;  // in ours(), called as varve

  // Directories that the two work in.
  const std::string& their_dir() const { return theirs_.path(); }
  const std::string& our_dir() const { return ours_.path(); }
  // Prepares both directories in the same way: QEMU's program runs, and what it made is copied.
  void prepare(const std::vector<std::vector<std::string>>& commands);
  void put(const std::string& name, const std::string& contents);
  void copy_to_ours() const;

  // Both print and return the same.
  void expect_same(const std::vector<std::string>& arguments) const;
  void expect_same(const std::string& line) const { expect_same(words(line)); }
  // For commands that only look: both look at the very same files (in our_dir), so that sizes on disk are the same.
  void expect_same_view(const std::vector<std::string>& arguments) const;
  // Both images have the same properties, the same contents, and pass QEMU's check.
  void expect_same_image(const std::string& name, const std::string& format) const;
  // What `qemu-img info` says of an image in either directory, without its size on disk.
  std::string properties(const std::string& directory, const std::string& name, const std::string& format) const;

  RunOptions run_options(const std::string& directory) const;

 private:
  std::string qemu_img_;
  std::string our_qemu_img_;
  TempDir bin_;
  TempDir theirs_;
  TempDir ours_;
};

}  // namespace varve::test
