#include "cli/output.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/permission_remedy.h"

namespace varve::cli {

namespace {

// How many bytes at `at` are a character that moves what a terminal shows, in UTF-8: the controls C1, and those that
// turn the direction of writing.
size_t hidden_character(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0U; };
  if (byte(0) == 0xc2 && byte(1) >= 0x80 && byte(1) <= 0x9f) return 2;
  if (byte(0) != 0xe2) return 0;
  const bool embeds = byte(1) == 0x80 && byte(2) >= 0xaa && byte(2) <= 0xae;
  const bool isolates = byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9;
  return embeds || isolates ? 3 : 0;
}

std::string visible_except(std::string_view text, std::string_view kept) {
  std::string result;
  size_t hidden = 0;  // bytes of it that are still to come
  for (size_t at = 0; at < text.size(); ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (hidden == 0) hidden = hidden_character(text, at);
    const bool control = (byte < 0x20 || byte == 0x7f) && kept.find(text[at]) == std::string_view::npos;
    if (control || hidden > 0) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += text[at];
    }
    if (hidden > 0) --hidden;
  }
  return result;
}

}  // namespace

std::string visible(std::string_view text) {
  return visible_except(text, "");
}

std::string visible_lines(std::string_view text) {
  return visible_except(text, "\n");
}

namespace {

// What helps against what the system says, where whoever made the error has no better advice.
std::string remedy_for(const Error& error) {
  switch (error.sys_errno) {
    case ENOSPC:
      return "make room on that file system, then run the command again";
    case EDQUOT:
      return "make room within the quota, or have it raised, then run the command again";
    case EROFS:
    case EACCES:
    case EPERM: {
      std::string remedy = permission_remedy(error.path, error.sys_errno);
      if (!remedy.empty()) return remedy;
      return error.sys_errno == EROFS ? "the file system is mounted read-only: `mount -o remount,rw` makes it writable"
                                      : "run the command as the owner of the file, or as root";
    }
    default:
      return {};
  }
}

}  // namespace

std::string describe(const Error& error) {
  std::string text = visible(error.message);
  const bool names_path = error.path.empty() || error.message.find(error.path) != std::string::npos;
  if (!names_path && error.offset) {
    text += fmt::format(" ({}, offset {:#x})", visible(error.path), *error.offset);
  } else if (!names_path) {
    text += fmt::format(" ({})", visible(error.path));
  } else if (error.offset) {
    text += fmt::format(" (offset {:#x})", *error.offset);
  }
  for (const std::string& note : error.notes) text += "\n  " + visible(note);
  const std::string remedy = remedy_for(error);
  if (!remedy.empty() && std::ranges::find(error.notes, remedy) == error.notes.end()) text += "\n  " + visible(remedy);
  return text;
}

void Output::print(std::string_view text) {
  if (out_ != nullptr) std::fwrite(text.data(), 1, text.size(), out_);
}

void Output::error(const Error& error) {
  this->error(describe(error));
}

void Output::error(std::string_view text) {
  note(fmt::format("{}: {}\n", program_, text));
}

void Output::note(std::string_view text) {
  if (out_ != nullptr) std::fflush(out_);  // keeps the order of lines where both go to one terminal or file
  diagnostics(text);
}

void Output::diagnostics(std::string_view text) {
  if (err_ != nullptr) std::fwrite(text.data(), 1, text.size(), err_);
}

bool Output::finish() {
  return std::fflush(out_) == 0 && std::ferror(out_) == 0;
}

ProgressBar::ProgressBar(std::string title, bool wanted)
    : title_(std::move(title)), drawing_(wanted && ::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (drawing_ && last_percent_ >= 0) fmt::print(stderr, "\r\033[K");
}

void ProgressBar::update(uint64_t done, uint64_t total) {
  if (!drawing_) return;
  const double share = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  const int percent = static_cast<int>(share * 100);
  if (percent == last_percent_) return;
  last_percent_ = percent;
  constexpr size_t kWidth = 40;
  const size_t filled = static_cast<size_t>(percent) * kWidth / 100;
  fmt::print(stderr, "\r{} [{}{}] {:3d} %", title_, std::string(filled, '#'), std::string(kWidth - filled, ' '),
             percent);
  std::fflush(stderr);
}

}  // namespace varve::cli
