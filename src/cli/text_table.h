// Columns as virsh prints them: a header, a line, rows, each column as wide as its widest cell on a terminal.
#pragma once

#include <string>
#include <vector>

namespace varve::cli {

class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header) : rows_{std::move(header)}, marked_{false} {}
  // A marked row begins with '*' instead of a blank.
  void add(std::vector<std::string> row, bool marked = false);
  std::string to_string() const;

 private:
  std::vector<std::vector<std::string>> rows_;
  std::vector<bool> marked_;
};

// Terminal columns that a UTF-8 text takes; bytes that are no text count one each.
size_t display_width(const std::string& text);

}  // namespace varve::cli
