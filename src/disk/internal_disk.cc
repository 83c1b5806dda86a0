#include "disk/internal_disk.h"

#include <fmt/format.h>

#include "store/journal.h"

namespace varve {

namespace {

Error refusal(std::string message, std::string remedy) {
  return make_error(ErrorKind::kRefused, std::move(message)).with_note(std::move(remedy));
}

std::string leave_out(const Disk& disk) {
  return fmt::format("`--disk {}=no` leaves it out", disk.target);
}

// Whether the definition describes a disk that can have points inside its image at all.
Result<void> check_kind(const Disk& disk) {
  if (!disk.is_local_file()) {
    return refusal(fmt::format("disk {} is of type '{}', and only files and block devices can hold internal snapshots",
                               disk.target, name_of(disk.source_type)),
                   leave_out(disk));
  }
  if (disk.source.empty()) {
    return refusal(fmt::format("disk {} has no image", disk.target), leave_out(disk));
  }
  if (disk.format.empty()) {
    return refusal(
        fmt::format("the definition does not say which format disk {} ({}) has, and guessing is unsafe", disk.target,
                    disk.source),
        "put <driver name='qemu' type='qcow2'/> (or the format it has) into the <disk> element, and define it again "
        "with `varve vm define`");
  }
  if (disk.format != "qcow2") {
    return refusal(fmt::format("disk {} ({}) is a {} image, and only qcow2 holds internal snapshots", disk.target,
                               disk.source, disk.format),
                   fmt::format("{}; `varve image convert -f {} -O qcow2` makes a qcow2 image of it", leave_out(disk),
                               disk.format));
  }
  return {};
}

Result<size_t> index_of(const qcow2::SnapshotTransaction& transaction, const std::string& name) {
  const auto index = qcow2::find_by_name(transaction.snapshots(), name);
  if (index) return *index;
  return make_error(ErrorKind::kNotFound, fmt::format("has no snapshot '{}'", name));
}

Result<qcow2::PreparedCommit> prepare_change(qcow2::Image& image, const DiskChange& change) {
  auto transaction = TRY(qcow2::SnapshotTransaction::begin(image));
  if (change.create) TRY(transaction.create(*change.create));
  if (change.revert_to) {
    const size_t index = TRY(index_of(transaction, *change.revert_to));
    TRY(transaction.revert(index));
  }
  std::vector<size_t> removed;
  for (const std::string& name : change.remove) {
    if (const auto index = qcow2::find_by_name(transaction.snapshots(), name)) removed.push_back(*index);
  }
  if (!removed.empty()) TRY(transaction.remove(removed));
  if (change.rename) {
    const size_t index = TRY(index_of(transaction, change.rename->first));
    TRY(transaction.rename(index, change.rename->second));
  }
  return transaction.prepare();
}

}  // namespace

std::vector<std::string> DiskChange::describe() const {
  std::vector<std::string> lines;
  if (create) lines.push_back(fmt::format("create snapshot '{}'", create->name));
  if (revert_to) lines.push_back(fmt::format("revert to snapshot '{}'", *revert_to));
  for (const std::string& name : remove) lines.push_back(fmt::format("delete snapshot '{}'", name));
  if (rename) lines.push_back(fmt::format("rename snapshot '{}' to '{}'", rename->first, rename->second));
  return lines;
}

Result<InternalDisk> InternalDisk::open(const Layout& layout, const Disk& disk, Access access) {
  TRY(check_kind(disk));
  const auto explain = [&](Error error) {
    return std::move(error).context(fmt::format("disk {} ({})", disk.target, disk.source));
  };
  InternalDisk result;
  result.target_ = disk.target;
  result.path_ = disk.source;
  auto host_path = layout.resolve(disk.source);
  if (!host_path) {
    Error error = std::move(host_path).error();
    if (error.kind == ErrorKind::kNotFound && error.notes.empty()) {
      error.notes.emplace_back("bring it back, or say with `varve vm define` where the disk's image is now");
    }
    return explain(std::move(error));
  }
  result.host_path_ = *host_path;
  auto file = FileDevice::open(
      *host_path, access, access == Access::kReadWrite ? LockRequest::format_writer() : LockRequest::format_reader());
  if (!file) return explain(std::move(file).error());
  result.file_ = std::move(*file);
  auto image = qcow2::Image::open(result.file_, {.writable = access == Access::kReadWrite});
  if (!image) return explain(std::move(image).error());
  result.image_ = std::move(*image);
  if (access == Access::kReadWrite) {
    auto known = result.image_->check_snapshots("no snapshot is created, reverted to or deleted");
    if (!known) return explain(std::move(known).error());
  }
  return result;
}

Result<void> InternalDisk::check_usable(const std::string& name) const {
  const auto index = find(name);
  if (!index) return make_error(ErrorKind::kNotFound, fmt::format("disk {} has no snapshot '{}'", target_, name));
  if (!points()[*index].fault) return {};
  return qcow2::fault_of(image_->name(), image_->header(), points()[*index])
      .context(fmt::format("disk {} ({})", target_, path_));
}

std::string InternalDisk::list_of_points() const {
  constexpr size_t kShown = 10;
  if (points().empty()) return "no snapshot";
  std::string list;
  for (size_t i = 0; i < points().size() && i < kShown; ++i) {
    list += (i == 0 ? "" : ", ") + points()[i].name;
  }
  if (points().size() > kShown) list += fmt::format(" and {} more", points().size() - kShown);
  return list;
}

Error InternalDisk::explain(Error error) const {
  return std::move(error).context(fmt::format("disk {} ({})", target_, path_));
}

Result<uint64_t> InternalDisk::new_bytes(const DiskChange& change) const {
  auto rehearsal = file_->rehearse();
  if (!rehearsal) return explain(std::move(rehearsal).error());
  const std::shared_ptr<RehearsalDevice> device = std::move(*rehearsal);
  auto image = qcow2::Image::open(device, {.writable = true});
  if (!image) return explain(std::move(image).error());
  const auto prepared = prepare_change(**image, change);
  if (!prepared) return explain(prepared.error());
  return device->changes().most_new_bytes;
}

Result<JournalImage> InternalDisk::prepare(const DiskChange& change) {
  auto prepared = prepare_change(*image_, change);
  if (!prepared) return explain(std::move(prepared).error());
  prepared_ = std::move(*prepared);

  JournalImage image;
  image.target = target_;
  image.path = path_;
  image.before = prepared_->before;
  image.after = prepared_->after;
  auto stamp = sync_and_stamp(*file_);
  if (!stamp) {
    abandon();
    return explain(std::move(stamp).error());
  }
  image.prepared = *stamp;
  return image;
}

Result<void> InternalDisk::commit() {
  CHECK(prepared_);
  auto committed = qcow2::SnapshotTransaction::commit(*image_, *prepared_);
  if (!committed) return explain(std::move(committed).error());
  return {};
}

void InternalDisk::discard_freed() {
  CHECK(prepared_);
  [[maybe_unused]] const auto harmless = qcow2::SnapshotTransaction::discard_freed(*image_, *prepared_);
}

void InternalDisk::abandon() {
  if (prepared_) qcow2::SnapshotTransaction::abandon(*image_, *prepared_);
  prepared_.reset();
}

}  // namespace varve
