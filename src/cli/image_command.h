// `varve image VERB …`, and the whole command when it is called through a link named `qemu-img`: the options, output,
// messages and exit codes of qemu-img 7.2.
#pragma once

#include <string>
#include <vector>

#include "cli/image_arguments.h"

namespace varve::cli {

// `arguments`: what follows `varve image`. Returns the exit code.
int run_image_command(Output& output, const std::vector<std::string>& arguments, bool json, bool dry_run = false);

// Prints the help of all verbs.
ImageExit image_help(Output& output);

// One per file, image_VERB.cc.
ImageExit image_check(const ImageCall& call);
ImageExit image_create(const ImageCall& call);
ImageExit image_info(const ImageCall& call);
ImageExit image_amend(const ImageCall& call);
ImageExit image_snapshot(const ImageCall& call);
ImageExit image_convert(const ImageCall& call);
ImageExit image_bitmap(const ImageCall& call);
ImageExit image_commit(const ImageCall& call);
ImageExit image_rebase(const ImageCall& call);
ImageExit image_map(const ImageCall& call);
ImageExit image_compare(const ImageCall& call);
ImageExit image_dd(const ImageCall& call);
ImageExit image_measure(const ImageCall& call);
ImageExit image_bench(const ImageCall& call);
ImageExit image_resize(const ImageCall& call);

}  // namespace varve::cli
