#include "cli/interrupt.h"

#include <array>
#include <atomic>
#include <csignal>

namespace varve::cli {

namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};

// What a signal handler may touch; there is one process, and so one of these.
std::atomic<bool> came = false;

void note(int signal) {
  if (came.exchange(true)) {
    ::signal(signal, SIG_DFL);
    (void)::raise(signal);
  }
}

}  // namespace

InterruptWatch::InterruptWatch() {
  came = false;
  for (const int signal : kSignals) {
    struct sigaction action = {};
    action.sa_handler = note;
    action.sa_flags = SA_RESTART;
    ::sigaction(signal, &action, nullptr);
  }
}

InterruptWatch::~InterruptWatch() {
  for (const int signal : kSignals) ::signal(signal, SIG_DFL);
}

bool interrupted() {
  return came;
}

}  // namespace varve::cli
