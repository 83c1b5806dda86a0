#include "transfer/export_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "domain/names.h"
#include "store/file_change.h"
#include "transfer/checksum.h"

namespace varve {

namespace {

constexpr size_t kMaxManifestBytes = size_t{256} << 20;
constexpr unsigned kMode = 0644;

}  // namespace

Result<std::vector<std::string>> exported_domains(const Layout& layout) {
  std::vector<std::string> domains;
  std::error_code failed;
  for (std::filesystem::directory_iterator at(layout.root(), failed), end; at != end && !failed; at.increment(failed)) {
    const std::string name = at->path().filename();
    if (!name.ends_with(kManifestSuffix)) continue;
    const std::string domain = name.substr(0, name.size() - std::string_view(kManifestSuffix).size());
    if (check_domain_name(domain)) domains.push_back(domain);
  }
  if (failed) return system_error(failed.value(), fmt::format("can't list {}", layout.root()), layout.root());
  std::ranges::sort(domains);
  return domains;
}

Result<Manifest> load_manifest(const Layout& layout, const std::string& domain, std::string* sha256) {
  TRY(check_domain_name(domain));
  const std::string name = fmt::format("/{}{}", domain, kManifestSuffix);
  const auto path = layout.resolve(name);
  if (!path && path.error().kind == ErrorKind::kNotFound) {
    return make_error(ErrorKind::kNotFound, fmt::format("there is no export of '{}' in {}", domain, layout.root()))
        .with_note(fmt::format("an export has {}; what has none may be a host by itself: `varve -c 'dir:{}' vm list`, "
                               "and `vm move --to` takes a machine from there",
                               layout.shown(name), layout.root()));
  }
  if (!path) return path.error();
  const std::string text = TRY(read_file(*path, kMaxManifestBytes));
  Manifest manifest = TRY(parse_manifest(text, layout.shown(name)));
  if (sha256 != nullptr) *sha256 = TRY(checksum_of(text));
  if (manifest.domain == domain) return manifest;
  return make_error(ErrorKind::kCorrupt,
                    fmt::format("{} is the manifest of another machine, '{}'", layout.shown(name), manifest.domain));
}

Result<void> save_manifest(const Layout& layout, const Manifest& manifest) {
  if (manifest.base) TRY(check_recordable(manifest));
  // The checksums first: who finds a manifest finds them, too.
  TRY(apply(layout, {.path = fmt::format("/{}{}", manifest.domain, kChecksumsSuffix),
                     .contents = to_checksums(manifest),
                     .mode = kMode}));
  return apply(
      layout,
      {.path = fmt::format("/{}{}", manifest.domain, kManifestSuffix), .contents = to_json(manifest), .mode = kMode});
}

}  // namespace varve
