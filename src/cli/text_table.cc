#include "cli/text_table.h"

#include <algorithm>
#include <cwchar>

namespace varve::cli {

namespace {

// Decodes one character at `i` and moves past it; a byte that begins none stands for itself.
char32_t next_character(const std::string& text, size_t& i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char first = byte(i++);
  const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : first >= 0xc0 ? 1 : 0;
  if (more == 0) return first;
  char32_t value = first & (0x3fu >> more);
  for (int k = 0; k < more; ++k) {
    if (i >= text.size() || (byte(i) & 0xc0) != 0x80) return first;
    value = (value << 6) | (byte(i++) & 0x3f);
  }
  return value;
}

// Combining marks take no column, East Asian wide characters and most pictographs two.
size_t columns_of(char32_t c) {
  const auto in = [c](char32_t first, char32_t last) { return c >= first && c <= last; };
  if (in(0x300, 0x36f) || in(0x200b, 0x200f) || in(0xfe00, 0xfe0f) || in(0x20d0, 0x20ff)) return 0;
  if (in(0x1100, 0x115f) || in(0x2e80, 0xa4cf) || in(0xac00, 0xd7a3) || in(0xf900, 0xfaff) || in(0xfe30, 0xfe6f) ||
      in(0xff00, 0xff60) || in(0xffe0, 0xffe6) || in(0x1f300, 0x1faff) || in(0x20000, 0x3fffd)) {
    return 2;
  }
  return 1;
}

}  // namespace

size_t display_width(const std::string& text) {
  size_t width = 0;
  for (size_t i = 0; i < text.size();) width += columns_of(next_character(text, i));
  return width;
}

void TextTable::add(std::vector<std::string> row, bool marked) {
  rows_.push_back(std::move(row));
  marked_.push_back(marked);
}

std::string TextTable::to_string() const {
  std::vector<size_t> widths(rows_.front().size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], display_width(row[i]));
  }
  size_t total = 0;
  for (const size_t width : widths) total += width + 3;
  std::string text;
  for (size_t r = 0; r < rows_.size(); ++r) {
    text += marked_[r] ? '*' : ' ';
    for (size_t i = 0; i < widths.size(); ++i) {
      text += rows_[r][i];
      if (i + 1 < widths.size()) text += std::string(widths[i] - display_width(rows_[r][i]) + 3, ' ');
    }
    text += '\n';
    if (r == 0) text += std::string(total, '-') + '\n';
  }
  return text;
}

}  // namespace varve::cli
