#include "cli/secret_text.h"

#include <array>
#include <cstdint>

namespace varve::cli {

namespace {

constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// The length of the character at the beginning of `text`, or 0 where there is none.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(0);
  if (first != 0 && first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  // The second byte's range is narrower behind some first ones (Unicode, table 3-7).
  if (first == 0xe0 && byte(1) < 0xa0) return 0;
  if (first == 0xed && byte(1) > 0x9f) return 0;
  if (first == 0xf0 && byte(1) < 0x90) return 0;
  if (first == 0xf4 && byte(1) > 0x8f) return 0;
  return length;
}

}  // namespace

Result<crypto::SecretBytes> decode_base64(std::string_view text) {
  crypto::SecretBytes bytes(text.size() / 4 * 3);
  size_t length = 0;
  uint32_t group = 0;
  size_t taken = 0;
  size_t padding = 0;
  for (const char c : text) {
    if (c == '\n') continue;
    const size_t value = kAlphabet.find(c);
    if (value == std::string_view::npos && c != '=')
      return make_error(ErrorKind::kInvalidArgument, "Base64 data contains invalid characters");
    group = group << 6 | (c == '=' ? 0 : static_cast<uint32_t>(value));
    padding = c == '=' ? padding + 1 : 0;
    if (++taken < 4) continue;
    const size_t whole = padding >= 2 ? 1 : 3 - padding;
    for (size_t i = 0; i < whole; ++i) bytes.bytes()[length++] = static_cast<std::byte>(group >> (16 - 8 * i));
    taken = padding = 0;
  }
  return crypto::SecretBytes(std::as_const(bytes).bytes().first(length));
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = character_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace varve::cli
