#include <cstdio>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"

int main(int argc, char** argv) {
  try {
    const std::string_view path = argc > 0 ? argv[0] : "varve";
    const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
    if (path.substr(path.rfind('/') + 1) == "qemu-img") return varve::cli::run_as_qemu_img(arguments);
    return varve::cli::run_command(arguments);
  } catch (const std::exception& error) {  // memory, mostly; everything else is a Result
    std::fprintf(stderr, "varve: %s\n", error.what());
    return 1;
  }
}
