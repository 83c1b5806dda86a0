// How many states after a failure a test has looked at: scripts/test adds these lines up.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace varve::test {

inline void report_examined_states(size_t states, const std::string& of) {
  testing::Test::RecordProperty("states", static_cast<int>(states));
  std::printf("states examined: %zu (%s)\n", states, of.c_str());
}

}  // namespace varve::test
