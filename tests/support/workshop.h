// A directory with images, and what QEMU's programs do to them there.
#pragma once

#include <string>
#include <vector>

namespace varve::test {

using Arguments = std::vector<std::string>;

// A program that fails is a failure of the running test.
class Workshop {
 public:
  explicit Workshop(std::string path) : path_(std::move(path)) {}

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

  // qemu-img with these words, which blanks separate; what it printed.
  std::string img(const std::string& words) const;
  void create(const std::string& options, const std::string& size, const std::string& image = "disk") const;
  // Commands of qemu-io, one after the other.
  void io(const Arguments& commands, const std::string& image = "disk") const;
  // The commands of a monitor, to a machine that has the image "disk" as its disk.
  std::string machine(const std::string& commands, const Arguments& options) const;
  // The guest's bytes, as qemu-img converts them.
  std::string raw(const std::string& what) const;

 private:
  std::string path_;
};

}  // namespace varve::test
