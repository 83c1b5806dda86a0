// Called before each step of an operation that leaves something on disk, with a name for it. Tests end the process
// there, at every step in turn, and so see each state that a crash can leave behind.
#pragma once

#include <functional>
#include <string_view>

namespace varve {

using StepHook = std::function<void(std::string_view step)>;

}  // namespace varve
