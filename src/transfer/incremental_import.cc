#include "transfer/incremental_import.h"

#include <limits>

#include "transfer/copied_file.h"
#include "transfer/export_directory.h"
#include "transfer/file_copy.h"

namespace varve {

Result<uint64_t> data_bytes(const ExportChain& chain) {
  uint64_t bytes = 0;
  TRY(chain.check_files([&](const ManifestFile& file, ExportedFile& contents) -> Result<void> {
    for (const Extent& extent : TRY(contents.extents(0, file.size_bytes))) {
      if (extent.kind == ExtentKind::kData) bytes += extent.length;
    }
    return {};
  }));
  return bytes;
}

Result<void> put_together(const ExportChain& chain, const std::string& directory, const Watch& watch) {
  const Layout layout = TRY(Layout::open(directory));
  uint64_t total = 0;
  for (const ManifestFile& file : chain.manifest().files) total += file.size_bytes;
  uint64_t before = 0;
  for (const ManifestFile& file : chain.manifest().files) {
    const auto contents = TRY(chain.open_file(file.path));
    CopiedFile copied = TRY(CopiedFile::open(layout, file.path, nullptr));
    TRY(copy_device(*contents, copied.file(),
                    {.bytes = {}, .zeroes = {}, .progress = [&](uint64_t done) -> Result<void> {
                       if (watch.progress) watch.progress(before + done, total);
                       if (!watch.cancelled || !watch.cancelled()) return {};
                       return make_error(ErrorKind::kInterrupted, "it was stopped");
                     }}));
    before += file.size_bytes;
  }
  return save_manifest(layout, whole(chain.manifest()));
}

}  // namespace varve
