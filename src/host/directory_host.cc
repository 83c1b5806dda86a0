#include "host/directory_host.h"

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "host/choose_host.h"

namespace varve {

namespace {

// As libvirt's packages make them: images can be reached by name but not listed by everybody.
constexpr struct {
  std::string (*path)();
  unsigned mode;
} kDirectories[] = {
    {Layout::definitions_directory, 0755}, {Layout::snapshots_directory, 0755}, {Layout::images_directory, 0711},
    {Layout::nvram_directory, 0755},       {Layout::save_directory, 0755},
};

}  // namespace

DirectoryHost::DirectoryHost(const Layout& layout, HostEvents events)
    : Host(layout, std::move(events),
           {.definitions = std::make_unique<DefinitionFiles>(layout),
            .metadata = std::make_unique<MetadataFiles>(layout),
            .writer = std::make_shared<FileWriter>(layout)}) {}

Result<std::unique_ptr<Host>> DirectoryHost::open(const std::string& root, HostEvents events) {
  const Layout layout = TRY(Layout::open(root));
  std::unique_ptr<DirectoryHost> host(new DirectoryHost(layout, std::move(events)));
  host->recover_all();
  return std::unique_ptr<Host>(std::move(host));
}

Result<std::unique_ptr<Host>> DirectoryHost::open_or_create(const std::string& root, HostEvents events) {
  TRY(make_directories(root, 0755));
  std::unique_ptr<Host> host = TRY(open(root, std::move(events)));
  TRY(host->check_writable());
  for (const auto& [path, mode] : kDirectories) TRY(host->layout().make_directories(path(), mode));
  return host;
}

Result<void> DirectoryHost::check_writable() const {
  for (const char* run : {"/run", "/var/run"}) {
    const auto directory = layout().resolve(run);
    if (!directory) continue;
    if (const auto socket = answering_libvirt_socket(*directory)) {
      return make_error(ErrorKind::kRefused,
                        fmt::format("a libvirtd runs on {} (it answers on {}), and its files are its own",
                                    layout().root(), *socket))
          .with_note(
              "stop it first (`systemctl stop libvirtd.socket libvirtd`), or ask it: `varve -c qemu:///system …`; "
              "nothing was changed");
    }
  }
  return {};
}

Result<bool> DirectoryHost::has_saved_memory(const std::string& domain) const {
  const auto file = layout().resolve(fmt::format("{}/{}.save", Layout::save_directory(), domain));
  if (file) return true;
  if (file.error().kind == ErrorKind::kNotFound) return false;
  return file.error();
}

}  // namespace varve
