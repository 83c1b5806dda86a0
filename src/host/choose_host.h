// Which host a command works on, and why (docs/architecture.md, "Where things are"): what the user asked for, else a
// libvirtd that answers, else a directory of the user's own.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"

namespace varve {

// What the choice depends on; the caller reads the environment.
struct HostQuery {
  std::optional<std::string> option;       // -c
  std::optional<std::string> environment;  // $VARVE_URI
  bool is_root = false;
  std::string data_home;          // $XDG_DATA_HOME, or ~/.local/share
  std::string runtime_directory;  // $XDG_RUNTIME_DIR; may be empty
  std::string system_run = "/run";
};

enum class HostKind { kDirectory, kLibvirt };

struct HostChoice {
  HostKind kind = HostKind::kDirectory;
  std::string uri;     // "dir:/srv/vm", "qemu:///system"
  std::string root;    // kDirectory: absolute, or relative to the working directory as the user wrote it
  std::string reason;  // "because -c says so"
};

// kInvalidArgument: a URI of no kind that there is.
Result<HostChoice> choose_host(const HostQuery& query);

// The socket of a libvirtd (or virtqemud) below this run directory ("/run", a ROOT's run, $XDG_RUNTIME_DIR) that
// accepts a connection; nothing where none does.
std::optional<std::string> answering_libvirt_socket(const std::string& run_directory);

}  // namespace varve
