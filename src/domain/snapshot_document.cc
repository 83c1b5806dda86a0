#include "domain/snapshot_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>

#include "domain/names.h"

namespace varve {

namespace {

constexpr std::array<std::pair<const char*, SnapshotState>, 9> kStates = {{
    {"shutoff", SnapshotState::kShutoff},
    {"running", SnapshotState::kRunning},
    {"paused", SnapshotState::kPaused},
    {"blocked", SnapshotState::kBlocked},
    {"shutdown", SnapshotState::kShutdown},
    {"crashed", SnapshotState::kCrashed},
    {"pmsuspended", SnapshotState::kPmSuspended},
    {"nostate", SnapshotState::kNoState},
    {"disk-snapshot", SnapshotState::kDiskSnapshot},
}};

constexpr const char* kCreated = "created";

std::optional<SnapshotState> state_from(std::string_view text) {
  for (const auto& [name, value] : kStates) {
    if (text == name) return value;
  }
  return std::nullopt;
}

Error wrong(const std::string& document, int line, const std::string& why) {
  Error error = make_error(ErrorKind::kCorrupt, fmt::format("{}, line {}: {}", document, line, why));
  error.path = document;
  return error;
}

int64_t time_from(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

xml::Element element_with(const char* name, const std::string& text) {
  xml::Element element(name);
  element.set_text(text);
  return element;
}

// The URI that a prefix stands for, seen from the innermost of `scopes` (outermost first).
std::optional<std::string> namespace_of(std::string_view qualified_name,
                                        std::initializer_list<const xml::Element*> scopes) {
  const size_t colon = qualified_name.find(':');
  const std::string declaration =
      colon == std::string_view::npos ? "xmlns" : "xmlns:" + std::string(qualified_name.substr(0, colon));
  std::optional<std::string> uri;
  for (const xml::Element* scope : scopes) {
    if (scope == nullptr) continue;
    if (auto declared = scope->attribute(declaration)) uri = std::move(declared);
  }
  return uri;
}

// Varve's elements in a definition that may stand inside `outer` (nullptr: it stands alone).
std::vector<const xml::Element*> note_elements(const xml::Element* outer, const xml::Element& domain) {
  std::vector<const xml::Element*> found;
  const xml::Element* metadata = domain.child("metadata");
  if (metadata == nullptr) return found;
  for (const xml::Element* element : metadata->children()) {
    if (namespace_of(element->name(), {outer, &domain, metadata, element}) == kVarveNamespace) found.push_back(element);
  }
  return found;
}

void strip_notes(const xml::Element* outer, xml::Element& domain) {
  xml::Element* metadata = domain.child("metadata");
  if (metadata == nullptr) return;
  const auto notes = note_elements(outer, domain);
  if (notes.empty()) return;
  for (const xml::Element* element : notes) metadata->remove(*element);
  if (metadata->nodes().empty()) domain.remove(*metadata);
}

// Where libvirt puts <metadata>: behind what names and describes the domain.
xml::Element& metadata_in(xml::Element& domain) {
  if (xml::Element* metadata = domain.child("metadata")) return *metadata;
  static constexpr std::array<const char*, 5> kBefore = {"description", "title", "genid", "uuid", "name"};
  for (const char* name : kBefore) {
    if (const xml::Element* sibling = domain.child(name)) {
      return domain.insert_after(*sibling, xml::Element("metadata"));
    }
  }
  return domain.prepend(xml::Element("metadata"));
}

bool is_note_key(std::string_view key) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !key.empty() && letter(key.front()) && key != kCreated && !key.starts_with("xmlns") &&
         std::all_of(key.begin(), key.end(),
                     [&](char c) { return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '_'; });
}

Result<SnapshotDisk> disk_of(const Disk& disk, const NewSnapshot& spec) {
  const auto said =
      std::find_if(spec.disks.begin(), spec.disks.end(), [&](const SnapshotDisk& d) { return d.name == disk.target; });
  SnapshotDisk result;
  result.name = disk.target;
  if (said != spec.disks.end() && said->mode != SnapshotMode::kDefault) {
    result = *said;
  } else if (!disk.in_snapshots_by_default()) {
    result.mode = SnapshotMode::kNo;
  } else {
    result.mode = disk.snapshot == SnapshotMode::kDefault ? spec.default_mode : disk.snapshot;
    if (said != spec.disks.end()) {
      result.format = said->format;
      result.source = said->source;
      result.source_type = said->source_type;
    }
  }
  if (result.mode == SnapshotMode::kExternal && (result.source.empty() || result.format.empty())) {
    return make_error(ErrorKind::kInvalidArgument,
                      fmt::format("an external snapshot of disk {} needs a file and its format", disk.target));
  }
  return result;
}

void append_disk(xml::Element& disks, const SnapshotDisk& disk) {
  xml::Element& element = disks.append(xml::Element("disk"));
  element.set_attribute("name", disk.name);
  element.set_attribute("snapshot", name_of(disk.mode));
  if (disk.mode != SnapshotMode::kExternal) return;
  element.set_attribute("type", name_of(disk.source_type));
  element.append(xml::Element("driver")).set_attribute("type", disk.format);
  element.append(xml::Element("source"))
      .set_attribute(disk.source_type == DiskSourceType::kBlock ? "dev" : "file", disk.source);
}

}  // namespace

const char* name_of(SnapshotState state) {
  for (const auto& [name, value] : kStates) {
    if (value == state) return name;
  }
  return "nostate";
}

Result<SnapshotDocument> SnapshotDocument::checked(xml::Document document) {
  const xml::Element& root = document.root();
  if (root.name() != "domainsnapshot") {
    return wrong(document.name(), root.line(), "the document is a <" + root.name() + ">, not a <domainsnapshot>");
  }
  const xml::Element* name = root.child("name");
  if (name == nullptr) return wrong(document.name(), root.line(), "the snapshot has no <name>");
  if (!is_file_name(name->text())) {
    return wrong(document.name(), name->line(), "the snapshot's name is empty, too long, or no name of a file");
  }
  const xml::Element* state = root.child("state");
  if (state == nullptr) return wrong(document.name(), root.line(), "the snapshot has no <state>");
  if (!state_from(state->text())) {
    return wrong(document.name(), state->line(), "unknown snapshot state '" + state->text() + "'");
  }
  return SnapshotDocument(std::move(document));
}

Result<SnapshotDocument> SnapshotDocument::parse(std::string_view text, const std::string& document_name) {
  return checked(TRY(xml::Document::parse(text, document_name)));
}

Result<SnapshotDocument> SnapshotDocument::load(const std::string& path) {
  return checked(TRY(xml::Document::load(path)));
}

Result<SnapshotDocument> SnapshotDocument::create(const DomainDocument& definition, const NewSnapshot& spec) {
  TRY(check_snapshot_name(spec.name));
  std::set<std::string> named;
  for (const SnapshotDisk& disk : spec.disks) {
    if (definition.disk(disk.name) == nullptr) {
      return make_error(ErrorKind::kNotFound, fmt::format("'{}' has no disk {}", definition.name(), disk.name));
    }
    if (!named.insert(disk.name).second) {
      return make_error(ErrorKind::kInvalidArgument, fmt::format("disk {} is named twice", disk.name));
    }
  }

  xml::Element root("domainsnapshot");
  root.append(element_with("name", spec.name));
  if (!spec.description.empty()) root.append(element_with("description", spec.description));
  root.append(element_with("state", name_of(spec.state)));
  if (!spec.parent.empty()) root.append(xml::Element("parent")).append(element_with("name", spec.parent));
  root.append(element_with("creationTime", std::to_string(spec.creation_time)));
  xml::Element& memory = root.append(xml::Element("memory"));
  memory.set_attribute("snapshot", name_of(spec.memory.mode));
  if (spec.memory.mode == SnapshotMode::kExternal) memory.set_attribute("file", spec.memory.file);
  if (!definition.disks().empty()) {
    xml::Element& disks = root.append(xml::Element("disks"));
    for (const Disk& disk : definition.disks()) append_disk(disks, TRY(disk_of(disk, spec)));
  }
  xml::Element domain = definition.root();
  strip_notes(nullptr, domain);
  root.append(std::move(domain));
  root.append(element_with("active", spec.current ? "1" : "0"));

  SnapshotDocument snapshot(xml::Document(std::move(root), "the metadata of " + spec.name));
  for (const auto& [key, value] : spec.notes) TRY(snapshot.set_note(key, value));
  return snapshot;
}

std::string SnapshotDocument::name() const {
  return root().child_text("name").value_or("");
}
std::string SnapshotDocument::description() const {
  return root().child_text("description").value_or("");
}
std::string SnapshotDocument::parent() const {
  return root().child_text("parent/name").value_or("");
}
int64_t SnapshotDocument::creation_time() const {
  return time_from(root().child_text("creationTime").value_or(""));
}
const xml::Element* SnapshotDocument::cookie() const {
  return root().child("cookie");
}
bool SnapshotDocument::current() const {
  return time_from(root().child_text("active").value_or("")) != 0;
}

SnapshotState SnapshotDocument::state() const {
  return state_from(root().child_text("state").value_or("")).value_or(SnapshotState::kNoState);
}

SnapshotMemory SnapshotDocument::memory() const {
  SnapshotMemory memory;
  const SnapshotState at = state();
  const bool offline = at == SnapshotState::kShutoff || at == SnapshotState::kDiskSnapshot;
  const xml::Element* element = root().child("memory");
  // Documents from before libvirt 1.0.1 do not say.
  const std::string mode = element == nullptr ? "" : element->attribute("snapshot").value_or("");
  memory.mode = snapshot_mode_from(mode).value_or(offline ? SnapshotMode::kNo : SnapshotMode::kInternal);
  if (element != nullptr) memory.file = element->attribute("file").value_or("");
  return memory;
}

std::vector<SnapshotDisk> SnapshotDocument::disks() const {
  std::vector<SnapshotDisk> result;
  const xml::Element* disks = root().child("disks");
  if (disks == nullptr) return result;
  for (const xml::Element* element : disks->children("disk")) {
    SnapshotDisk disk;
    disk.name = element->attribute("name").value_or("");
    disk.mode = snapshot_mode_from(element->attribute("snapshot").value_or("")).value_or(SnapshotMode::kDefault);
    const std::string type = element->attribute("type").value_or("file");
    disk.source_type = type == "file"      ? DiskSourceType::kFile
                       : type == "block"   ? DiskSourceType::kBlock
                       : type == "network" ? DiskSourceType::kNetwork
                                           : DiskSourceType::kOther;
    if (const xml::Element* driver = element->child("driver")) disk.format = driver->attribute("type").value_or("");
    if (const xml::Element* source = element->child("source")) {
      disk.source = source->attribute(type == "block" ? "dev" : type == "network" ? "name" : "file").value_or("");
    }
    result.push_back(std::move(disk));
  }
  return result;
}

SnapshotSummary SnapshotDocument::summary() const {
  SnapshotSummary summary;
  summary.name = name();
  summary.parent = parent();
  summary.description = description();
  summary.state = state();
  summary.creation_time = creation_time();
  summary.current = current();
  summary.memory = memory().mode;
  const auto all_disks = disks();
  summary.has_external_disk = std::any_of(all_disks.begin(), all_disks.end(), [](const SnapshotDisk& disk) {
    return disk.mode == SnapshotMode::kExternal;
  });
  const auto own = notes();
  const auto is_set = [&](const char* key) {
    const auto at = own.find(key);
    return at != own.end() && at->second == "yes";
  };
  summary.safety = is_set("safety");
  summary.is_protected = is_set("protected");
  return summary;
}

Result<DomainDocument> SnapshotDocument::domain() const {
  const xml::Element* recorded = root().child("domain");
  if (recorded == nullptr) {
    return make_error(ErrorKind::kNotFound,
                      fmt::format("snapshot '{}' has no definition of its domain recorded", name()));
  }
  xml::Element domain = *recorded;
  strip_notes(&root(), domain);
  return DomainDocument::from_element(std::move(domain), document_.name());
}

Result<std::optional<DomainDocument>> SnapshotDocument::inactive_domain() const {
  const xml::Element* recorded = root().child("inactiveDomain");
  if (recorded == nullptr) return std::optional<DomainDocument>();
  xml::Element domain = *recorded;
  strip_notes(&root(), domain);
  domain.set_name("domain");
  return std::optional<DomainDocument>(TRY(DomainDocument::from_element(std::move(domain), document_.name())));
}

Result<void> SnapshotDocument::set_name(const std::string& name) {
  TRY(check_snapshot_name(name));
  root().child("name")->set_text(name);
  return {};
}

void SnapshotDocument::set_description(const std::string& description) {
  xml::Element* element = root().child("description");
  if (description.empty()) {
    if (element != nullptr) root().remove(*element);
  } else if (element != nullptr) {
    element->set_text(description);
  } else {
    root().insert_after(*root().child("name"), element_with("description", description));
  }
}

void SnapshotDocument::set_parent(const std::string& parent) {
  xml::Element* element = root().child("parent");
  if (parent.empty()) {
    if (element != nullptr) root().remove(*element);
    return;
  }
  if (element == nullptr) element = &root().insert_after(*root().child("state"), xml::Element("parent"));
  xml::Element* name = element->child("name");
  if (name == nullptr) name = &element->append(xml::Element("name"));
  name->set_text(parent);
}

void SnapshotDocument::set_current(bool current) {
  if (current == this->current() && root().child("active") != nullptr) return;
  xml::Element* element = root().child("active");
  if (element == nullptr) element = &root().append(xml::Element("active"));
  element->set_text(current ? "1" : "0");
}

Result<void> SnapshotDocument::leave_out_disk(const std::string& target) {
  if (root().child("disks") == nullptr) {  // of old libvirt: every disk that can be in it is
    const DomainDocument then = TRY(domain());
    xml::Element disks("disks");
    for (const Disk& disk : then.disks()) {
      const SnapshotMode mode = disk.in_snapshots_by_default() ? SnapshotMode::kInternal : SnapshotMode::kNo;
      append_disk(disks, {.name = disk.target, .mode = mode, .format = {}, .source = {}});
    }
    root().insert_before(*root().child("domain"), std::move(disks));
  }
  for (xml::Element* disk : root().child("disks")->children("disk")) {
    if (disk->attribute("name") != target) continue;
    xml::Element left_out("disk");
    left_out.set_attribute("name", target);
    left_out.set_attribute("snapshot", name_of(SnapshotMode::kNo));
    root().child("disks")->insert_before(*disk, std::move(left_out));
    root().child("disks")->remove(*disk);
    return {};
  }
  return make_error(ErrorKind::kNotFound, fmt::format("snapshot '{}' has no disk '{}'", name(), target));
}

void SnapshotDocument::set_domain(const DomainDocument& definition) {
  const auto kept = notes();
  xml::Element domain = definition.root();
  strip_notes(nullptr, domain);
  if (const xml::Element* old = root().child("domain")) {
    root().insert_before(*old, std::move(domain));
    root().remove(*old);
  } else {
    static constexpr std::array<const char*, 3> kAfter = {"inactiveDomain", "cookie", "active"};
    const auto next =
        std::find_if(kAfter.begin(), kAfter.end(), [&](const char* name) { return root().child(name) != nullptr; });
    if (next == kAfter.end()) {
      root().append(std::move(domain));
    } else {
      root().insert_before(*root().child(*next), std::move(domain));
    }
  }
  // There is a domain now, and the keys are ones that were read: this cannot fail.
  for (const auto& [key, value] : kept) CHECK(set_note(key, value).has_value());
}

const xml::Element* SnapshotDocument::own_notes() const {
  const xml::Element* domain = root().child("domain");
  if (domain == nullptr) return nullptr;
  for (const xml::Element* element : note_elements(&root(), *domain)) {
    const auto created = element->attribute(kCreated);
    if (created && time_from(*created) == creation_time()) return element;
  }
  return nullptr;
}

std::map<std::string, std::string> SnapshotDocument::notes() const {
  std::map<std::string, std::string> result;
  const xml::Element* element = own_notes();
  if (element == nullptr) return result;
  for (const xml::Attribute& attribute : element->attributes()) {
    if (is_note_key(attribute.name)) result[attribute.name] = element->attribute(attribute.name).value_or("");
  }
  return result;
}

std::optional<std::string> SnapshotDocument::note(const std::string& key) const {
  const xml::Element* element = own_notes();
  if (element == nullptr || !is_note_key(key)) return std::nullopt;
  return element->attribute(key);
}

Result<void> SnapshotDocument::set_note(const std::string& key, const std::optional<std::string>& value) {
  if (!is_note_key(key)) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' cannot be the key of a note", key));
  }
  xml::Element* domain = root().child("domain");
  if (domain == nullptr) {
    return make_error(
        ErrorKind::kUnsupported,
        fmt::format("snapshot '{}' has no definition of its domain recorded, and so no place for '{}'", name(), key));
  }
  auto* element = const_cast<xml::Element*>(own_notes());  // ours, through a const look-up
  if (element == nullptr) {
    if (!value) return {};
    strip_notes(&root(), *domain);  // another snapshot's: libvirtd keeps one element of a namespace only
    // Parsed, because what libvirtd carries along it writes with double quotes.
    const xml::Document fresh =
        TRY(xml::Document::parse(fmt::format("<{0}:snapshot xmlns:{0}=\"{1}\" {2}=\"{3}\"/>", kVarvePrefix,
                                             kVarveNamespace, kCreated, creation_time()),
                                 "note"));
    element = &metadata_in(*domain).append(fresh.root());
  }
  if (value) {
    element->set_attribute(key, *value);
    return {};
  }
  element->remove_attribute(key);
  if (notes().empty()) strip_notes(&root(), *domain);
  return {};
}

std::string SnapshotDocument::to_file() const {
  xml::Document file = document_;
  file.set_prolog(xml::with_libvirt_prolog(file.prolog(), "snapshot-edit"));
  return file.to_string();
}

std::string SnapshotDocument::to_xml() const {
  xml::Element copy = root();
  while (const xml::Element* active = copy.child("active")) copy.remove(*active);
  return copy.to_string() + "\n";
}

}  // namespace varve
