#include "operation/operation.h"

#include <fmt/format.h>

#include <algorithm>

#include "io/free_space.h"
#include "store/write_access.h"

namespace varve {

Operation::Operation(Host& host, DomainLock lock, std::string domain, std::string title, std::string failure)
    : host_(host), lock_(std::move(lock)), failure_(std::move(failure)) {
  plan_.title = std::move(title);
  record_.domain = std::move(domain);
  record_.operation = plan_.title;
}

void Operation::add(NewImage image) {
  plan_.steps.push_back(
      fmt::format("create the image {} ({}, {} bytes)", image.path, image.format, image.options.size));
  new_images_.push_back(std::move(image));
}

void Operation::add(DiskTask task) {
  for (const std::string& line : task.change.describe()) {
    plan_.steps.push_back(fmt::format("disk {}: {} in {}", task.disk.target(), line, task.disk.path()));
  }
  disks_.push_back(std::move(task));
}

void Operation::add(std::vector<FileChange> changes) {
  for (FileChange& change : changes) {
    plan_.steps.push_back(fmt::format("{}{} {}", host_.writer().writes_file(change.path) ? "" : "have libvirtd ",
                                      change.contents ? "write" : "remove", change.path));
    record_.changes.push_back(std::move(change));
  }
}

void Operation::add(std::vector<FileChange> changes, std::vector<std::string> steps) {
  for (std::string& step : steps) plan_.steps.push_back(std::move(step));
  for (FileChange& change : changes) record_.changes.push_back(std::move(change));
}

void Operation::add(ImageRepair repair) {
  plan_.steps.push_back(repair.describe());
  repairs_.push_back(std::move(repair));
}

void Operation::remove_image(const std::string& root_path) {
  plan_.steps.push_back(fmt::format("remove the image {}", root_path));
  record_.removed_images.push_back(root_path);
}

void Operation::remove_directory(const std::string& root_path) {
  record_.removed_directories.push_back(root_path);
}

void Operation::delegate(std::string step, std::function<Result<void>(const Watch&)> work, Need need) {
  plan_.steps.push_back(step);
  delegated_.push_back({.step = std::move(step), .work = std::move(work), .need = need});
}

void Operation::expect_definition(const DomainDocument& definition) {
  set_uuid(definition.uuid());
  expect([host = &host_, domain = record_.domain, text = definition.to_xml()]() -> Result<void> {
    if (TRY(host->definitions().load(domain)).to_xml() == text) return {};
    return make_error(ErrorKind::kInUse,
                      fmt::format("somebody else has changed the definition of '{}' meanwhile", domain))
        .with_note("look at it, then give the command again");
  });
}

Result<void> Operation::check() {
  if (!delegated_.empty()) return {};
  Preflight preflight(failure_);
  WriteAccess access(host_.layout());
  preflight.accept(access.check(Journal::record_path(record_.domain), FileFate::kDocumentReplaced));
  for (const FileChange& change : record_.changes) {
    if (!host_.writer().writes_file(change.path)) continue;
    preflight.accept(
        access.check(change.path, change.contents ? FileFate::kDocumentReplaced : FileFate::kDocumentRemoved));
  }
  for (const std::string& path : record_.removed_images) preflight.accept(access.check(path, FileFate::kImageRemoved));
  for (const NewImage& image : new_images_) preflight.accept(access.check(image.path, FileFate::kImageMade));
  plan_.checks.emplace_back("all files and directories that change can be written");
  preflight.accept(check_space());
  plan_.checks.emplace_back("there is space for it");
  return std::move(preflight).finish();
}

// Lower bounds throughout, so that nothing is refused that would succeed; but an image's share is rehearsed where space
// is short only: its upper bound costs nothing.
Result<void> Operation::check_space() const {
  const Layout& layout = host_.layout();
  SpaceNeeds most;
  const auto add = [&](const std::string& root_path, uint64_t bytes) {
    if (const auto at = layout.nearest_existing(root_path)) most.add(*at, bytes);  // what is in the way, access says
  };
  uint64_t record = 0;
  uint64_t largest_replaced = 0;  // what is replaced goes as its successor comes: one at a time is there twice
  for (const FileChange& change : record_.changes) {
    if (!change.contents) continue;
    const uint64_t bytes = change.contents->size();
    record += bytes;
    if (!host_.writer().writes_file(change.path)) continue;
    if (layout.resolve(change.path)) {
      largest_replaced = std::max(largest_replaced, bytes);
    } else {
      add(change.path, bytes);
    }
  }
  add(Layout::journal_directory(), record + largest_replaced);
  for (const NewImage& image : new_images_) add(image.path, TRY(image.new_bytes()));
  SpaceNeeds least = most;
  for (const ImageRepair& repair : repairs_) {
    most.add(repair.file().name(), repair.new_bytes());
    least.add(repair.file(), repair.new_bytes());
  }
  for (const DiskTask& task : disks_) most.add(task.disk.host_path(), TRY(task.disk.most_new_bytes()));
  if (most.enough()) return {};
  for (const DiskTask& task : disks_) least.add(task.disk.file(), TRY(task.disk.new_bytes(task.change)));
  return least.check();
}

Result<void> Operation::run_delegated(const Watch& watch) {
  if (auto expected = check_expectations(); !expected) {
    return std::move(expected).error().context(failure_).with_note("nothing was changed");
  }
  std::vector<std::string> done;
  for (const auto& [step, work, need] : delegated_) {
    auto worked = work(watch);
    if (worked) {
      done.push_back(fmt::format("done before that: {}", step));
    } else if (need == Need::kBestEffort) {
      plan_.notes.push_back(fmt::format("not done: {}: {}", step, worked.error().message));
    } else {
      Error error = std::move(worked).error().context(failure_);
      for (std::string& line : done) error.notes.push_back(std::move(line));
      return error;
    }
  }
  return {};
}

Result<void> Operation::run(const Watch& watch) {
  if (!delegated_.empty()) return run_delegated(watch);
  if (auto mended = mend_images(); !mended) return std::move(mended).error().context(failure_);
  if (auto made = make_images(); !made) {
    return std::move(made).error().context(failure_).with_note("nothing was changed");
  }
  auto prepared = prepare();
  if (prepared) prepared = check_expectations();
  if (!prepared) {
    for (DiskTask& task : disks_) task.disk.abandon();
    return std::move(prepared).error().context(failure_).with_note("nothing was changed");
  }
  if (auto recorded = host_.journal().write(record_); !recorded) {
    // A record that could not be made durable may still be there, and then it counts; it goes before its images do.
    if (auto cleared = host_.journal().clear(record_.domain); !cleared) {
      return std::move(recorded).error().context(failure_).with_note(
          fmt::format("the next command on '{}' finishes it or undoes it", record_.domain));
    }
    for (DiskTask& task : disks_) task.disk.abandon();
    for (const NewImage& image : new_images_) image.unclaim(host_.layout());
    return std::move(recorded).error().context(failure_).with_note("nothing was changed");
  }
  if (auto completed = complete(); !completed) {
    return std::move(completed)
        .error()
        .context(plan_.title + " was begun, but is not complete")
        .with_note(fmt::format("the next command on '{}' goes on with it; the record is {}", record_.domain,
                               host_.journal().path_of(record_.domain)));
  }
  return refused_.empty() ? Result<void>() : Result<void>(after_refusal());
}

// Of what has images, everything else is done, and the images are what matters.
Error Operation::after_refusal() const {
  Error error = refused_.front();
  for (size_t i = 1; i < refused_.size(); ++i) error.notes.push_back("also: " + refused_[i].message);
  if (record_.images.empty()) {
    for (const NewImage& image : new_images_) image.unclaim(host_.layout());
    return std::move(error).context(failure_);
  }
  return std::move(error)
      .context(plan_.title + " is done in the images, but not all of its documents were taken")
      .with_note(fmt::format("`varve verify '{}'` shows what is missing", record_.domain));
}

// Each is whole by itself, and can be done again: nothing of it needs the journal.
Result<void> Operation::mend_images() {
  for (ImageRepair& repair : repairs_) {
    host_.journal().step(fmt::format("mend {}", repair.path()));
    TRY(repair.run());
  }
  return {};
}

// The names are claimed first, so that the record, which removes the images if this ends before its time, speaks of
// files that are this operation's own. The final record takes its place in one step.
Result<void> Operation::make_images() {
  if (new_images_.empty()) return {};
  JournalRecord undo;
  undo.purpose = RecordPurpose::kUndo;
  undo.domain = record_.domain;
  undo.domain_uuid = record_.domain_uuid;
  undo.operation = record_.operation;
  std::optional<size_t> filled;  // so many, once all names are claimed
  const auto work = [&]() -> Result<void> {
    for (const NewImage& image : new_images_) {
      host_.journal().step(fmt::format("claim {}", image.path));
      TRY(image.claim(host_.layout()));
      undo.removed_images.push_back(image.path);
    }
    TRY(host_.journal().write(undo));
    filled = 0;
    for (const NewImage& image : new_images_) {
      host_.journal().step(fmt::format("fill {}", image.path));
      TRY(image.fill(host_.layout()));
      ++*filled;
    }
    return {};
  };
  auto worked = work();
  if (worked) return {};
  // What somebody else has written to meanwhile is theirs. Before anything goes, no record says otherwise.
  const ErrorKind kind = worked.error().kind;
  const bool was_taken = kind == ErrorKind::kAlreadyExists || kind == ErrorKind::kInUse;
  std::vector<const NewImage*> ours;
  for (size_t i = 0; i < undo.removed_images.size(); ++i) {
    const NewImage& image = new_images_[i];
    const bool was_filled = filled && (i < *filled || (i == *filled && !was_taken));
    const bool is_as_claimed = (!filled || i > *filled) && image.check_free(host_.layout());
    if (was_filled || is_as_claimed) ours.push_back(&image);
  }
  const bool are_all_ours = ours.size() == undo.removed_images.size();
  if (!are_all_ours) TRY(host_.journal().clear(record_.domain));
  for (const NewImage* image : ours) image->unclaim(host_.layout());
  if (are_all_ours) TRY(host_.journal().clear(record_.domain));
  return worked;
}

Result<void> Operation::prepare() {
  // The order of image locks and of commits everywhere.
  std::ranges::sort(disks_, {}, [](const DiskTask& task) { return task.disk.path(); });
  for (DiskTask& task : disks_) {
    host_.journal().step(fmt::format("prepare disk {}", task.disk.target()));
    record_.images.push_back(TRY(task.disk.prepare(task.change)));
  }
  return {};
}

Result<void> Operation::check_expectations() const {
  for (const auto& expectation : expectations_) TRY(expectation());
  return {};
}

Result<void> Operation::complete() {
  for (DiskTask& task : disks_) {
    host_.journal().step(fmt::format("commit disk {}", task.disk.target()));
    TRY(task.disk.commit());
  }
  std::vector<Error> refused = TRY(host_.journal().apply_changes(record_));
  TRY(host_.journal().clear(record_.domain));
  for (DiskTask& task : disks_) task.disk.discard_freed();
  refused_ = std::move(refused);
  return {};
}

}  // namespace varve
