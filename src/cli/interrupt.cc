#include "cli/interrupt.h"

#include <array>
#include <atomic>
#include <csignal>

namespace varve::cli {

namespace {

constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP};

// What a signal handler may touch; there is one process, and so one of these.
std::atomic<bool> came = false;
std::array<struct sigaction, kSignals.size()> before;

void note(int signal) {
  if (came.exchange(true)) {
    ::signal(signal, SIG_DFL);
    (void)::raise(signal);
  }
}

}  // namespace

InterruptWatch::InterruptWatch() {
  came = false;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &before[i]);
    if (before[i].sa_handler == SIG_IGN) continue;
    struct sigaction action = {};
    action.sa_handler = note;
    action.sa_flags = SA_RESTART;
    ::sigaction(kSignals[i], &action, nullptr);
  }
}

InterruptWatch::~InterruptWatch() {
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &before[i], nullptr);
}

bool interrupted() {
  return came;
}

}  // namespace varve::cli
