#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <sstream>

#include "inspect/difference.h"

namespace varve {

namespace {

constexpr size_t kContext = 3;
// Beyond that many pairs of lines, what differs is shown as one change: documents of machines are far from it.
constexpr size_t kMostPairs = size_t{1} << 24;

using Lines = std::vector<std::string>;

Lines lines_of(const std::string& text) {
  Lines lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// A line of the diff: ' ', '-' or '+', and where it stands before and after.
struct Line {
  char kind = ' ';
  size_t before = 0;
  size_t after = 0;
};

// What is common to both in the longest row, by the length of the longest common rest of each pair of lines.
std::vector<Line> compare(const Lines& before, const Lines& after) {
  size_t head = 0;
  while (head < before.size() && head < after.size() && before[head] == after[head]) ++head;
  size_t tail = 0;
  while (tail < before.size() - head && tail < after.size() - head &&
         before[before.size() - 1 - tail] == after[after.size() - 1 - tail]) {
    ++tail;
  }
  const size_t rows = before.size() - head - tail;
  const size_t columns = after.size() - head - tail;
  std::vector<uint32_t> common;
  if (rows + 1 <= kMostPairs / (columns + 1)) common.resize((rows + 1) * (columns + 1));
  const auto rest = [&](size_t row, size_t column) -> uint32_t& { return common[row * (columns + 1) + column]; };
  if (!common.empty()) {
    for (size_t row = rows; row-- > 0;) {
      for (size_t column = columns; column-- > 0;) {
        rest(row, column) = before[head + row] == after[head + column]
                                ? rest(row + 1, column + 1) + 1
                                : std::max(rest(row + 1, column), rest(row, column + 1));
      }
    }
  }
  std::vector<Line> lines;
  for (size_t i = 0; i < head; ++i) lines.push_back({.kind = ' ', .before = i, .after = i});
  size_t row = 0;
  size_t column = 0;
  while (row < rows || column < columns) {
    const bool both = row < rows && column < columns;
    const size_t at = head + row;
    const size_t other = head + column;
    if (both && !common.empty() && before[at] == after[other]) {
      lines.push_back({.kind = ' ', .before = at, .after = other});
      ++row;
      ++column;
    } else if (row < rows && (!both || common.empty() || rest(row + 1, column) >= rest(row, column + 1))) {
      lines.push_back({.kind = '-', .before = at, .after = other});
      ++row;
    } else {
      lines.push_back({.kind = '+', .before = at, .after = other});
      ++column;
    }
  }
  for (size_t i = 0; i < tail; ++i) {
    lines.push_back({.kind = ' ', .before = head + rows + i, .after = head + columns + i});
  }
  return lines;
}

}  // namespace

std::string unified_diff(const std::string& before_text, const std::string& after_text) {
  const Lines before = lines_of(before_text);
  const Lines after = lines_of(after_text);
  const std::vector<Line> lines = compare(before, after);
  const auto next_change = [&](size_t from) {
    return static_cast<size_t>(std::ranges::find_if(lines.begin() + static_cast<std::ptrdiff_t>(from), lines.end(),
                                                    [](const Line& line) { return line.kind != ' '; }) -
                               lines.begin());
  };
  std::string text;
  for (size_t change = next_change(0); change < lines.size();) {
    const size_t first = change - std::min(change, kContext);
    size_t end = change + 1;  // behind the last change that belongs to it
    for (size_t next = next_change(end); next < lines.size() && next <= end + 2 * kContext; next = next_change(end)) {
      end = next + 1;
    }
    const size_t last = std::min(lines.size(), end + kContext);
    size_t removed = 0;
    size_t added = 0;
    std::string body;
    for (size_t i = first; i < last; ++i) {
      const Line& line = lines[i];
      removed += line.kind == '+' ? 0 : 1;
      added += line.kind == '-' ? 0 : 1;
      body += fmt::format("{}{}\n", line.kind, line.kind == '+' ? after[line.after] : before[line.before]);
    }
    // Of no lines, the line before them is named.
    text += fmt::format("@@ -{},{} +{},{} @@\n{}", lines[first].before + (removed == 0 ? 0 : 1), removed,
                        lines[first].after + (added == 0 ? 0 : 1), added, body);
    change = next_change(last);
  }
  return text;
}

}  // namespace varve
