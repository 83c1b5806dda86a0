// The manifests of the exports in a directory (manifest.h), which is a host of the kind dir: at the same time.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "store/layout.h"
#include "transfer/manifest.h"

namespace varve {

// The domains that have one, sorted.
Result<std::vector<std::string>> exported_domains(const Layout& layout);
// kNotFound: there is no export of that domain.
// Its own checksum goes to `sha256`, where that is given.
Result<Manifest> load_manifest(const Layout& layout, const std::string& domain, std::string* sha256 = nullptr);
// The manifest, and what sha256sum reads. Replaces older ones.
Result<void> save_manifest(const Layout& layout, const Manifest& manifest);

}  // namespace varve
