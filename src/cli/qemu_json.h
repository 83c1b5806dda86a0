// JSON as qemu-img prints it, to the byte: four blanks, a line for every member and for the end of an empty list, and
// only ASCII.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace varve::cli {

// Strings may hold anything; what is not UTF-8 becomes U+FFFD. Ends with a newline.
std::string qemu_json(const nlohmann::ordered_json& value);

// A string alone, in quotes.
std::string qemu_json_string(std::string_view text);

}  // namespace varve::cli
