// What a journal file says (docs/journal.md, "Format"): everything that is needed to finish one operation on one
// domain, without the program that began it. A value, to and from bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "qcow2/snapshot_transaction.h"
#include "store/file_change.h"

namespace varve {

// A file as it was at one moment. Equal stamps mean: nobody has written to it in between. The device number is kept for
// people to read only, for it changes from one boot to the next.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  uint64_t size = 0;      // bytes
  int64_t mtime_sec = 0;  // Unix time
  uint32_t mtime_nsec = 0;
  bool same_state_as(const FileStamp& other) const {
    return inode == other.inode && size == other.size && mtime_sec == other.mtime_sec && mtime_nsec == other.mtime_nsec;
  }
  bool operator==(const FileStamp&) const = default;
};

// One image whose new state is prepared (qcow2::SnapshotTransaction::prepare) and becomes true with one sector.
struct JournalImage {
  std::string target;  // the disk, e.g. "vda", for messages
  std::string path;    // a root path (store/layout.h)
  qcow2::HeaderSector before{};
  qcow2::HeaderSector after{};
  FileStamp prepared;  // after prepare and fsync
  bool operator==(const JournalImage&) const = default;
};

// What it means for the user when recovery has carried the record out.
enum class RecordPurpose : uint8_t {
  kFinish = 1,  // the operation is done
  kUndo = 2,    // what the operation had begun is removed again
};

struct JournalRecord {
  RecordPurpose purpose = RecordPurpose::kFinish;
  std::string domain;
  std::string domain_uuid;  // of the definition that it was planned for; empty: not known, or there was none
  std::string operation;    // for people: "snapshot create centos7 before-upgrade"
  std::string snapshot;     // its name where there is one, for messages
  std::vector<JournalImage> images;
  std::vector<FileChange> changes;               // in this order, after the images
  std::vector<std::string> removed_images;       // root paths of files that go, once nobody has them in use
  std::vector<std::string> removed_directories;  // root paths of directories that go if they are empty
  // Whether the domain is to be gone.
  bool removes_definition() const;
  bool operator==(const JournalRecord&) const = default;
};

std::vector<std::byte> serialize_record(const JournalRecord& record);
// kCorrupt for anything that serialize_record does not write, with the offset.
Result<JournalRecord> parse_record(std::span<const std::byte> bytes);

}  // namespace varve
