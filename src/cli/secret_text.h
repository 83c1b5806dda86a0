// What a secret's text may look like on a command line and in its file: base64, as QEMU takes it, and UTF-8.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "crypto/secret_bytes.h"

namespace varve::cli {

// kInvalidArgument for characters that are none of base64's. As lenient as QEMU otherwise: an incomplete group of four
// at the end is left out.
Result<crypto::SecretBytes> decode_base64(std::string_view text);

// No NUL, no overlong forms, no surrogates.
bool is_utf8(std::string_view text);

}  // namespace varve::cli
