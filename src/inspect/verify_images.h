// The images of one domain, each looked at once however many disks and snapshots name it: whether it is there and can
// be read, what its own table of snapshots says, whether its metadata is in order, and what lies below it.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "disk/backing_files.h"
#include "domain/domain_document.h"
#include "host/host.h"
#include "inspect/finding.h"
#include "io/file_device.h"
#include "qcow2/image.h"

namespace varve {

struct ExaminedImage {
  std::string path;                     // root path
  bool exists = false;                  // what follows is known
  bool is_known = false;                // its table could be read
  std::vector<qcow2::Snapshot> points;  // is_known
  uint64_t virtual_size = 0;            // is_known
  bool has(const std::string& name) const { return qcow2::find_by_name(points, name).has_value(); }
};

// Bytes of metadata looked at, of all in this image; `path` is a root path.
using ImageCheckProgress = std::function<void(const std::string& path, uint64_t done, uint64_t total)>;

class ImageExaminer {
 public:
  ImageExaminer(const Host& host, std::string domain, ImageCheckProgress progress, std::vector<Finding>& findings)
      : host_(host), domain_(std::move(domain)), progress_(std::move(progress)), findings_(findings) {}

  // Looks at the image of a disk and at what is below it, and adds what it finds. Nothing for what is no file of this
  // host, and for an empty drive. `snapshot`: for whose sake; empty: the disk is one of today.
  const ExaminedImage* look_at(const Disk& disk, const std::string& snapshot);
  // Images looked into so far, backing files among them.
  size_t count() const { return checked_.size(); }

 private:
  Finding finding(FindingKind kind, Severity severity, const std::string& path, std::string message) const;
  void report(FindingKind kind, Severity severity, const std::string& path, std::string message, std::string remedy,
              bool is_repairable = false);
  void report_unreadable(const std::string& path, const Error& error);
  void examine(const Disk& disk, const std::string& host_path, ExaminedImage& image);
  // The metadata of the image; false where it could not be looked at.
  bool check(const std::string& path, FileDevice& file);
  void examine_chain(const std::string& path, const qcow2::Header& header);
  void examine_backing_file(const std::string& path);

  const Host& host_;
  std::string domain_;
  ImageCheckProgress progress_;
  std::vector<Finding>& findings_;
  std::string target_;    // of the disk that is looked at
  std::string snapshot_;  // the same
  // By resolved path and format: what a definition of today calls raw may have been qcow2 then, with points in it.
  std::map<std::pair<std::string, std::string>, ExaminedImage> images_;
  std::set<std::string> checked_;  // host paths
};

}  // namespace varve
