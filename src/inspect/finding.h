// What `verify` has found: one thing that is not as it should be, with what it means and what helps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace varve {

enum class Severity : uint8_t {
  kNote,     // worth knowing; nothing is wrong
  kWarning,  // nothing is lost, but it wants to be mended
  kError,    // something is lost, damaged, or can't be used as it is
  kUnknown,  // it could not be looked into: in use, or forbidden
};

enum class FindingKind : uint8_t {
  // Of the metadata.
  kUnreadableDefinition,
  kUnreadableMetadata,  // a file in the place of metadata that can't be understood
  kMisnamedMetadata,    // its file has another name than it says
  kUnloadedMetadata,    // the libvirtd that runs does not know it, but its file is there
  kMissingParent,
  kParentCircle,
  kSeveralCurrent,
  kInterruptedMerge,    // libvirt began to delete an external snapshot, and did not end it
  kMetadataOfNoDomain,  // snapshots of a domain that is not defined
  // Of the metadata against the images.
  kMissingPoint,  // an image lacks a snapshot that the metadata has
  kUnknownPoint,  // an image has a snapshot that no metadata has
  kDamagedPoint,  // an image's own entry of a snapshot can't be right
  kMissingFile,   // an image, an overlay, a memory image
  kOtherSize,     // a disk had another virtual size at that time
  // Of the images.
  kUnreadableImage,
  kImageErrors,
  kImageLeaks,
  kBrokenChain,
  kNoFormat,      // a format that nobody recorded, so that somebody has to guess
  kAbsoluteLink,  // a backing file by its absolute path: breaks when the files move
  // Of what interrupted commands left.
  kUnfinishedOperation,
  kTemporaryFile,
  kUnusedLock,
  kNotExamined,
};

const char* name_of(Severity severity);  // "error"
const char* name_of(FindingKind kind);   // "missing-point": stable, for programs

struct Finding {
  FindingKind kind = FindingKind::kNotExamined;
  Severity severity = Severity::kError;
  std::string domain;              // empty: of the host as a whole
  std::string snapshot;            // empty: of none
  std::vector<std::string> disks;  // targets; kMissingPoint: those that lack it, kUnknownPoint: those that have it
  std::string path;                // root path of the file that it is about; empty: of none
  std::string message;             // what is wrong, in one line
  std::string remedy;              // what helps, in one line; empty: nothing that could be said here
  bool is_repairable = false;      // by plan_repair_domain or repair_host

  // What a repair needs to know besides.
  bool is_complete = false;     // kMissingPoint: no disk has it
  int64_t time_sec = 0;         // kUnknownPoint: when it was made, Unix time
  uint64_t vm_state_bytes = 0;  // kUnknownPoint: memory that is kept with it
};

}  // namespace varve
