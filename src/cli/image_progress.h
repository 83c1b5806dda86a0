// The progress of `varve image …`, on standard output as qemu-img prints it, wherever that goes.
#pragma once

#include <cstdint>

#include "cli/output.h"

namespace varve::cli {

class ImageProgress {
 public:
  ImageProgress(Output& output, bool wanted);
  ~ImageProgress();
  ImageProgress(const ImageProgress&) = delete;
  ImageProgress& operator=(const ImageProgress&) = delete;

  void update(uint64_t done, uint64_t total);
  void finish() { show(100); }
  // Ends the line; nothing is shown after it.
  void end();

 private:
  void show(double percent);

  Output& output_;
  bool wanted_;
  double shown_ = 0;
};

}  // namespace varve::cli
