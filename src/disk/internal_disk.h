// One disk whose points are kept inside its qcow2 image ("internal", in libvirt's words): what points there are, and
// one change of them that is prepared, recorded in the journal, and then made true.
//
//   auto disk = TRY(InternalDisk::open(layout, *definition.disk("vda"), Access::kReadWrite));
//   JournalImage image = TRY(disk.prepare({.create = spec}));  // the image is still the old one
//   … the journal's record, with `image` in it, is written …
//   TRY(disk.commit());
//   disk.discard_freed();
//
// The image is open, and its lock held, for as long as the object lives.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "domain/domain_document.h"
#include "io/file_device.h"
#include "qcow2/image.h"
#include "qcow2/snapshot_transaction.h"
#include "store/journal_record.h"
#include "store/layout.h"

namespace varve {

// What is to become of a disk's points, in this order. Names, not ids: that is what metadata knows.
struct DiskChange {
  std::optional<qcow2::SnapshotSpec> create;
  std::optional<std::string> revert_to;
  std::vector<std::string> remove;                            // those that are there; the others are gone already
  std::optional<std::pair<std::string, std::string>> rename;  // from, to

  // One line each: "create snapshot 'a'".
  std::vector<std::string> describe() const;
};

class InternalDisk {
 public:
  // Every reason why the disk can't have points inside is found here: no image, a network disk, another format than
  // qcow2 or none recorded, no permission, in use, damaged. With Access::kReadWrite also why they can't be changed.
  // Messages name the disk and what to do.
  static Result<InternalDisk> open(const Layout& layout, const Disk& disk, Access access);

  const std::string& target() const { return target_; }
  const std::string& path() const { return path_; }            // root path, as the definition has it
  const std::string& host_path() const { return host_path_; }  // resolved: the same for two names of one file
  const qcow2::Image& image() const { return *image_; }
  qcow2::Image& image() { return *image_; }

  const std::vector<qcow2::Snapshot>& points() const { return image_->snapshots(); }
  std::optional<size_t> find(const std::string& name) const { return qcow2::find_by_name(points(), name); }
  // That the disk can become what it was there, or be read as it was. kNotFound, kCorrupt.
  Result<void> check_usable(const std::string& name) const;
  // "base, experiment and 12 more"; "no snapshot".
  std::string list_of_points() const;

  // What a change makes the image's file take beyond what it takes now, in bytes: a figure that it never reaches, for
  // nothing; and the true one, for the time of the change itself, which is rehearsed in memory.
  Result<uint64_t> most_new_bytes() const { return qcow2::SnapshotTransaction::most_new_bytes(*image_); }
  Result<uint64_t> new_bytes(const DiskChange& change) const;
  FileDevice& file() const { return *file_; }

  // The long work. On failure the image is as it was. The result is what the journal has to know of it.
  Result<JournalImage> prepare(const DiskChange& change);
  // Only after the journal's record is durable.
  Result<void> commit();
  // Gives back what the commit has freed; failing at that loses space only.
  void discard_freed();
  // Forgets what was prepared. Never once the journal's record is written: recovery would commit it.
  void abandon();

 private:
  InternalDisk() = default;
  Error explain(Error error) const;

  std::string target_;
  std::string path_;
  std::string host_path_;
  std::shared_ptr<FileDevice> file_;
  std::unique_ptr<qcow2::Image> image_;
  std::optional<qcow2::PreparedCommit> prepared_;
};

}  // namespace varve
