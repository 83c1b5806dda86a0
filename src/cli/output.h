// Everything that the command says goes through here: results to standard output, errors and progress to standard
// error. A message has the form of DESIGN's "Errors": one line that begins with the program's name, then indented
// notes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "base/result.h"

namespace varve::cli {

// The lines of `error` as they are printed, without the program's name: the message (with path and offset where it does
// not name them itself), then every note, indented by two blanks. Control characters are made visible: names come from
// strangers' files.
std::string describe(const Error& error);

// What a terminal would obey (C0, DEL, C1, and Unicode's marks that turn the direction of writing) as \xNN; other UTF-8
// passes.
std::string visible(std::string_view text);
// The same, but newlines stay what they are.
std::string visible_lines(std::string_view text);

class Output {
 public:
  // `program` begins every message: "varve", or "qemu-img" when called by that name.
  explicit Output(std::string program, std::FILE* out = stdout, std::FILE* err = stderr)
      : program_(std::move(program)), out_(out), err_(err) {}

  // Says nothing: for work that is only tried.
  static Output nowhere(std::string program) { return Output(std::move(program), nullptr, nullptr); }

  const std::string& program() const { return program_; }
  std::FILE* out() const { return out_; }

  void print(std::string_view text);  // to standard output, as it is
  void error(const Error& error);     // "varve: message" and its notes
  void error(std::string_view text);  // "varve: text"
  void note(std::string_view text);   // to standard error, as it is
  // To standard error, as it is, and without a look at what waits for standard output: as QEMU prints what it finds.
  void diagnostics(std::string_view text);
  // Whether everything printed has arrived; false for a full disk behind a redirection or a closed pipe.
  bool finish();

 private:
  std::string program_;
  std::FILE* out_;  // null: nowhere
  std::FILE* err_;
};

// A bar on standard error while something long runs; draws only where that is a terminal, and wipes itself away.
class ProgressBar {
 public:
  explicit ProgressBar(std::string title, bool wanted = true);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();
  void update(uint64_t done, uint64_t total);

 private:
  std::string title_;
  bool drawing_;
  int last_percent_ = -1;
};

}  // namespace varve::cli
