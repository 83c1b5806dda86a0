// Where things are below ROOT (docs/architecture.md, "Where things are"): libvirt's own system layout. A "root path" is
// a path as seen from ROOT, as in a chroot, beginning with '/': what stands in XML and in the journal. A "host path" is
// one that this process can open. Symbolic links below ROOT are followed as in a chroot too, so that a tree with links
// like /var/lib/libvirt -> /srv/vm works wherever it is mounted, and nothing in it can lead out.
//
// Names that are passed in have passed check_domain_name() or check_snapshot_name(). Immutable; safe from any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/atomic_file.h"
#include "base/result.h"

namespace varve {

class Layout {
 public:
  // kNotFound: no such directory. ROOT itself may be reached through symbolic links; root() is the real path.
  static Result<Layout> open(const std::string& root);

  const std::string& root() const { return root_; }  // "/" or without a slash at the end

  // From now on, what is below `root_path` is below `host_path`, as if it were mounted there: a libvirtd of a user's
  // own has its directories elsewhere. Only where ROOT is "/". An image does not move.
  void redirect(const std::string& root_path, const std::string& host_path);

  // Whose files are that this process makes below ROOT: what root makes on a host whose ROOT belongs to somebody else
  // is theirs, or they could not use it. Nothing: this process's own.
  const std::optional<Owner>& new_file_owner() const { return new_file_owner_; }

  // Root paths.
  static std::string definitions_directory() { return "/etc/libvirt/qemu"; }
  static std::string definition(std::string_view domain);
  static std::string snapshots_directory() { return "/var/lib/libvirt/qemu/snapshot"; }
  static std::string snapshots_directory(std::string_view domain);
  static std::string snapshot(std::string_view domain, std::string_view name);
  static std::string images_directory() { return "/var/lib/libvirt/images"; }
  static std::string nvram_directory() { return "/var/lib/libvirt/qemu/nvram"; }
  static std::string save_directory() { return "/var/lib/libvirt/qemu/save"; }
  static std::string varve_directory() { return "/var/lib/varve"; }
  static std::string journal_directory() { return "/var/lib/varve/journal"; }
  static std::string aside_directory(std::string_view domain);  // metadata that `verify` took out of use
  static std::string tpm_directory() { return "/var/lib/libvirt/swtpm"; }
  static std::string increment_directory(std::string_view domain);  // what an incremental export consists of
  static std::string transfer_directory() { return "/var/lib/varve/transfer"; }
  static std::string lock_directory() { return "/var/lib/varve/lock"; }
  static std::string lock_file(std::string_view domain);

  // The host path of something that exists; symbolic links resolved as in a chroot. kNotFound: it does not exist, or a
  // link points at something outside ROOT (then the notes name the link and the command that brings the target in).
  // kInvalidArgument: not absolute.
  Result<std::string> resolve(std::string_view root_path) const;
  // The same where the last component need not exist (kNotFound: its directory does not). A last component that is a
  // link is followed.
  Result<std::string> resolve_for_creation(std::string_view root_path) const;
  // The host path of what a root path leads to, or of the nearest directory on the way there that exists. Errors: other
  // than that something is not there.
  Result<std::string> nearest_existing(std::string_view root_path) const;
  // Makes a directory and its missing parents below ROOT (mode 0755 unless said) and gives its host path.
  Result<std::string> make_directories(std::string_view root_path, unsigned mode = 0755) const;
  // The root path of a host path, which must exist and be below ROOT; kRefused otherwise, with the command that would
  // bring it in.
  Result<std::string> to_root_path(const std::string& host_path) const;
  // A root path the way to print it to somebody on this host: no resolution, just ROOT before it.
  std::string shown(std::string_view root_path) const;

 private:
  Layout(std::string root, std::optional<Owner> owner) : root_(std::move(root)), new_file_owner_(owner) {}
  std::string redirected(std::string_view root_path) const;

  std::string root_;
  std::optional<Owner> new_file_owner_;
  std::vector<std::pair<std::string, std::string>> redirects_;
};

}  // namespace varve
