// What a user could tell about a qcow2 image: the active disk, every snapshot and its contents, bitmaps. Two images are
// in the same state when these are equal, wherever their clusters lie. And the checks that every state after a failure
// has to pass.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/memory_device.h"
#include "qcow2/image.h"
#include "support/qcow2_scan.h"
#include "support/temp_dir.h"

namespace varve::test {

struct PointState {
  std::string id;
  std::string name;
  uint32_t date_sec = 0;
  uint64_t vm_state_size = 0;
  uint64_t size = 0;
  uint64_t contents = 0;  // hash
  bool operator==(const PointState&) const = default;
};

struct DiskState {
  uint64_t size = 0;
  uint64_t contents = 0;
  std::vector<PointState> snapshots;
  uint64_t bitmaps = 0;
  uint64_t bitmap_contents = 0;
  uint64_t machine_states = 0;
  bool operator==(const DiskState&) const = default;
};
std::ostream& operator<<(std::ostream& out, const DiskState& state);

uint64_t hash_of(std::span<const std::byte> bytes);
std::vector<std::byte> whole_contents(BlockDevice& device);
Result<uint64_t> hash_of(BlockDevice& device);

// Through the open image; without bitmaps and machine states.
Result<DiskState> state_of(qcow2::Image& image);
// Through a fresh open for writing of a copy. The file itself is not touched.
Result<DiskState> state_of(const MemoryDevice& file);

// Whether an image is without errors and leaks, and which of two states it is in. Remembers what it has seen: equal
// files are looked at once.
class StateJudge {
 public:
  enum class Verdict { kOld, kNew, kBroken };

  // Both must be clean images; they may be equal.
  StateJudge(const MemoryDevice& before, const MemoryDevice& after);

  // Why, when it is kBroken: last_complaint().
  Verdict judge(const MemoryDevice& file);
  const std::string& last_complaint() const { return complaint_; }
  // What judge() calls the new state: kOld where the change changes nothing.
  Verdict new_verdict() const { return old_ == new_ ? Verdict::kOld : Verdict::kNew; }
  const DiskState& old_state() const { return old_; }
  const DiskState& new_state() const { return new_; }
  size_t distinct() const { return seen_.size(); }
  // Up to `count` of the files judged so far are also put before qemu-img check, spread evenly.
  void ask_qemu(size_t count, const TempDir& dir) const;

 private:
  DiskState old_;
  DiskState new_;
  std::map<uint64_t, Verdict> seen_;
  std::vector<std::shared_ptr<const MemoryDevice>> sample_;
  std::string complaint_;
};

// `qemu-img check` finds neither an error nor a leak. Does nothing where there is no qemu-img.
void expect_qemu_finds_clean(const MemoryDevice& file, const TempDir& dir);

std::shared_ptr<MemoryDevice> load_file(const std::string& path);
std::string store_file(const MemoryDevice& file, const std::string& path);

}  // namespace varve::test
