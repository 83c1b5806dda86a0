#include "domain/domain_document.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <set>

#include "base/checked.h"
#include "domain/names.h"

namespace varve {

namespace {

constexpr std::array<std::pair<const char*, DiskSourceType>, 8> kSourceTypes = {{
    {"file", DiskSourceType::kFile},
    {"block", DiskSourceType::kBlock},
    {"dir", DiskSourceType::kDir},
    {"network", DiskSourceType::kNetwork},
    {"volume", DiskSourceType::kVolume},
    {"nvme", DiskSourceType::kNvme},
    {"vhostuser", DiskSourceType::kVhostUser},
    {"vhostvdpa", DiskSourceType::kVhostVdpa},
}};

constexpr std::array<std::pair<const char*, SnapshotMode>, 5> kSnapshotModes = {{
    {"default", SnapshotMode::kDefault},
    {"no", SnapshotMode::kNo},
    {"internal", SnapshotMode::kInternal},
    {"external", SnapshotMode::kExternal},
    {"manual", SnapshotMode::kManual},
}};

constexpr std::array<std::pair<const char*, DiskDevice>, 4> kDevices = {{
    {"disk", DiskDevice::kDisk},
    {"cdrom", DiskDevice::kCdrom},
    {"floppy", DiskDevice::kFloppy},
    {"lun", DiskDevice::kLun},
}};

std::string joined(const std::optional<std::string>& a, const char* separator, const std::optional<std::string>& b) {
  if (!a) return b.value_or("");
  return b ? *a + separator + *b : *a;
}

// The one attribute that says where a source is.
const char* path_attribute(DiskSourceType type) {
  switch (type) {
    case DiskSourceType::kFile:
      return "file";
    case DiskSourceType::kBlock:
      return "dev";
    case DiskSourceType::kDir:
      return "dir";
    default:
      return nullptr;
  }
}

DiskSourceType source_type_of(const xml::Element& element) {
  const std::string type = element.attribute("type").value_or("file");
  for (const auto& [name, value] : kSourceTypes) {
    if (type == name) return value;
  }
  return DiskSourceType::kOther;
}

std::string source_of(const xml::Element& source, DiskSourceType type) {
  if (const char* attribute = path_attribute(type)) return source.attribute(attribute).value_or("");
  switch (type) {
    case DiskSourceType::kNetwork:
      return joined(source.attribute("protocol"), ":", source.attribute("name"));
    case DiskSourceType::kVolume:
      return joined(source.attribute("pool"), "/", source.attribute("volume"));
    case DiskSourceType::kVhostVdpa:
      return source.attribute("dev").value_or("");
    case DiskSourceType::kVhostUser:
      return source.attribute("path").value_or("");
    default:
      return "(something else)";
  }
}

Error wrong(const std::string& document, int line, const std::string& why) {
  Error error = make_error(ErrorKind::kCorrupt, fmt::format("{}, line {}: {}", document, line, why));
  error.path = document;
  return error;
}

Result<Disk> read_disk(const xml::Element& element, const std::string& document) {
  Disk disk;
  disk.line = element.line();
  const std::string device = element.attribute("device").value_or("disk");
  const auto known =
      std::find_if(kDevices.begin(), kDevices.end(), [&](const auto& entry) { return device == entry.first; });
  if (known == kDevices.end()) return wrong(document, disk.line, "unknown disk device '" + device + "'");
  disk.device = known->second;

  const xml::Element* target = element.child("target");
  if (target != nullptr) {
    disk.target = target->attribute("dev").value_or("");
    disk.bus = target->attribute("bus").value_or("");
  }
  if (disk.target.empty()) return wrong(document, disk.line, "a disk without a target (<target dev='vda'/>)");

  disk.source_type = source_type_of(element);
  if (const xml::Element* source = element.child("source")) disk.source = source_of(*source, disk.source_type);
  if (const xml::Element* driver = element.child("driver")) disk.format = driver->attribute("type").value_or("");
  // A cdrom is read-only whether or not somebody wrote so.
  disk.readonly = element.child("readonly") != nullptr || disk.device == DiskDevice::kCdrom;
  disk.shareable = element.child("shareable") != nullptr;
  disk.transient = element.child("transient") != nullptr;
  disk.serial = element.child_text("serial").value_or("");

  if (const auto mode = element.attribute("snapshot")) {
    const auto parsed = snapshot_mode_from(*mode);
    if (!parsed) return wrong(document, disk.line, "unknown snapshot mode '" + *mode + "' of disk " + disk.target);
    disk.snapshot = *parsed;
  }
  for (const xml::Element* b = element.child("backingStore"); b != nullptr; b = b->child("backingStore")) {
    const xml::Element* source = b->child("source");
    if (source == nullptr) break;
    disk.backing_files.push_back(source_of(*source, source_type_of(*b)));
  }
  return disk;
}

std::optional<uint64_t> unit_bytes(std::string_view unit) {
  constexpr std::array<std::pair<std::string_view, uint64_t>, 21> kUnits = {{
      {"b", 1},
      {"bytes", 1},
      {"KB", 1000},
      {"k", uint64_t{1} << 10},
      {"K", uint64_t{1} << 10},
      {"KiB", uint64_t{1} << 10},
      {"MB", 1000 * 1000},
      {"M", uint64_t{1} << 20},
      {"m", uint64_t{1} << 20},
      {"MiB", uint64_t{1} << 20},
      {"GB", 1000 * 1000 * 1000},
      {"G", uint64_t{1} << 30},
      {"g", uint64_t{1} << 30},
      {"GiB", uint64_t{1} << 30},
      {"TB", uint64_t{1000} * 1000 * 1000 * 1000},
      {"T", uint64_t{1} << 40},
      {"t", uint64_t{1} << 40},
      {"TiB", uint64_t{1} << 40},
      {"PiB", uint64_t{1} << 50},
      {"EiB", uint64_t{1} << 60},
      {"byte", 1},
  }};
  for (const auto& [name, bytes] : kUnits) {
    if (unit == name) return bytes;
  }
  return std::nullopt;
}

std::string_view trimmed(std::string_view text) {
  const size_t start = text.find_first_not_of(" \t\r\n");
  if (start == std::string_view::npos) return {};
  return text.substr(start, text.find_last_not_of(" \t\r\n") + 1 - start);
}

std::optional<uint64_t> number(std::string_view text) {
  text = trimmed(text);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// vda … vdz, vdaa … vdzz, as the kernel and libvirt count.
std::string disk_target(size_t index) {
  std::string letters;
  for (size_t n = index + 1; n > 0; n = (n - 1) / 26) {
    letters.insert(letters.begin(), static_cast<char>('a' + (n - 1) % 26));
  }
  return "vd" + letters;
}

// What libvirt writes behind "virsh edit " in its comment: the name, unless a shell or an XML comment would stumble
// over it; the uuid then.
std::string edit_argument(const std::string& name, const std::string& uuid) {
  const bool safe = name.find_first_of("\r\t\n !\"#$&'()*;<>?[\\]^`{|}~") == std::string::npos &&
                    name.find("--") == std::string::npos;
  return safe ? name : uuid;
}

xml::Element element_with(const char* name, const std::string& text) {
  xml::Element element(name);
  element.set_text(text);
  return element;
}

}  // namespace

const char* name_of(DiskDevice device) {
  for (const auto& [name, value] : kDevices) {
    if (value == device) return name;
  }
  return "disk";
}

const char* name_of(DiskSourceType type) {
  for (const auto& [name, value] : kSourceTypes) {
    if (value == type) return name;
  }
  return "other";
}

const char* name_of(SnapshotMode mode) {
  for (const auto& [name, value] : kSnapshotModes) {
    if (value == mode) return name;
  }
  return "default";
}

std::optional<SnapshotMode> snapshot_mode_from(std::string_view text) {
  for (const auto& [name, value] : kSnapshotModes) {
    if (text == name) return value;
  }
  return std::nullopt;
}

bool Disk::in_snapshots_by_default() const {
  return snapshot != SnapshotMode::kNo && !readonly && !source.empty();
}

std::string new_uuid() {
  std::array<unsigned char, 16> bytes{};
  CHECK(::getrandom(bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  bytes[6] = static_cast<unsigned char>((bytes[6] & 0x0F) | 0x40);  // version 4
  bytes[8] = static_cast<unsigned char>((bytes[8] & 0x3F) | 0x80);  // variant of RFC 4122
  std::string uuid;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) uuid += '-';
    uuid += fmt::format("{:02x}", bytes[i]);
  }
  return uuid;
}

Result<DomainDocument> DomainDocument::parse(std::string_view text, const std::string& document_name) {
  DomainDocument domain(TRY(xml::Document::parse(text, document_name)));
  TRY(domain.refresh());
  return domain;
}

Result<DomainDocument> DomainDocument::load(const std::string& path) {
  DomainDocument domain(TRY(xml::Document::load(path)));
  TRY(domain.refresh());
  return domain;
}

Result<DomainDocument> DomainDocument::from_element(xml::Element root, const std::string& document_name) {
  DomainDocument domain(xml::Document(std::move(root), document_name));
  TRY(domain.refresh());
  return domain;
}

Result<void> DomainDocument::refresh() {
  const xml::Element& root = document_.root();
  const std::string& document = document_.name();
  if (root.name() != "domain") {
    return wrong(document, root.line(), "the document is a <" + root.name() + ">, not a <domain>");
  }
  const xml::Element* name = root.child("name");
  if (name == nullptr) return wrong(document, root.line(), "the domain has no <name>");
  if (!is_file_name(name->text())) {
    return wrong(document, name->line(), "the domain's name is empty, too long, or no name of a file");
  }
  std::vector<Disk> disks;
  std::set<std::string> targets;
  if (const xml::Element* devices = root.child("devices")) {
    for (const xml::Element* element : devices->children("disk")) {
      disks.push_back(TRY(read_disk(*element, document)));
      if (!targets.insert(disks.back().target).second) {
        return wrong(document, element->line(), "two disks have the target " + disks.back().target);
      }
    }
  }
  disks_ = std::move(disks);
  return {};
}

Result<DomainDocument> DomainDocument::create(const NewDomain& spec) {
  TRY(check_domain_name(spec.name));
  if (spec.disks.size() > size_t{26} * 27) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("a domain cannot have {} disks", spec.disks.size()));
  }
  xml::Element root("domain");
  root.set_attribute("type", spec.type);
  root.append(element_with("name", spec.name));
  root.append(element_with("uuid", spec.uuid));
  const std::string kib = std::to_string(div_round_up(spec.memory_bytes, 1024));
  root.append(element_with("memory", kib)).set_attribute("unit", "KiB");
  root.append(element_with("currentMemory", kib)).set_attribute("unit", "KiB");
  root.append(element_with("vcpu", std::to_string(spec.vcpus))).set_attribute("placement", "static");
  xml::Element& os = root.append(xml::Element("os"));
  xml::Element& type = os.append(element_with("type", "hvm"));
  type.set_attribute("arch", "x86_64");
  if (!spec.machine.empty()) type.set_attribute("machine", spec.machine);
  os.append(xml::Element("boot")).set_attribute("dev", "hd");
  xml::Element& features = root.append(xml::Element("features"));
  features.append(xml::Element("acpi"));
  features.append(xml::Element("apic"));
  root.append(xml::Element("clock")).set_attribute("offset", "utc");
  root.append(element_with("on_poweroff", "destroy"));
  root.append(element_with("on_reboot", "restart"));
  root.append(element_with("on_crash", "destroy"));
  xml::Element& devices = root.append(xml::Element("devices"));
  for (size_t i = 0; i < spec.disks.size(); ++i) {
    xml::Element& disk = devices.append(xml::Element("disk"));
    disk.set_attribute("type", "file");
    disk.set_attribute("device", "disk");
    xml::Element& driver = disk.append(xml::Element("driver"));
    driver.set_attribute("name", "qemu");
    driver.set_attribute("type", spec.disks[i].format);
    disk.append(xml::Element("source")).set_attribute("file", spec.disks[i].source);
    xml::Element& target = disk.append(xml::Element("target"));
    target.set_attribute("dev", disk_target(i));
    target.set_attribute("bus", "virtio");
  }
  xml::Element& serial = devices.append(xml::Element("serial"));
  serial.set_attribute("type", "pty");
  serial.append(xml::Element("target")).set_attribute("port", "0");
  xml::Element& console = devices.append(xml::Element("console"));
  console.set_attribute("type", "pty");
  xml::Element& console_target = console.append(xml::Element("target"));
  console_target.set_attribute("type", "serial");
  console_target.set_attribute("port", "0");
  return from_element(std::move(root), "the definition of " + spec.name);
}

std::string DomainDocument::name() const {
  return document_.root().child_text("name").value_or("");
}
std::string DomainDocument::uuid() const {
  return std::string(trimmed(document_.root().child_text("uuid").value_or("")));
}
std::string DomainDocument::title() const {
  return document_.root().child_text("title").value_or("");
}
std::string DomainDocument::description() const {
  return document_.root().child_text("description").value_or("");
}
std::string DomainDocument::type() const {
  return document_.root().attribute("type").value_or("");
}

std::string DomainDocument::machine() const {
  const xml::Element* type = document_.root().find("os/type");
  return type == nullptr ? "" : type->attribute("machine").value_or("");
}

std::string DomainDocument::arch() const {
  const xml::Element* type = document_.root().find("os/type");
  return type == nullptr ? "" : type->attribute("arch").value_or("");
}

std::optional<uint64_t> DomainDocument::memory_bytes() const {
  const xml::Element* memory = document_.root().child("memory");
  if (memory == nullptr) return std::nullopt;
  const auto unit = unit_bytes(memory->attribute("unit").value_or("KiB"));
  const auto value = number(memory->text());
  if (!unit || !value) return std::nullopt;
  return checked_mul(*value, *unit);
}

unsigned DomainDocument::vcpus() const {
  const auto value = number(document_.root().child_text("vcpu").value_or(""));
  return value && *value <= std::numeric_limits<unsigned>::max() ? static_cast<unsigned>(*value) : 1;
}

bool DomainDocument::firmware_is_uefi() const {
  const xml::Element* os = document_.root().child("os");
  if (os == nullptr) return false;
  if (os->attribute("firmware") == "efi") return true;
  const xml::Element* loader = os->child("loader");
  return loader != nullptr && loader->attribute("type") == "pflash";
}

std::optional<std::string> DomainDocument::nvram_path() const {
  const xml::Element* nvram = document_.root().find("os/nvram");
  if (nvram == nullptr) return std::nullopt;
  // Since libvirt 8.5 it may also be a <source>, like a disk's.
  if (const xml::Element* source = nvram->child("source")) return source->attribute("file");
  std::string path(trimmed(nvram->text()));
  if (path.empty()) return std::nullopt;
  return path;
}

const Disk* DomainDocument::disk(std::string_view target) const {
  const auto at = std::find_if(disks_.begin(), disks_.end(), [&](const Disk& disk) { return disk.target == target; });
  return at == disks_.end() ? nullptr : &*at;
}

Result<void> DomainDocument::set_name(const std::string& name) {
  TRY(check_domain_name(name));
  document_.root().child("name")->set_text(name);
  return {};
}

void DomainDocument::set_uuid(const std::string& uuid) {
  xml::Element& root = document_.root();
  if (xml::Element* element = root.child("uuid")) {
    element->set_text(uuid);
  } else {
    root.insert_after(*root.child("name"), element_with("uuid", uuid));
  }
}

Result<void> DomainDocument::set_disk_source(std::string_view target, const std::string& path) {
  xml::Element* devices = document_.root().child("devices");
  const Disk* known = disk(target);
  if (known == nullptr || devices == nullptr) {
    return make_error(ErrorKind::kNotFound, fmt::format("'{}' has no disk {}", name(), target));
  }
  const char* attribute = path_attribute(known->source_type);
  if (attribute == nullptr) {
    return make_error(ErrorKind::kUnsupported, fmt::format("disk {} of '{}' is a {}, which has no path to change",
                                                           target, name(), name_of(known->source_type)));
  }
  for (xml::Element* element : devices->children("disk")) {
    xml::Element* target_element = element->child("target");
    if (target_element == nullptr || target_element->attribute("dev") != target) continue;
    xml::Element* source = element->child("source");
    if (source == nullptr) source = &element->insert_before(*target_element, xml::Element("source"));
    source->set_attribute(attribute, path);
  }
  return refresh();
}

void DomainDocument::set_nvram_path(const std::string& path) {
  xml::Element* nvram = document_.root().find("os/nvram");
  if (nvram == nullptr) return;
  if (xml::Element* source = nvram->child("source")) {
    source->set_attribute("file", path);
  } else {
    nvram->set_text(path);
  }
}

std::string DomainDocument::to_xml() const {
  return document_.root().to_string() + "\n";
}

std::string DomainDocument::to_file() const {
  xml::Document file = document_;
  file.set_prolog(xml::with_libvirt_prolog(file.prolog(), "edit " + edit_argument(name(), uuid())));
  return file.to_string();
}

}  // namespace varve
