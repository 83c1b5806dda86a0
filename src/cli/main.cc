#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/command.h"

int main(int argc, char** argv) {
  try {
    return varve::cli::run_command(std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const std::exception& error) {  // memory, mostly; everything else is a Result
    std::fprintf(stderr, "varve: %s\n", error.what());
    return 1;
  }
}
