#include "cli/image_progress.h"

#include <fmt/format.h>

#include <algorithm>

namespace varve::cli {

ImageProgress::ImageProgress(Output& output, bool wanted) : output_(output), wanted_(wanted) {
  show(0);
}

ImageProgress::~ImageProgress() {
  end();
}

void ImageProgress::end() {
  if (wanted_) output_.print("\n");
  wanted_ = false;
}

void ImageProgress::update(uint64_t done, uint64_t total) {
  if (total == 0) return;
  const double percent = 100.0 * static_cast<double>(done) / static_cast<double>(total);
  if (percent - shown_ >= 1.0) show(percent);
}

void ImageProgress::show(double percent) {
  shown_ = percent;
  if (!wanted_) return;
  output_.print(fmt::format("    ({:.2f}/100%)\r", percent));
  std::fflush(output_.out());
}

}  // namespace varve::cli
