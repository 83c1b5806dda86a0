// Ctrl-C during long work: the work is asked to stop where it can be stopped, instead of the process being ended.
#pragma once

namespace varve::cli {

// While one of these lives, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process; a second one ends it.
class InterruptWatch {
 public:
  InterruptWatch();
  ~InterruptWatch();
  InterruptWatch(const InterruptWatch&) = delete;
  InterruptWatch& operator=(const InterruptWatch&) = delete;
};

// Whether one came.
bool interrupted();

}  // namespace varve::cli
