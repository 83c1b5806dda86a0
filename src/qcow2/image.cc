#include "qcow2/image.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "qcow2/corruption.h"
#include "qcow2/header_update.h"
#include "qcow2/image_state.h"

namespace varve::qcow2 {
namespace {

Error out_of_range(const std::string& name, uint64_t offset, uint64_t length, uint64_t size) {
  Error e =
      make_error(ErrorKind::kInvalidArgument,
                 fmt::format("{}: {} bytes at {} lie outside of the disk of {} bytes", name, length, offset, size));
  e.path = name;
  e.offset = offset;
  return e;
}

Result<void> check_range(const std::string& name, uint64_t offset, uint64_t length, uint64_t size) {
  const auto end = checked_add(offset, length);
  if (!end || *end > size) return out_of_range(name, offset, length, size);
  return {};
}

Error read_only(const std::string& name) {
  return make_error(ErrorKind::kPermission, fmt::format("{}: the image is open for reading only", name));
}

// The disk as it was at a snapshot.
class SnapshotView final : public BlockDevice {
 public:
  SnapshotView(Mapping mapping, GuestReader& reader, BlockDevice* backing, uint64_t size, std::string name)
      : mapping_(std::move(mapping)), reader_(reader), backing_(backing), size_(size), name_(std::move(name)) {}

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override {
    TRY(check_range(name_, offset, buffer.size(), size_));
    return reader_.read(mapping_, &lock_, backing_, offset, buffer);
  }
  Result<void> write_at(uint64_t, std::span<const std::byte>) override { return read_only(name_); }
  Result<void> write_zeroes(uint64_t, uint64_t, ZeroMode) override { return read_only(name_); }
  Result<void> discard(uint64_t, uint64_t) override { return read_only(name_); }
  Result<void> flush() override { return {}; }
  Result<uint64_t> size() override { return size_; }
  Result<void> resize(uint64_t) override { return read_only(name_); }
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override {
    if (offset >= size_) return std::vector<Extent>{};
    return mapping_extents(mapping_, lock_, offset, offset + std::min(length, size_ - offset));
  }
  DeviceCapabilities capabilities() const override { return {false, false, false, true}; }
  const std::string& name() const override { return name_; }

 private:
  std::mutex lock_;
  Mapping mapping_;
  GuestReader& reader_;
  BlockDevice* backing_;
  uint64_t size_;
  std::string name_;
};

}  // namespace

Image::Image(std::unique_ptr<State> state) : state_(std::move(state)) {}

Image::~Image() {
  // Who wants to know whether it worked calls flush() before.
  if (!state_->writer) return;
  if (flush()) finish_recording();
}

Result<void> Image::State::check_readable() const {
  if (data_given) return {};
  if (header.crypt_method != CryptMethod::kNone)
    return make_error(ErrorKind::kPermission,
                      fmt::format("{}: Parameter 'encrypt.key-secret' is required for cipher", file->name()))
        .with_note(
            "the image is encrypted; --object secret,id=ID,file=PATH and "
            "--image-opts driver=qcow2,encrypt.key-secret=ID,file.filename=… open it");
  if (header.has_data_file())
    return make_error(ErrorKind::kUnsupported,
                      fmt::format("{}: the disk is in an external data file, which is not opened here", file->name()));
  return {};
}

Result<void> Image::State::check_writable() const {
  const std::string& name = file->name();
  if (header.is_corrupt())
    return corruption(name, 72, "the image is marked corrupt; it can't be written to")
        .with_note(fmt::format("`qemu-img check -r all {}` repairs it; copy the file first", name));
  if (header.is_dirty())
    return corruption(name, 72, "the image was not closed cleanly (dirty bit): its refcounts can't be trusted")
        .with_note(fmt::format("`qemu-img check -r all {}` rebuilds them", name));
  // Tables and snapshots of an encrypted image can be changed without its key.
  if (header.crypt_method != CryptMethod::kNone) return {};
  return check_readable();
}

Result<void> Image::State::load() {
  Header new_header = TRY(read_header(*file));
  SnapshotTable table = TRY(read_snapshot_table(*file, new_header));
  Mapping new_mapping =
      TRY(Mapping::open(*file, EntryFormat(new_header), new_header.l1_table_offset, new_header.l1_size));
  // All of it or nothing: a failure must not leave parts of two states.
  header = std::move(new_header);
  snapshots = std::move(table.snapshots);
  snapshot_table_bytes = table.bytes;
  mapping = std::move(new_mapping);
  return {};
}

Result<std::unique_ptr<Image>> Image::open(std::shared_ptr<BlockDevice> file, OpenOptions options) {
  auto state = std::make_unique<State>();
  state->file = std::move(file);
  crypto::EncryptedDevice* encrypted = options.encrypted.get();
  state->data = encrypted != nullptr ? std::move(options.encrypted) : std::move(options.data);
  state->data_given = state->data != nullptr;
  if (!state->data_given) state->data = state->file;
  state->writable = options.writable;
  TRY(state->load());
  const bool is_encrypted = state->header.crypt_method != CryptMethod::kNone;
  if (is_encrypted != (encrypted != nullptr) && state->data_given) {
    return make_error(ErrorKind::kCorrupt, fmt::format("{}: whether the image is encrypted changed while it was opened",
                                                       state->file->name()));
  }
  state->guest_data.emplace(*state->data, encrypted, state->header.crypt_method);
  state->reader = std::make_unique<GuestReader>(*state->file, *state->guest_data, state->header.compression_type);
  if (options.writable) {
    TRY(state->check_writable());
    for (size_t i = 0; i < state->mapping->l1().size(); ++i) TRY(state->mapping->table_offset(i));
    state->writer = TRY(ImageWriter::open(*state->file, *state->guest_data, state->header, *state->mapping,
                                          *state->reader, state->backing));
    // Autoclear bits that we do not know would promise what our writes may break (specification, "Autoclear features").
    if ((state->header.autoclear_features & ~uint64_t{kAutoclearKnown}) != 0) {
      state->header.autoclear_features &= kAutoclearKnown;
      std::array<std::byte, kHeaderSectorSize> sector;
      TRY(state->file->read_at(0, sector));
      patch_header_sector(state->header, sector);
      TRY(state->file->write_at(0, sector));
      TRY(state->file->flush());  // the cleared bits | the first write that could make them lie
    }
  }
  return std::unique_ptr<Image>(new Image(std::move(state)));
}

void Image::set_backing(std::shared_ptr<BlockDevice> backing) {
  state_->backing = std::move(backing);
}
const std::shared_ptr<BlockDevice>& Image::backing() const {
  return state_->backing;
}
const Header& Image::header() const {
  return state_->header;
}
const std::vector<Snapshot>& Image::snapshots() const {
  return state_->snapshots;
}
Result<void> Image::check_snapshots(const char* refused) const {
  for (const Snapshot& snapshot : state_->snapshots) {
    if (!snapshot.fault || snapshot.fault->table_is_known) continue;
    Error e = fault_of(name(), state_->header, snapshot);
    e.message += fmt::format("; nobody can tell which clusters it shares, and {}", refused);
    return e;
  }
  return {};
}
BlockDevice& Image::file() {
  return *state_->file;
}
Result<void> Image::check_readable() const {
  return state_->check_readable();
}
BlockDevice& Image::data() {
  return *state_->data;
}

Result<void> Image::update_header(const std::function<void(Header&)>& change) {
  if (!state_->writer) return read_only(name());
  const std::unique_lock io(state_->io_lock);
  const std::lock_guard lock(state_->metadata_lock);
  TRY(state_->writer->write_back());
  TRY(state_->writer->release_freed());
  const auto update = [&]() -> Result<void> {
    Header header = state_->header;
    change(header);
    TRY(replace_header(*state_->file, header));
    TRY(state_->load());
    return state_->writer->reload_refcounts();
  };
  auto result = update();
  if (!result) state_->writer->give_up();
  return result;
}

const std::string& Image::name() const {
  return state_->file->name();
}
Result<uint64_t> Image::size() {
  return state_->header.size;
}

DeviceCapabilities Image::capabilities() const {
  return {state_->writable, false, state_->writable, true};
}

Result<std::unique_ptr<BlockDevice>> Image::open_snapshot(size_t index) {
  CHECK(index < state_->snapshots.size());
  TRY(state_->check_readable());
  const Snapshot& s = state_->snapshots[index];
  if (s.fault) return fault_of(name(), state_->header, s);
  // Nothing has to be flushed for it: what a snapshot refers to has not changed since its commit.
  Mapping mapping = TRY(Mapping::open(*state_->file, EntryFormat(state_->header), s.l1_table_offset, s.l1_size));
  return std::unique_ptr<BlockDevice>(new SnapshotView(std::move(mapping), *state_->reader, state_->backing.get(),
                                                       align_down(s.disk_size.value_or(state_->header.size), 512),
                                                       fmt::format("{}@{}", name(), s.name)));
}

Result<void> Image::read_at(uint64_t offset, std::span<std::byte> buffer) {
  TRY(check_range(name(), offset, buffer.size(), state_->header.size));
  TRY(state_->check_readable());
  // A read-only image gives no cluster away: without the lock, a chain of images holds none on its way down.
  std::shared_lock<std::shared_mutex> io(state_->io_lock, std::defer_lock);
  if (state_->writer) io.lock();
  return state_->reader->read(*state_->mapping, &state_->metadata_lock, state_->backing.get(), offset, buffer);
}

Result<void> Image::write_at(uint64_t offset, std::span<const std::byte> data) {
  return write_in_turn(offset, data, [] {});
}

Result<void> Image::write_in_turn(uint64_t offset, std::span<const std::byte> data,
                                  const std::function<void()>& placed) {
  if (!state_->writer) return read_only(name());
  TRY(check_range(name(), offset, data.size(), state_->header.size));
  TRY(state_->check_readable());
  TRY(record_write(offset, data.size()));
  const std::shared_lock io(state_->io_lock);
  ImageWriter& writer = *state_->writer;
  while (!data.empty()) {
    std::unique_lock lock(state_->metadata_lock);
    uint64_t done = 0;
    if (const auto place = TRY(writer.find_in_place(offset, data.size())); place.length != 0) {
      lock.unlock();
      done = place.length;
      if (done == data.size()) placed();
      TRY(state_->guest_data->write(place.host_offset, offset, data.first(done)));
    } else if (writer.is_being_written(offset, data.size())) {
      state_->whole_written.wait(lock);  // two writes to one cluster must not both allocate it
    } else if (const auto fresh = TRY(writer.begin_whole(offset, data.size())); fresh.count != 0) {
      lock.unlock();
      done = fresh.count * state_->header.cluster_size();
      if (done == data.size()) placed();
      Result<void> written = state_->guest_data->write(fresh.host, offset, data.first(done));
      lock.lock();
      Result<void> ended = writer.end_whole(fresh, std::move(written));
      state_->whole_written.notify_all();
      TRY(std::move(ended));
      if (writer.wants_write_back()) TRY(writer.write_back());
    } else {
      done = TRY(writer.write_allocating(offset, data));
      if (done == data.size()) placed();
      if (writer.wants_write_back()) TRY(writer.write_back());
    }
    offset += done;
    data = data.subspan(done);
  }
  return {};
}

// By the tables alone: true means zeroes, false means that nobody looked further.
Result<bool> Image::reads_as_zero(uint64_t offset, uint64_t length) {
  const bool has_backing = state_->header.backing_file.has_value() || state_->backing != nullptr;
  for (const Extent& e : TRY(extents(offset, length)))
    if (e.kind == ExtentKind::kData || (e.kind == ExtentKind::kUnallocated && has_backing)) return false;
  return true;
}

// Who reads the data file alone must see the zeroes, too, and before the tables say them.
Result<void> Image::zero_raw_data_file(uint64_t offset, uint64_t length, ZeroMode mode) {
  const uint64_t end = std::min(offset + length, TRY(state_->data->size()));
  if (offset >= end) return {};
  return state_->guest_data->write_zeroes(offset, offset, end - offset, mode);
}

Result<void> Image::write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) {
  if (!state_->writer) return read_only(name());
  TRY(check_range(name(), offset, length, state_->header.size));
  TRY(state_->check_readable());
  TRY(record_write(offset, length));
  const auto kind = mode == ZeroMode::kMayUnmap ? ImageWriter::ZeroKind::kUnmap : ImageWriter::ZeroKind::kKeepAllocated;
  const uint64_t cluster_size = state_->header.cluster_size();
  if (state_->header.has_raw_data_file()) TRY(zero_raw_data_file(offset, length, mode));
  std::vector<std::byte> zeroes;
  while (length != 0) {
    uint64_t done = 0;
    {
      const std::lock_guard lock(state_->metadata_lock);
      done = TRY(state_->writer->zero_by_table(offset, length, kind));
      if (state_->writer->wants_write_back()) TRY(state_->writer->write_back());
    }
    if (done == 0) {  // a piece that the tables can't describe: up to the next border that they can
      const uint64_t unit = state_->header.subcluster_size();
      done = std::min(length, unit - offset % unit);
      if (done == unit) done = std::min(length, cluster_size - offset % cluster_size);
      if (!TRY(reads_as_zero(offset, done))) {
        zeroes.resize(cluster_size);
        TRY(write_at(offset, std::span(zeroes).first(done)));
      }
    }
    offset += done;
    length -= done;
  }
  return {};
}

Result<void> Image::discard(uint64_t offset, uint64_t length) {
  if (!state_->writer) return read_only(name());
  TRY(check_range(name(), offset, length, state_->header.size));
  TRY(state_->check_readable());
  TRY(record_write(offset, length));
  const uint64_t cluster_size = state_->header.cluster_size();
  if (state_->header.has_raw_data_file()) {  // whole clusters, and zeroes for who reads the data file alone
    const uint64_t end =
        offset + length == state_->header.size ? state_->header.size : align_down(offset + length, cluster_size);
    offset = align_up(offset, cluster_size);
    if (offset >= end) return {};
    length = end - offset;
    TRY(zero_raw_data_file(offset, length, ZeroMode::kMayUnmap));
  }
  while (length != 0) {
    const std::lock_guard lock(state_->metadata_lock);
    uint64_t done = TRY(state_->writer->zero_by_table(offset, length, ImageWriter::ZeroKind::kDiscard));
    if (state_->writer->wants_write_back()) TRY(state_->writer->write_back());
    // What can't be let go by the tables keeps its contents: a discard is a hint.
    if (done == 0) done = std::min(length, cluster_size - offset % cluster_size);
    offset += done;
    length -= done;
  }
  return {};
}

Result<void> Image::flush() {
  if (!state_->writer) return {};
  const std::unique_lock io(state_->io_lock);
  const std::lock_guard lock(state_->metadata_lock);
  TRY(state_->writer->write_back());
  return state_->writer->release_freed();
}

void Image::start_write_back(uint64_t offset, uint64_t length) {
  if (offset >= state_->header.size) return;
  const auto extents = placed_extents(offset, length);
  if (!extents) return;  // who reads or writes there is told
  for (const PlacedExtent& e : *extents) {
    if (e.kind == ExtentKind::kData && e.host_offset && !e.compressed)
      state_->data->start_write_back(*e.host_offset, e.length);
  }
}

Result<std::vector<Extent>> Image::extents(uint64_t offset, uint64_t length) {
  if (offset >= state_->header.size) return std::vector<Extent>{};
  return mapping_extents(*state_->mapping, state_->metadata_lock, offset,
                         offset + std::min(length, state_->header.size - offset));
}

Result<std::vector<PlacedExtent>> Image::placed_extents(uint64_t offset, uint64_t length) {
  if (offset >= state_->header.size) return std::vector<PlacedExtent>{};
  return qcow2::placed_extents(*state_->mapping, state_->metadata_lock, offset,
                               offset + std::min(length, state_->header.size - offset));
}

Result<uint64_t> Image::used_clusters(uint64_t enough) {
  Refcounts refcounts = TRY(Refcounts::open(*state_->file, state_->header));
  const uint64_t clusters = div_round_up(TRY(state_->file->size()), state_->header.cluster_size());
  uint64_t used = 0;
  for (uint64_t c = 0; c < clusters && used < enough; ++c) used += TRY(refcounts.get(c)) != 0;
  return used;
}

}  // namespace varve::qcow2
