#include "cli/image_command.h"

#include <fmt/format.h>

#include <array>

#include "cli/version.h"

namespace varve::cli {

namespace {

using Verb = ImageExit (*)(const ImageCall&);

constexpr auto kVerbs = std::to_array<std::pair<const char*, Verb>>({
    {"check", image_check},
    {"create", image_create},
    {"info", image_info},
    {"snapshot", image_snapshot},
    {"convert", image_convert},
    {"amend", image_amend},
    {"bitmap", image_bitmap},
    {"commit", image_commit},
    {"rebase", image_rebase},
    {"map", image_map},
    {"compare", image_compare},
    {"dd", image_dd},
    {"measure", image_measure},
    {"bench", image_bench},
    {"resize", image_resize},
});

constexpr const char* kHelp =
    R"(Disk images, raw, qcow2 and LUKS: the commands, options, output and exit codes of qemu-img 7.2.

  {0} create [-q] [-f FORMAT] [-b BACKING_FILE -F FORMAT] [-u] [-o OPTIONS] FILE [SIZE]
      makes a new image; -b lets BACKING_FILE show through, -u does so without looking at it
  {0} check [-q] [-U] [-f FORMAT] [--output=human|json] [-r leaks|all] [--deep] FILE
      looks for errors in the metadata of a qcow2 image; -r repairs what wastes space, or everything; --deep also
      decodes compressed clusters and looks for tables that overlap. Exit code 0 clean, 2 errors, 3 leaked clusters
  {0} info [-f FORMAT] [--output=human|json] [--backing-chain] [-U] FILE
      says what is in an image; opens no other file, unless --backing-chain asks for it
  {0} snapshot [-f FORMAT] [-q] [-U] [-l | -c NAME | -a SNAPSHOT | -d NAME] FILE
      lists, creates, applies (reverts to) or deletes the snapshots inside of a qcow2 image
  {0} convert [-p] [-q] [-n] [-U] [-f FORMAT] [-O FORMAT] [-B BACKING_FILE -F FORMAT] [-o OPTIONS]
      [-l SNAPSHOT] [-S SIZE] [-c] [-r RATE] [--salvage] [--target-is-zero] FILE... TARGET
      copies the disk in FILE (or a snapshot of it) to a new image; holes stay holes; -c compresses, --salvage
      copies what can be read
  {0} bitmap (--add [-g GRANULARITY] | --remove | --clear | --enable | --disable | --merge BITMAP)...
      [-b FILE [-F FORMAT]] [-f FORMAT] FILE BITMAP
      makes and changes the persistent dirty bitmaps of a qcow2 image; -b: where --merge finds its BITMAP
  {0} amend [-p] [-q] [-f FORMAT] [-t CACHE] [--force] -o OPTIONS FILE
      changes the format options of a qcow2 image: compat, refcount_bits, lazy_refcounts, size; and the key slots of an
      encrypted one; `-o help` lists them
  {0} commit [-p] [-q] [-f FORMAT] [-t CACHE] [-b BASE] [-d] [-r RATE] FILE
      writes what FILE holds into its backing file, or into BASE further below, and empties FILE; -b, -d keep it
  {0} rebase [-p] [-q] [-f FORMAT] [-t CACHE] [-T CACHE] [-u] -b BACKING_FILE [-F FORMAT] FILE
      gives FILE another backing file (-b "": none) and copies what would show differently; -u changes the name only
  {0} map [--output=human|json] [-U] [-f FORMAT] [-s|--start-offset SIZE] [-l|--max-length SIZE] FILE
      says which parts of a disk are data or zeroes, in which image of the chain, and where in its file
  {0} compare [-s] [-p] [-q] [-U] [-f FORMAT] [-F FORMAT] [-T CACHE] FILE FILE
      says whether two disks hold the same (-s: and have the same parts allocated); exit code 0 yes, 1 no
  {0} dd [-U] [-f FORMAT] [-O FORMAT] [bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=FILE of=TARGET
      copies a stretch of a disk to a new image
  {0} resize [-q] [-f FORMAT] [--shrink] [--preallocation=off|falloc|full] FILE [+|-]SIZE
      gives a disk another size; --shrink says that what is cut off may go
  {0} measure [--output=human|json] [-O FORMAT] [-o OPTIONS] [--size SIZE | [-U] [-f FORMAT] [-l SNAPSHOT] FILE]
      says how large the file would become that convert or create makes
  {0} bench [-c COUNT] [-d DEPTH] [-f FORMAT] [-w] [--pattern=BYTE] [--flush-interval=COUNT] [--no-drain] [-o OFFSET]
      [-s SIZE] [-S STEP] [-i AIO] [-n] [-t CACHE] [-q] [-U] FILE
      says how long a series of reads or writes takes

  FORMAT    raw, qcow2 or luks
  OPTIONS   NAME=VALUE,...; `-o help` lists them
  SIZE      bytes, or a number with one of the suffixes k, M, G, T, P, E (powers of 1024)
  RATE      bytes per second, as SIZE
  CACHE     none, writeback, writethrough, directsync or unsafe
  SNAPSHOT  an id or a name; for convert also snapshot.id=ID,snapshot.name=NAME
  -U        open an image that another process may be writing to
  -q        print errors only
  -p        show progress
)";

}  // namespace

ImageExit image_help(Output& output) {
  output.print(fmt::format(fmt::runtime(kHelp), command_name(output)));
  return {0};
}

int run_image_command(Output& output, const std::vector<std::string>& arguments, bool json, bool dry_run) {
  if (arguments.empty()) return usage_failure(output, "Not enough arguments").code;
  const std::string& verb = arguments[0];
  if (verb == "-h" || verb == "--help") return image_help(output).code;
  if (verb == "-V" || verb == "--version") {
    output.print(fmt::format("qemu-img version 7.2 (Varve {})\n", version_number()));
    return 0;
  }
  if (verb.starts_with('-')) return usage_failure(output, fmt::format("unrecognized option '{}'", verb)).code;
  for (const auto& [name, run] : kVerbs) {
    if (verb == name) return run({output, {arguments.begin() + 1, arguments.end()}, json, dry_run}).code;
  }
  return usage_failure(output, "Command not found: " + verb).code;
}

}  // namespace varve::cli
