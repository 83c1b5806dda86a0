#include "check/repair_plan.h"

#include <algorithm>
#include <array>

#include "base/checked.h"
#include "base/endian.h"

namespace varve::check {

namespace {

class Carrier {
 public:
  Carrier(const RepairPlan& plan, const ImageFile& file, const Layout& layout, const StoredRefcounts& stored)
      : plan_(plan), file_(file), device_(file.device()), layout_(layout), stored_(stored) {}

  Result<void> run() {
    if (plan_.file_size && TRY(device_.size()) < *plan_.file_size) TRY(device_.resize(*plan_.file_size));
    TRY(write_new_things());
    TRY(write_pointers());
    TRY(clear_entries());
    if (!plan_.structure && plan_.changes_refcounts) {
      TRY(write_refcounts(Direction::kFinal));
      TRY(device_.flush());  // before flags that promise a refcount of 1
    }
    if (plan_.copied.sets) {
      TRY(write_copied_flags(file_, layout_, stored_, CopiedWrite::kSet));
      TRY(device_.flush());
    }
    return write_feature_bits();
  }

 private:
  enum class Direction : uint8_t { kRaise, kFinal };

  // In place. Blocks that are right already are not written.
  Result<void> write_refcounts(Direction direction) {
    std::vector<std::byte> block(layout_.cluster_size());
    const uint64_t blocks = std::min<uint64_t>(stored_.table().size(), stored_.counts().blocks());
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t offset = stored_.table()[i] & kBlockOffsetMask;
      if (offset == 0 || !stored_.is_readable(i * layout_.refcounts_per_block())) continue;
      const std::span<const std::byte> wanted = stored_.counts().block(i);
      TRY(file_.read(offset, block));
      if (std::ranges::equal(block, wanted)) continue;
      if (direction == Direction::kFinal) {
        TRY(device_.write_at(offset, wanted));
        continue;
      }
      bool raises = false;
      with_order(layout_.refcount_order, [&](auto order) {
        using Packed = PackedRefcount<order>;
        for (uint64_t c = 0; c < layout_.refcounts_per_block(); ++c) {
          const uint64_t value = Packed::get(wanted.data(), c);
          if (value <= Packed::get(block.data(), c)) continue;
          Packed::set(block.data(), c, value);
          raises = true;
        }
      });
      if (raises) TRY(device_.write_at(offset, block));
    }
    return {};
  }

  Result<void> write_structure() {
    const NewStructure& structure = *plan_.structure;
    for (uint64_t i = 0; i < structure.blocks.size(); ++i) {
      if (structure.blocks[i] == 0) continue;
      TRY(device_.write_at(structure.blocks[i], stored_.counts().block(i)));
    }
    std::vector<be64> table(structure.blocks.begin(), structure.blocks.end());
    return device_.write_at(structure.table_offset, std::as_bytes(std::span(table)));
  }

  Result<void> write_new_things() {
    if (plan_.structure) {
      TRY(write_structure());
    } else if (plan_.changes_refcounts) {
      TRY(write_refcounts(Direction::kRaise));
    }
    if (plan_.snapshots_offset && !plan_.snapshot_table.empty()) {
      TRY(device_.write_at(*plan_.snapshots_offset, plan_.snapshot_table));
    }
    return device_.flush();  // the header shall never point to what is not there
  }

  Result<void> write_pointers() {
    if (!plan_.structure && !plan_.nb_snapshots) return {};
    std::array<std::byte, 24> fields{};
    TRY(file_.read(kFieldRefcountTable, fields));
    if (plan_.structure) {
      store_be<uint64_t>(fields.data(), plan_.structure->table_offset);
      store_be<uint32_t>(&fields[8], plan_.structure->table_clusters);
    }
    if (plan_.nb_snapshots) store_be<uint32_t>(&fields[12], *plan_.nb_snapshots);
    if (plan_.snapshots_offset) store_be<uint64_t>(&fields[16], *plan_.snapshots_offset);
    TRY(device_.write_at(kFieldRefcountTable, fields));
    return device_.flush();  // before anything that is right by the new refcounts only
  }

  Result<void> clear_entries() {
    for (const ZeroedEntry& zeroed : plan_.zeroed) {
      std::array<std::byte, 16> entry{};
      store_be(entry.data(), zeroed.entry);
      store_be(&entry[8], zeroed.bitmap);
      TRY(device_.write_at(zeroed.offset, std::span(entry).first(layout_.l2_entry_bytes())));
    }
    if (plan_.copied.clears) TRY(write_copied_flags(file_, layout_, stored_, CopiedWrite::kClear));
    if (plan_.zeroed.empty() && !plan_.copied.clears) return {};
    return device_.flush();  // before the clusters that nothing refers to any more become free
  }

  Result<void> write_feature_bits() {
    if (layout_.version < 3) return {};
    uint64_t incompatible = layout_.incompatible;
    if (plan_.clears_bits) incompatible &= ~(kIncompatibleDirty | kIncompatibleCorrupt);
    const uint64_t autoclear = layout_.autoclear & kAutoclearKnown;
    if (incompatible == layout_.incompatible && autoclear == layout_.autoclear) return {};
    std::array<std::byte, 24> fields{};
    TRY(file_.read(kFieldIncompatible, fields));
    store_be(fields.data(), incompatible);
    store_be(&fields[16], autoclear);
    TRY(device_.write_at(kFieldIncompatible, fields));
    return device_.flush();
  }

  const RepairPlan& plan_;
  const ImageFile& file_;
  BlockDevice& device_;
  const Layout& layout_;
  const StoredRefcounts& stored_;
};

}  // namespace

Result<void> carry_out(const RepairPlan& plan, const ImageFile& file, const Layout& layout,
                       const StoredRefcounts& stored) {
  return Carrier(plan, file, layout, stored).run();
}

}  // namespace varve::check
