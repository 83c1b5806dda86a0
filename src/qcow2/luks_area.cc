#include "qcow2/luks_area.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/endian.h"
#include "qcow2/corruption.h"

namespace varve::qcow2 {

Result<crypto::LuksArea> luks_area(BlockDevice& file, const Header& header) {
  const auto extension = std::ranges::find(header.extensions, uint32_t{kExtensionCrypto}, &HeaderExtension::type);
  if (extension == header.extensions.end())
    return corruption(file.name(), 32, "CRYPTO header extension is missing: nothing says where the keys are");
  if (extension->data.size() != 16) {
    return corruption(file.name(), 104,
                      fmt::format("CRYPTO header extension size {}, but expected size 16", extension->data.size()));
  }
  const crypto::LuksArea area{&file, load_be<uint64_t>(extension->data.data()),
                              load_be<uint64_t>(extension->data.data() + 8)};
  if (area.offset % header.cluster_size() != 0) {
    return corruption(file.name(), 104,
                      fmt::format("Encryption header offset '{}' is not a multiple of cluster size '{}'", area.offset,
                                  header.cluster_size()));
  }
  return area;
}

}  // namespace varve::qcow2
