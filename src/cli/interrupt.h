// Ctrl-C during long work: the work is asked to stop where it can be stopped, instead of the process being ended.
#pragma once

namespace varve::cli {

// While one of these lives, SIGINT, SIGTERM and SIGHUP are noted instead of ending the process; a second one ends it.
// What the process ignores (nohup, a job of a shell in the background) it goes on ignoring. One at a time.
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
