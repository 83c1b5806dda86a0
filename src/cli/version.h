// `varve --version`: the version, and which of the parts that a build can leave out are in.
#pragma once

#include <string>

namespace varve::cli {

std::string version_number();  // "0.1.0"
std::string version_text();    // with the parts, two lines

}  // namespace varve::cli
