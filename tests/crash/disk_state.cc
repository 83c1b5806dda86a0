#include "crash/disk_state.h"

#include <fmt/format.h>

#include <fstream>
#include <functional>
#include <string_view>

#include "support/process.h"

namespace varve::test {

uint64_t hash_of(std::span<const std::byte> bytes) {
  return std::hash<std::string_view>{}({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

std::vector<std::byte> whole_contents(BlockDevice& device) {
  std::vector<std::byte> bytes(*device.size());
  const auto read = device.read_at(0, bytes);
  EXPECT_TRUE(read) << read.error().message;
  return bytes;
}

Result<uint64_t> hash_of(BlockDevice& device) {
  std::vector<std::byte> bytes(TRY(device.size()));
  TRY(device.read_at(0, bytes));
  return hash_of(std::span<const std::byte>(bytes));
}

Result<DiskState> state_of(qcow2::Image& image) {
  DiskState state;
  state.size = TRY(image.size());
  state.contents = TRY(hash_of(image));
  for (size_t i = 0; i < image.snapshots().size(); ++i) {
    const qcow2::Snapshot& s = image.snapshots()[i];
    const std::unique_ptr<BlockDevice> view = TRY(image.open_snapshot(i));
    state.snapshots.push_back({s.id, s.name, s.date_sec, s.vm_state_size, TRY(view->size()), TRY(hash_of(*view))});
  }
  return state;
}

Result<DiskState> state_of(const MemoryDevice& file) {
  const std::shared_ptr<MemoryDevice> copy = file.clone();
  const auto image = TRY(qcow2::Image::open(copy, {.writable = true}));
  return state_of(*image);
}

std::ostream& operator<<(std::ostream& out, const DiskState& state) {
  out << fmt::format("disk of {} bytes with contents {:x}, {} bitmaps ({:x}), machine states {:x}", state.size,
                     state.contents, state.bitmaps, state.bitmap_contents, state.machine_states);
  for (const PointState& p : state.snapshots)
    out << fmt::format("; snapshot {} '{}' of {} bytes with contents {:x}", p.id, p.name, p.size, p.contents);
  return out;
}

namespace {

// The state, or nothing and a complaint.
std::optional<DiskState> clean_state(const MemoryDevice& file, std::span<const std::byte> bytes,
                                     std::string& complaint) {
  const Qcow2Scan scan = scan_qcow2(bytes);
  if (!scan.clean()) {
    complaint = scan.describe();
    return std::nullopt;
  }
  auto state = state_of(file);
  if (!state) {
    complaint = "it can't be read: " + state.error().message;
    return std::nullopt;
  }
  state->bitmaps = scan.bitmaps;
  state->bitmap_contents = scan.bitmap_contents;
  state->machine_states = scan.machine_states;
  return *state;
}

}  // namespace

StateJudge::StateJudge(const MemoryDevice& before, const MemoryDevice& after) {
  for (const auto& [file, state] : {std::pair{&before, &old_}, std::pair{&after, &new_}}) {
    const std::shared_ptr<MemoryDevice> copy = file->clone();
    const std::vector<std::byte> bytes = whole_contents(*copy);
    const auto found = clean_state(*copy, bytes, complaint_);
    EXPECT_TRUE(found) << (file == &before ? "before the change: " : "after the change: ") << complaint_;
    if (found) *state = *found;
  }
}

StateJudge::Verdict StateJudge::judge(const MemoryDevice& file) {
  const auto [entry, fresh] = seen_.try_emplace(file.hash(), Verdict::kBroken);
  if (!fresh) return entry->second;
  const std::shared_ptr<MemoryDevice> copy = file.clone();
  const std::vector<std::byte> bytes = whole_contents(*copy);
  const auto state = clean_state(*copy, bytes, complaint_);
  if (!state) return Verdict::kBroken;
  if (*state == old_) {
    entry->second = Verdict::kOld;
  } else if (*state == new_) {
    entry->second = Verdict::kNew;
  } else {
    complaint_ = (std::ostringstream() << "neither the old nor the new state: " << *state << "\n  old: " << old_
                                       << "\n  new: " << new_)
                     .str();
    return Verdict::kBroken;
  }
  // Every 16th new file; the number of files is not known beforehand.
  if (seen_.size() % 16 == 1) sample_.push_back(copy);
  return entry->second;
}

void StateJudge::ask_qemu(size_t count, const TempDir& dir) const {
  const size_t step = std::max<size_t>(1, sample_.size() / std::max<size_t>(1, count));
  for (size_t i = 0; i < sample_.size(); i += step) expect_qemu_finds_clean(*sample_[i], dir);
}

void expect_qemu_finds_clean(const MemoryDevice& file, const TempDir& dir) {
  if (find_program("qemu-img").empty()) return;
  const std::string path = store_file(file, dir / "check.qcow2");
  const ProcessResult check = run({"qemu-img", "check", "-f", "qcow2", path});
  EXPECT_EQ(check.exit_code, 0) << check.out << check.err;
}

std::shared_ptr<MemoryDevice> load_file(const std::string& path) {
  const std::string bytes = read_whole_file(path);
  EXPECT_FALSE(bytes.empty()) << path;
  auto file = std::make_shared<MemoryDevice>(path.substr(path.rfind('/') + 1));
  EXPECT_TRUE(file->write_at(0, std::as_bytes(std::span(bytes))));
  return file;
}

std::string store_file(const MemoryDevice& file, const std::string& path) {
  const std::shared_ptr<MemoryDevice> copy = file.clone();
  const std::vector<std::byte> bytes = whole_contents(*copy);
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return path;
}

}  // namespace varve::test
