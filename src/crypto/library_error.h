// What libcrypto says of its last failure, as an Error; for this module's .cc files.
#pragma once

#include "base/result.h"

namespace varve::crypto {

// kInternal: "doing: the library's reason". Empties the library's queue of errors.
Error library_error(const char* doing);

}  // namespace varve::crypto
