// The command line of `image check`.
#pragma once

#include <optional>
#include <string>

#include "check/tally.h"
#include "cli/image_arguments.h"
#include "cli/image_source.h"
#include "image/open.h"

namespace varve::cli {

struct CheckArguments {
  std::string name;  // as given
  SourceArguments source;
  std::string path;
  std::optional<image::Format> format;
  image::DebugFilters filters;
  check::Repair repair = check::Repair::kNone;
  bool json = false;
  bool quiet = false;
  bool share = false;
  bool deep = false;
  bool progress = true;  // where standard error is a terminal
};

struct ParsedCheck {
  CheckArguments arguments;
  std::optional<ImageExit> ended;  // printed: the caller returns it
};

ParsedCheck parse_check_arguments(const ImageCall& call);

}  // namespace varve::cli
