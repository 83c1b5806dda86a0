// The command line of `varve image VERB`, read as qemu-img reads its own: getopt_long, options and operands in any
// order, long options abbreviated, and qemu-img's words about what does not fit.
#pragma once

#include <getopt.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/output.h"

namespace varve::cli {

// What a verb gets: where to print, and its arguments without the verb itself.
struct ImageCall {
  Output& output;
  std::vector<std::string> arguments;
  bool json = false;     // `varve --json image …`
  bool dry_run = false;  // `varve --dry-run image …`
};

// Whether the verb is only to say what it would do; and how.
struct DryRun {
  bool wanted = false;
  bool json = false;
};

// Ends a verb: the exit code that qemu-img has for it. Everything is already printed.
struct ImageExit {
  int code = 0;
  std::shared_ptr<const Error> lacks_space = nullptr;  // set where a rehearsal ended for that
};

// Long options without a letter get values from here on.
enum ImageOption : int {
  kOptionHelp = 256,
  kOptionObject,
  kOptionImageOpts,
  kOptionOutput,
  kOptionBackingChain,
  kOptionTargetImageOpts,
  kOptionTargetIsZero,
  kOptionSalvage,
  kOptionBitmaps,
  kOptionSkipBroken,
  kOptionDeep,
  kOptionDryRun,
};

struct ImageLongOption {
  const char* name;
  bool has_value;
  int id;  // a letter or an ImageOption
};

struct ParsedImageOption {
  int id;  // a letter or an ImageOption
  std::string value;
};

struct ParsedImageArguments {
  std::vector<ParsedImageOption> options;  // in order
  std::vector<std::string> operands;
  DryRun dry_run;                   // of the call, or `--dry-run` among the options (called as varve)
  std::optional<ImageExit> failed;  // printed: the caller returns it
};

// `letters` as for getopt: "f:b:qu".
ParsedImageArguments parse_image_arguments(const ImageCall& call, const std::string& letters,
                                           const std::vector<ImageLongOption>& long_options);

// Prints "PROGRAM: TEXT", and where the help is. Exit code 1.
ImageExit usage_failure(Output& output, const std::string& text);
// A size as an argument; `what` as in "Invalid image size specified". Prints why it is none.
std::optional<uint64_t> size_argument(Output& output, const std::string& what, const std::string& text,
                                      uint64_t least = 0, uint64_t most = INT64_MAX);
// How the command is called: "qemu-img" or "varve image".
std::string command_name(const Output& output);

}  // namespace varve::cli
