// The value of `vm create --disk`: SIZE[,OPTION=VALUE]… for a new image, PATH[,format=FORMAT] for one that is there.
#pragma once

#include <string>

#include "operation/create_domain.h"

namespace varve::cli {

// kInvalidArgument, naming what is not understood and what would be.
Result<NewDiskRequest> parse_new_disk(const std::string& text);

}  // namespace varve::cli
