#include "transfer/transfer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>

#include "base/atomic_file.h"
#include "base/paths.h"
#include "base/units.h"
#include "host/image_needs.h"
#include "operation/define_domain.h"
#include "operation/disk_selection.h"
#include "operation/undefine_domain.h"
#include "store/journal.h"
#include "store/write_access.h"
#include "transfer/checksum.h"
#include "transfer/copied_file.h"
#include "transfer/file_copy.h"
#include "transfer/manifest_check.h"

namespace varve {

namespace {

const char* verb(TransferPurpose purpose) {
  switch (purpose) {
    case TransferPurpose::kMove:
      return "move";
    case TransferPurpose::kExport:
      return "export";
    case TransferPurpose::kImport:
      break;
  }
  return "import";
}

std::string failure_of(const TransferRequest& request) {
  return fmt::format("domain '{}' is not {}{}", request.domain, verb(request.purpose),
                     request.purpose == TransferPurpose::kMove ? "d" : "ed");
}

// Two ways to the same definitions: then their lock is the same, too.
bool is_same_host(const Host& one, const Host& other) {
  const auto here = one.layout().resolve(Layout::definitions_directory());
  const auto there = other.layout().resolve(Layout::definitions_directory());
  return &one == &other || (here && there && *here == *there);
}

}  // namespace

class Transfer::Work {
 public:
  Work(Host& source, Host& target, TransferRequest request)
      : source_(source),
        target_(target),
        request_(std::move(request)),
        is_relocation_(&source == &target),
        state_file_(target.layout(), request_.domain),
        preflight_(failure_of(request_)) {}

  Result<void> prepare();
  Plan& plan() { return operation_->plan(); }
  Result<void> run(const Watch& watch);
  Result<Manifest> manifest(int64_t now_sec) const;
  Result<void> finish() const { return state_file_.remove(); }
  Result<std::vector<std::string>> remove_source();

 private:
  Result<void> lock();
  Result<void> check_source();
  Result<void> check_target(const DomainDocument& moved);
  void expect_what_was_planned();
  Result<bool> is_defined_there() const;
  void check_removal();
  bool is_going(const MachineFile& file) const;
  bool is_source(const std::string& path) const;
  void describe(const std::vector<FileChange>& documents);

  TransferredFile* whole(const PlacedFile& placed);
  Result<void> drop_leftovers();
  Result<void> copy(const PlacedFile& placed, const Watch& watch);
  Result<bool> take(const PlacedFile& placed, const Watch& watch);
  Result<void> compare_with_manifest(const PlacedFile& placed, const std::string& checksum) const;
  Result<void> verify(const PlacedFile& placed, const Watch& watch);
  Result<void> settle(const PlacedFile& placed);
  Result<void> work(const Watch& watch);
  Result<void> advance(const Watch& watch, uint64_t done) const;
  CopyObserver observer_of(Checksum& checksum, const Watch& watch) const;
  // A manifest's has to be anybody's.
  ChecksumKind kind() const {
    return request_.purpose == TransferPurpose::kMove ? ChecksumKind::kWithoutZeroes : ChecksumKind::kSha256;
  }

  Host& source_;
  Host& target_;
  TransferRequest request_;
  bool is_relocation_;
  bool is_continued_ = false;   // the state is of an earlier attempt of this transfer
  bool is_committing_ = false;  // from now on the operation's errors say how things are
  bool is_defined_ = false;     // on the receiving host, by an earlier attempt
  TransferStateFile state_file_;
  TransferState state_;
  Preflight preflight_;
  std::optional<DomainLock> source_lock_;  // not where it is the operation's
  std::optional<DomainDocument> definition_;
  std::optional<Operation> operation_;
  Inventory inventory_;
  Placement placement_;
  std::vector<FileChange> documents_;
  std::map<std::string, ImageNeed> needed_;  // of the source, by other domains
  std::string documents_checksum_;           // of the source's
  uint64_t total_ = 0;                       // bytes of progress
  uint64_t before_ = 0;                      // of it, by files that are done
};

Result<void> Transfer::Work::lock() {
  const DomainLock::Mode mode = is_relocation_ ? DomainLock::Mode::kExclusive : DomainLock::Mode::kShared;
  LockedDomain domain = TRY(source_.open_domain(request_.domain, mode));
  definition_ = std::move(domain.definition);
  if (!is_relocation_) source_lock_ = std::move(domain.lock);
  DomainLock lock =
      is_relocation_ ? std::move(domain.lock) : TRY(target_.lock(request_.domain, DomainLock::Mode::kExclusive));
  operation_.emplace(target_, std::move(lock), request_.domain,
                     fmt::format("{} '{}'", verb(request_.purpose), request_.domain), failure_of(request_));
  operation_->set_command(request_.command);
  operation_->set_uuid(definition_->uuid());
  return {};
}

Result<void> Transfer::Work::check_source() {
  check_at_rest(source_, request_.domain, preflight_);
  inventory_ = TRY(take_inventory(source_, *definition_, preflight_));
  needed_ = TRY(images_needed(source_, request_.domain));
  return {};
}

Result<void> Transfer::Work::check_target(const DomainDocument& moved) {
  if (is_relocation_) return {};
  if (TRY(target_.definitions().exists(request_.domain))) {
    const DomainDocument present = TRY(target_.definitions().load(request_.domain));
    if (!is_defined_) {
      preflight_.refuse(make_error(ErrorKind::kAlreadyExists, fmt::format("there is a domain of that name, with the "
                                                                          "UUID {}",
                                                                          present.uuid()))
                            .with_note(fmt::format("`varve vm undefine '{}'` there makes room, if it is not needed",
                                                   request_.domain)));
    }
  }
  check_uuid(target_, moved, preflight_, "one of the two has to be undefined: a UUID belongs to one machine");
  const std::vector<std::string> names = TRY(target_.metadata().names(request_.domain));
  if (!names.empty() && !is_defined_) {
    preflight_.refuse(
        make_error(ErrorKind::kAlreadyExists,
                   fmt::format("there are snapshots of a domain of that name: {}", list_of(names)))
            .with_note(fmt::format("`varve vm recover '{}'` there shows whose they are", request_.domain)));
  }
  return {};
}

// That the source can go in the end.
void Transfer::Work::check_removal() {
  refuse_checkpoints(source_, request_.domain, preflight_);
  WriteAccess access(source_.layout());
  const std::string definition = Layout::definition(request_.domain);
  if (source_.writer().writes_file(definition)) {
    preflight_.accept(access.check(definition, FileFate::kDocumentRemoved));
  }
  for (const MachineFile& file : inventory_.files) {
    if (is_going(file)) preflight_.accept(access.check(file.path, FileFate::kImageRemoved));
  }
}

// With the source. What is known as a backing file only may be others' whose images can't be looked into now.
bool Transfer::Work::is_going(const MachineFile& file) const {
  return file.is_removable && file.role != FileRole::kBackingImage && !needed_.contains(file.host_path);
}

void Transfer::Work::describe(const std::vector<FileChange>& documents) {
  Plan& plan = operation_->plan();
  for (const PlacedFile& placed : placement_.files) {
    plan.steps.push_back(fmt::format("copy {} to {} ({}, {} of data)", source_.layout().shown(placed.file->path),
                                     target_.layout().shown(placed.path), name_of(placed.file->role),
                                     format_size(placed.file->data_bytes)));
    if (!placed.backing_name.empty()) {
      plan.steps.push_back(fmt::format("let the copy stand on '{}'", placed.backing_name));
    }
  }
  if (request_.verifies) plan.steps.emplace_back("read the copies back, and compare their checksums");
  if (!is_relocation_) {
    plan.steps.push_back(fmt::format("define '{}' on {}, with {} snapshot{}", request_.domain, target_.layout().root(),
                                     inventory_.snapshots.size(), inventory_.snapshots.size() == 1 ? "" : "s"));
    operation_->add(documents, std::vector<std::string>{});
  } else {
    operation_->add(documents, std::vector<std::string>{fmt::format(
                                   "write the new paths into the definition and into the snapshots that name old ones "
                                   "({} document{})",
                                   documents.size(), documents.size() == 1 ? "" : "s")});
    for (const PlacedFile& placed : placement_.files) operation_->remove_image(placed.file->path);
  }
  plan.notes.insert(plan.notes.end(), inventory_.notes.begin(), inventory_.notes.end());
  const bool any_elsewhere =
      std::ranges::any_of(placement_.moved, [](const auto& moved) { return moved.first != moved.second; });
  if (inventory_.has_memory_files && any_elsewhere) {
    plan.notes.emplace_back("files with the memory of a snapshot hold the definition of that time, with the old paths");
  }
}

// Asked right before the record is written: the copies took their time.
void Transfer::Work::expect_what_was_planned() {
  operation_->expect([this]() -> Result<void> {
    if (request_.takes_files) return {};
    for (const MachineFile& file : inventory_.files) TRY(check_unchanged(file));
    return {};
  });
  if (!is_relocation_) return;
  operation_->expect_definition(*definition_);
  operation_->expect([this]() -> Result<void> {
    const auto needed = TRY(images_needed(source_, request_.domain));
    for (const PlacedFile& placed : placement_.files) {
      const auto need = needed.find(placed.file->host_path);
      if (need == needed.end()) continue;
      return make_error(ErrorKind::kInUse,
                        fmt::format("domain '{}' needs {} by now", need->second.domain, placed.file->path))
          .with_note("give the command again, and it stays");
    }
    if (TRY(source_.state(request_.domain)) != DomainState::kShutOff) {
      return make_error(ErrorKind::kInUse, fmt::format("somebody has started '{}' meanwhile", request_.domain));
    }
    // What is removed must not be open. Nobody could use it until now.
    for (MachineFile& file : inventory_.files) file.file.reset();
    return {};
  });
}

Result<void> Transfer::Work::prepare() {
  if (!is_relocation_ && is_same_host(source_, target_)) {
    return make_error(ErrorKind::kInvalidArgument, fmt::format("'{}' is on that host already", request_.domain))
        .with_note("`--to DIRECTORY` moves its images to another directory");
  }
  if (is_relocation_) TRY(source_.check_writable());
  TRY(target_.check_writable());
  TRY(source_.check_images_are_here());
  TRY(target_.check_images_are_here());
  TRY(lock());
  TRY(check_source());
  state_ = TRY(state_file_.load());
  is_continued_ = state_.purpose == verb(request_.purpose) && state_.uuid == definition_->uuid();
  const std::set<std::string> staying =
      is_relocation_ ? files_that_stay(inventory_, request_.images_directory, needed_, operation_->plan())
                     : std::set<std::string>();
  placement_ = place(inventory_, target_, request_.images_directory,
                     [&](const MachineFile& file) { return staying.contains(file.path); });
  if (is_relocation_ && placement_.files.empty()) {
    preflight_.refuse(
        make_error(ErrorKind::kRefused, fmt::format("none of its files has to move to {}", request_.images_directory))
            .with_note(fmt::format("`varve where '{}'` shows where they are", request_.domain)));
  }
  const MovedDocuments moved = TRY(move_documents(*definition_, inventory_, placement_));
  std::string texts = definition_->to_file();
  for (const SnapshotDocument& snapshot : inventory_.snapshots) texts += snapshot.to_file();
  documents_checksum_ = TRY(checksum_of(texts));
  is_defined_ = TRY(is_defined_there());
  TRY(check_target(moved.definition));
  if (request_.manifest) {
    check_manifest(*request_.manifest, source_.layout(), inventory_, preflight_, operation_->plan());
  }
  if (request_.purpose == TransferPurpose::kMove && !is_relocation_) check_removal();

  if (!is_relocation_ || moved.definition.to_file() != definition_->to_file()) {
    documents_.push_back(target_.definitions().saving(moved.definition));
  }
  for (size_t i = 0; i < moved.snapshots.size(); ++i) {
    if (is_relocation_ && moved.snapshots[i].to_file() == inventory_.snapshots[i].to_file()) continue;
    documents_.push_back(target_.metadata().saving(request_.domain, moved.snapshots[i]));
  }
  for (PlacedFile& placed : placement_.files) {
    struct stat status;
    const auto directory = target_.layout().nearest_existing(placed.path);
    placed.is_renamed = request_.takes_files && directory && ::stat(directory->c_str(), &status) == 0 &&
                        status.st_dev == placed.file->stamp.device;
  }
  if (!is_defined_ && !state_.files.empty()) TRY(check_not_needed(placement_, target_, preflight_));
  check_place(placement_, documents_, target_, state_, preflight_);
  TRY(std::move(preflight_).finish());
  describe(documents_);
  expect_what_was_planned();
  for (const PlacedFile& placed : placement_.files) total_ += placed.file->stamp.size * (request_.verifies ? 2 : 1);
  return operation_->check();
}

// Of an earlier attempt whose source is the same still.
TransferredFile* Transfer::Work::whole(const PlacedFile& placed) {
  TransferredFile* known = state_.find(placed.path);
  if (known == nullptr || known->source_path != placed.file->path || !known->source.same_state_as(placed.file->stamp)) {
    return nullptr;
  }
  if (!compare_with_manifest(placed, known->checksum)) return nullptr;
  const Layout& layout = target_.layout();
  const bool is_there =
      is_copied_file(layout, part_path(placed.path), *known) || is_copied_file(layout, placed.path, *known);
  return is_there ? known : nullptr;
}

bool Transfer::Work::is_source(const std::string& path) const {
  return std::ranges::find(inventory_.files, path, &MachineFile::host_path) != inventory_.files.end();
}

// What an earlier attempt began that put its files elsewhere. One that came to its end may have left its state: then
// its files are some domain's by now.
Result<void> Transfer::Work::drop_leftovers() {
  const auto is_planned = [&](const TransferredFile& file) {
    return is_continued_ && std::ranges::count(placement_.files, file.path, &PlacedFile::path) > 0;
  };
  const auto needed = TRY(images_needed(target_, ""));
  for (const TransferredFile& file : state_.files) {
    if (is_planned(file)) continue;
    if (const auto part = target_.layout().resolve(part_path(file.path))) TRY(remove_file_durably(*part));
    const auto there = target_.layout().resolve(file.path);
    if (!there || needed.contains(*there) || is_source(*there)) continue;
    if (!is_copied_file(target_.layout(), file.path, file)) continue;
    TRY(remove_file_durably(*there));
  }
  std::erase_if(state_.files, [&](const TransferredFile& file) { return !is_planned(file); });
  state_.purpose = verb(request_.purpose);
  state_.uuid = definition_->uuid();
  state_.documents.clear();
  return state_file_.save(state_);
}

// An earlier attempt of this transfer has come so far that only what comes after it is left.
Result<bool> Transfer::Work::is_defined_there() const {
  if (is_relocation_ || !is_continued_ || state_.documents != documents_checksum_) return false;
  if (!TRY(target_.definitions().exists(request_.domain))) return false;
  if (TRY(target_.definitions().load(request_.domain)).uuid() != definition_->uuid()) return false;
  for (const PlacedFile& placed : placement_.files) {
    const auto entry = std::ranges::find(state_.files, placed.path, &TransferredFile::path);
    if (entry == state_.files.end() || !entry->source.same_state_as(placed.file->stamp)) return false;
    if (!is_copied_file(target_.layout(), placed.path, *entry)) return false;
  }
  for (const SnapshotDocument& snapshot : inventory_.snapshots) {
    if (!TRY(target_.metadata().exists(request_.domain, snapshot.name()))) return false;
  }
  return true;
}

Result<void> Transfer::Work::advance(const Watch& watch, uint64_t done) const {
  if (watch.progress) watch.progress(before_ + done, total_);
  if (!watch.cancelled || !watch.cancelled()) return {};
  return make_error(ErrorKind::kInterrupted, "it was stopped");
}

CopyObserver Transfer::Work::observer_of(Checksum& checksum, const Watch& watch) const {
  return {.bytes = [&checksum](std::span<const std::byte> bytes) { checksum.add(bytes); },
          .zeroes = [&checksum](uint64_t length) { checksum.add_zeroes(length); },
          .progress = [this, &watch](uint64_t done) { return advance(watch, done); }};
}

Result<void> Transfer::Work::copy(const PlacedFile& placed, const Watch& watch) {
  target_.journal().step(fmt::format("copy {}", placed.path));
  TransferredFile* entry = state_.find(placed.path);
  // An earlier attempt came so far as to give a copy its name, and the source is another one by now.
  if (entry != nullptr && is_copied_file(target_.layout(), placed.path, *entry)) {
    const std::string old = TRY(target_.layout().resolve(placed.path));
    if (is_source(old)) return make_error(ErrorKind::kInternal, fmt::format("{} would be copied onto itself", old));
    TRY(remove_file_durably(old));
  }
  if (entry == nullptr) entry = &state_.files.emplace_back();
  *entry = {.path = placed.path,
            .source_path = placed.file->path,
            .source = placed.file->stamp,
            .is_whole = false,
            .checksum = {},
            .copied = {},
            .is_settled = false};
  // Said before the file is made: what bears this name from now on is this transfer's.
  TRY(state_file_.save(state_));
  if (request_.takes_files && TRY(take(placed, watch))) return {};
  FileDevice& source = *placed.file->file;
  CopiedFile copied =
      TRY(CopiedFile::open(target_.layout(), part_path(placed.path), is_relocation_ ? &source : nullptr));
  Checksum checksum = TRY(Checksum::begin(kind()));
  const CopyObserver observer = observer_of(checksum, watch);
  const CopyMethod method = TRY(copy_file(source, copied.file(), observer));
  if (!TRY(stamp_of(source)).same_state_as(placed.file->stamp)) {
    return make_error(ErrorKind::kInUse, fmt::format("{} was changed while it was read", source.name()))
        .with_note("somebody writes to it without QEMU's locks; stop that, and give the command again");
  }
  const bool wants_checksum = request_.purpose != TransferPurpose::kMove;
  if (method == CopyMethod::kSharedBlocks && wants_checksum) TRY(read_through(source, observer));
  if (method == CopyMethod::kBytes || wants_checksum) entry->checksum = TRY(checksum.finish());
  TRY(compare_with_manifest(placed, entry->checksum));
  entry->copied = TRY(copied.stamp());
  entry->is_whole = true;
  return state_file_.save(state_);
}

Result<void> Transfer::Work::compare_with_manifest(const PlacedFile& placed, const std::string& checksum) const {
  if (!request_.manifest || request_.manifest->find(placed.file->path)->sha256 == checksum) return {};
  Error error = make_error(ErrorKind::kCorrupt,
                           fmt::format("{} is not what the manifest says", source_.layout().shown(placed.file->path)));
  error.path = placed.file->path;
  return std::move(error).with_note("the export was changed or damaged after it was made; nothing was defined");
}

// False where it can't be renamed to its place: that is on another file system.
Result<bool> Transfer::Work::take(const PlacedFile& placed, const Watch& watch) {
  TRY(target_.layout().make_directories(directory_of(placed.path)));
  const std::string part = TRY(target_.layout().resolve_for_creation(part_path(placed.path)));
  const auto file = std::ranges::find(inventory_.files, placed.file->path, &MachineFile::path);
  Checksum checksum = TRY(Checksum::begin(kind()));
  TRY(read_through(*file->file, observer_of(checksum, watch)));
  TransferredFile& entry = *state_.find(placed.path);
  entry.checksum = TRY(checksum.finish());
  TRY(compare_with_manifest(placed, entry.checksum));
  if (::rename(file->host_path.c_str(), part.c_str()) != 0) return false;
  file->file.reset();  // and its lock
  CopiedFile taken = TRY(CopiedFile::open(target_.layout(), part_path(placed.path), nullptr));
  if (const auto& owner = target_.layout().new_file_owner()) {
    (void)!::fchown(taken.file().fd(), owner->user, owner->group);  // as for any file that is made there
  }
  entry.copied = TRY(taken.stamp());
  entry.is_whole = true;
  TRY(state_file_.save(state_));
  return true;
}

// From the disk, not from memory, as far as the system lets anybody ask for that.
Result<void> Transfer::Work::verify(const PlacedFile& placed, const Watch& watch) {
  const TransferredFile& entry = *state_.find(placed.path);
  if (entry.is_settled || entry.checksum.empty() || !is_copied_file(target_.layout(), part_path(placed.path), entry))
    return {};
  CopiedFile copied = TRY(CopiedFile::open(target_.layout(), part_path(placed.path), nullptr));
  ::posix_fadvise(copied.file().fd(), 0, 0, POSIX_FADV_DONTNEED);
  Checksum checksum = TRY(Checksum::begin(kind()));
  TRY(read_through(copied.file(), observer_of(checksum, watch)));
  if (TRY(checksum.finish()) == entry.checksum) return {};
  state_.find(placed.path)->is_whole = false;
  TRY(state_file_.save(state_));
  return make_error(ErrorKind::kIo, fmt::format("{} does not read back as it was written", copied.file().name()))
      .with_note("that disk, its cable or this machine's memory is not to be trusted; the source is as it was");
}

// Gives the copy its backing file's new name, and its own.
Result<void> Transfer::Work::settle(const PlacedFile& placed) {
  TransferredFile& entry = *state_.find(placed.path);
  if (!target_.layout().resolve(part_path(placed.path)) && is_copied_file(target_.layout(), placed.path, entry)) {
    return {};
  }
  target_.journal().step(fmt::format("settle {}", placed.path));
  if (const auto below = placement_.moved.find(placed.file->backing); below != placement_.moved.end()) {
    const std::string& name = placed.backing_name.empty() ? placed.file->recorded_backing : placed.backing_name;
    TRY(check_backing_name(target_.layout(), placed.path, name, below->second));
  }
  if (!placed.backing_name.empty() && !entry.is_settled) {
    entry.is_whole = false;  // neither what was read nor what it is to be, until the next line of the state
    TRY(state_file_.save(state_));
    CopiedFile copied = TRY(CopiedFile::open(target_.layout(), part_path(placed.path), nullptr));
    TRY(copied.change_backing_name(placed.backing_name));
    entry.copied = TRY(copied.stamp());
    if (request_.purpose == TransferPurpose::kExport) {
      const Watch unwatched;
      Checksum checksum = TRY(Checksum::begin(kind()));
      TRY(read_through(copied.file(), observer_of(checksum, unwatched)));
      entry.checksum = TRY(checksum.finish());
    }
    entry.is_whole = entry.is_settled = true;
    TRY(state_file_.save(state_));
  }
  const std::string part = TRY(target_.layout().resolve(part_path(placed.path)));
  return rename_new(part, TRY(target_.layout().resolve_for_creation(placed.path)));
}

Result<void> Transfer::Work::work(const Watch& watch) {
  if (is_defined_) return {};
  TRY(drop_leftovers());
  for (const PlacedFile& placed : placement_.files) {
    if (whole(placed) == nullptr) TRY(copy(placed, watch));
    before_ += placed.file->stamp.size;
  }
  for (const PlacedFile& placed : placement_.files) {
    if (!request_.verifies) break;
    TRY(verify(placed, watch));
    before_ += placed.file->stamp.size;
  }
  for (const PlacedFile& placed : placement_.files) TRY(settle(placed));
  state_.documents = documents_checksum_;
  TRY(state_file_.save(state_));
  is_committing_ = true;
  TRY(operation_->run());
  // As long as the state is there, the same command goes on with what its caller does next.
  if (!is_relocation_) return {};
  if (const auto removed = state_file_.remove(); !removed) {
    operation_->plan().notes.push_back(fmt::format("done, but for a note that is left: {}", removed.error().message));
  }
  return {};
}

Result<void> Transfer::Work::run(const Watch& watch) {
  auto worked = work(watch);
  if (worked) return {};
  const std::string failure = failure_of(request_);
  const bool says_so = worked.error().message.starts_with(failure);
  if (is_committing_) return std::move(worked).error();  // which says what is the case
  return (says_so ? std::move(worked).error() : std::move(worked).error().context(failure))
      .with_note("the source is as it was; the same command goes on with what is copied already");
}

Result<Manifest> Transfer::Work::manifest(int64_t now_sec) const {
  Manifest manifest{.domain = request_.domain, .uuid = definition_->uuid(), .created_sec = now_sec, .files = {}};
  for (const FileChange& document : documents_) {
    const bool is_definition = document.path == Layout::definition(request_.domain);
    const std::string text = TRY(read_file(TRY(target_.layout().resolve(document.path)), xml::kMaxDocumentSize));
    manifest.files.push_back({.path = document.path,
                              .role = is_definition ? FileRole::kDefinition : FileRole::kSnapshot,
                              .size_bytes = text.size(),
                              .sha256 = TRY(checksum_of(text))});
  }
  for (const PlacedFile& placed : placement_.files) {
    const auto entry = std::ranges::find(state_.files, placed.path, &TransferredFile::path);
    manifest.files.push_back(
        {.path = placed.path, .role = placed.file->role, .size_bytes = entry->copied.size, .sha256 = entry->checksum});
  }
  return manifest;
}

Result<std::vector<std::string>> Transfer::Work::remove_source() {
  UndefineDomainRequest request{.domain = request_.domain, .snapshots = true, .storage = true, .files = {}};
  for (MachineFile& file : inventory_.files) {
    file.file.reset();
    if (is_going(file)) request.files.push_back(file.path);
  }
  source_lock_.reset();
  Operation removal = TRY(plan_undefine_domain(source_, request));
  needed_ = TRY(images_needed(source_, request_.domain));
  removal.expect([this]() -> Result<void> {
    for (const MachineFile& file : inventory_.files) {
      if (is_going(file)) TRY(check_unchanged(file));
    }
    return {};
  });
  removal.expect_definition(*definition_);
  TRY(removal.check());
  TRY(removal.run());
  std::vector<std::string> notes = removal.plan().notes;
  for (const MachineFile& file : inventory_.files) {
    if (file.role != FileRole::kBackingImage) continue;
    notes.push_back(fmt::format("{} stays: other machines may stand on it; remove it if none does", file.path));
  }
  if (const auto removed = state_file_.remove(); !removed) {
    notes.push_back(fmt::format("done, but for a note that is left: {}", removed.error().message));
  }
  return notes;
}

Transfer::Transfer(std::unique_ptr<Work> work) : work_(std::move(work)) {}
Transfer::Transfer(Transfer&&) noexcept = default;
Transfer::~Transfer() = default;

Result<Transfer> Transfer::plan(Host& source, Host& target, TransferRequest request) {
  auto work = std::make_unique<Work>(source, target, std::move(request));
  TRY(work->prepare());
  return Transfer(std::move(work));
}

Plan& Transfer::plan() {
  return work_->plan();
}

Result<void> Transfer::run(const Watch& watch) {
  return work_->run(watch);
}

Result<Manifest> Transfer::manifest(int64_t now_sec) const {
  return work_->manifest(now_sec);
}

Result<void> Transfer::finish() {
  return work_->finish();
}

Result<std::vector<std::string>> Transfer::remove_source() {
  return work_->remove_source();
}

}  // namespace varve
