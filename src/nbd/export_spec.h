// What the plugin is told to serve: parameters of nbdkit's command line, in the order given.
//
//   nbdkit varve file=disk.qcow2                              the disk as it is
//   nbdkit varve file=disk.qcow2 snapshot=before-upgrade      as it was
//   nbdkit varve file=disk.raw format=raw
//   nbdkit varve export=vda file=a.qcow2 snapshot=s export=vdb file=b.qcow2 snapshot=s
//   nbdkit varve file=disk.qcow2 snapshot=s overlay=/var/tmp  with writes that are thrown away
//
// `export=NAME` begins another export; what follows, up to the next one, belongs to it. Without any there is one, whose
// name is empty. A value is taken as it is, whatever is in it. The format is qcow2 unless said: it is never guessed,
// because a guest can write any header that it likes into a raw disk.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "image/point.h"

namespace varve::nbd {

struct ExportSpec {
  std::string name;  // empty for the only one
  image::PointName point;
  // Writes go to a file in this directory that has no name and is thrown away at the end; all clients see them.
  std::optional<std::string> overlay = std::nullopt;
};

class ExportSpecs {
 public:
  // kInvalidArgument for what is unknown, said twice, or out of place.
  Result<void> add(const std::string& key, const std::string& value);
  // After the last one: that every export is whole, and names are not used twice.
  Result<void> check() const;
  const std::vector<ExportSpec>& all() const { return specs_; }

 private:
  std::vector<ExportSpec> specs_;
  std::vector<bool> has_format_;  // likewise
};

// The parameters that make the plugin serve these.
std::vector<std::string> parameters_of(const std::vector<ExportSpec>& specs);

// Where a client finds an export: "nbd+unix:///vda?socket=/tmp/s", "nbd://localhost:10809/vda".
// With TLS "nbds" in the place of "nbd".
std::string unix_uri(const std::string& export_name, const std::string& socket, bool tls = false);
std::string tcp_uri(const std::string& export_name, const std::string& address, unsigned port, bool tls = false);

}  // namespace varve::nbd
