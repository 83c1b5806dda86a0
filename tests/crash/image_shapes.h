// Small qcow2 images of every shape that snapshot changes must cope with, most of them made by QEMU's own programs.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/memory_device.h"
#include "support/qcow2_scan.h"
#include "support/temp_dir.h"

namespace varve::test {

struct ImageShape {
  std::string name;
  bool needs_qemu = true;
  std::function<std::shared_ptr<MemoryDevice>(const TempDir&)> make;
  // That the image is what its name says.
  std::function<bool(const Qcow2Scan&)> is_right = [](const Qcow2Scan&) { return true; };
  bool can_create = true;  // refcounts are wide enough for one snapshot more
};

const std::vector<ImageShape>& image_shapes();
const ImageShape& image_shape(const std::string& name);

}  // namespace varve::test
