#include "io/crash_states.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "io/sector.h"

namespace varve {
namespace {

// An operation that reached the disk: whole, or some of its sectors.
struct Applied {
  size_t index = 0;           // in the disk's log
  std::vector<bool> sectors;  // empty: whole
};

// What reached one disk of its unflushed operations, in this order.
using Choice = std::vector<Applied>;

using Random = std::mt19937_64;

bool chance(Random& random, unsigned one_in) {
  return random() % one_in == 0;
}

uint64_t sectors_of(const DiskOperation& operation) {
  const bool tears = (operation.kind & (kOpWrite | kOpWriteZeroes | kOpDiscard)) != 0;
  return tears ? varve::sectors_of(operation.offset, operation.length) : 1;
}

// Far more than a test writes at once; a discard of everything is not cut into a million parts.
constexpr uint64_t kMaxTornSectors = 1 << 16;

bool can_tear(const DiskOperation& operation) {
  const uint64_t sectors = sectors_of(operation);
  return sectors >= 2 && sectors <= kMaxTornSectors;
}

std::vector<bool> random_sectors(const DiskOperation& operation, Random& random) {
  std::vector<bool> sectors(sectors_of(operation));
  for (size_t i = 0; i < sectors.size(); ++i) sectors[i] = chance(random, 2);
  return sectors;
}

// The ways to tear one operation.
std::vector<std::vector<bool>> tearings(const DiskOperation& operation, Random& random) {
  std::vector<std::vector<bool>> result;
  if (!can_tear(operation)) return result;
  const size_t n = sectors_of(operation);
  const auto run = [n](size_t from, size_t to) {
    std::vector<bool> sectors(n);
    std::fill(sectors.begin() + static_cast<ptrdiff_t>(from), sectors.begin() + static_cast<ptrdiff_t>(to), true);
    return sectors;
  };
  for (const size_t cut : {size_t{1}, n / 2, n - 1}) {
    result.push_back(run(0, cut));
    result.push_back(run(cut, n));
  }
  result.push_back(random_sectors(operation, random));
  result.push_back(random_sectors(operation, random));
  return result;
}

void apply(const DiskOperation& operation, const Applied& applied, MemoryDevice& disk) {
  if (applied.sectors.empty()) {
    CHECK(operation.apply_to(disk));
    return;
  }
  for (size_t first = 0; first < applied.sectors.size(); ++first) {
    if (!applied.sectors[first]) continue;
    size_t count = 1;
    while (first + count < applied.sectors.size() && applied.sectors[first + count]) ++count;
    const ByteRange range = sector_part(operation.offset, operation.length, first, count);
    DiskOperation part{
        .kind = operation.kind, .offset = range.offset, .length = range.length, .data = {}, .mode = operation.mode};
    if (operation.kind == kOpWrite) {
      const auto from = operation.data.begin() + static_cast<ptrdiff_t>(range.offset - operation.offset);
      part.data.assign(from, from + static_cast<ptrdiff_t>(range.length));
    }
    CHECK(part.apply_to(disk));
    first += count;
  }
}

// One disk on its way through the run: what is durable, and what may be lost.
class DiskHistory {
 public:
  explicit DiskHistory(const FaultControl::DiskRecord& record) : record_(record), durable_(record.initial->clone()) {}

  bool next_is(uint64_t sequence) const { return next_ < record_.log.size() && record_.sequences[next_] == sequence; }

  void advance() {
    const DiskOperation& operation = record_.log[next_];
    if (operation.kind == kOpFlush) {
      for (const size_t index : pending_) CHECK(record_.log[index].apply_to(*durable_));
      pending_.clear();
    } else {
      pending_.push_back(next_);
    }
    ++next_;
  }

  Choice none() const { return {}; }
  Choice all() const {
    Choice choice;
    for (const size_t index : pending_) choice.push_back({index, {}});
    return choice;
  }

  std::vector<Choice> variations(const CrashOptions& options, Random& random) const {
    std::vector<Choice> result = {none(), all()};
    if (pending_.size() <= options.all_subsets_up_to) add_all_subsets(result);
    if (options.torn && !pending_.empty()) {
      for (auto& sectors : tearings(record_.log[pending_.back()], random)) {
        Choice others = all();
        others.pop_back();
        result.push_back({{pending_.back(), sectors}});
        others.push_back({pending_.back(), std::move(sectors)});
        result.push_back(std::move(others));
      }
    }
    for (size_t i = 0; i < pending_.size() && pending_.size() > 1; ++i) {
      if (options.each_alone) result.push_back({{pending_[i], {}}});
      if (options.each_missing) {
        Choice choice = all();
        choice.erase(choice.begin() + static_cast<ptrdiff_t>(i));
        result.push_back(std::move(choice));
      }
    }
    return result;
  }

  void add_all_subsets(std::vector<Choice>& result) const {
    for (size_t subset = 1; subset < size_t{1} << pending_.size(); ++subset) {
      Choice choice;
      for (size_t i = 0; i < pending_.size(); ++i)
        if ((subset >> i & 1) != 0) choice.push_back({pending_[i], {}});
      add_orders(choice, result);
    }
  }

  // Those that overlap none of the others stay where they are.
  void add_orders(const Choice& choice, std::vector<Choice>& result) const {
    constexpr size_t kMostOrdered = 5;  // 120 orders
    result.push_back(choice);
    std::vector<size_t> places;
    for (size_t i = 0; i < choice.size(); ++i) {
      if (record_.log[choice[i].index].kind == kOpResize) return;
      for (size_t k = 0; k < choice.size(); ++k) {
        if (k == i || !overlap(choice[i], choice[k])) continue;
        places.push_back(i);
        break;
      }
    }
    if (places.empty() || places.size() > kMostOrdered) return;
    std::vector<size_t> order = places;
    while (std::next_permutation(order.begin(), order.end())) {
      Choice other = choice;
      for (size_t i = 0; i < places.size(); ++i) other[places[i]] = choice[order[i]];
      result.push_back(std::move(other));
    }
  }

  bool overlap(const Applied& a, const Applied& b) const {
    const DiskOperation& first = record_.log[a.index];
    const DiskOperation& second = record_.log[b.index];
    return first.offset < second.offset + second.length && second.offset < first.offset + first.length;
  }

  Choice random_choice(Random& random) const {
    Choice choice;
    bool has_resize = false;
    for (const size_t index : pending_) {
      if (chance(random, 2)) continue;
      const DiskOperation& operation = record_.log[index];
      has_resize |= operation.kind == kOpResize;
      choice.push_back({index, {}});
      if (can_tear(operation) && chance(random, 3)) choice.back().sectors = random_sectors(operation, random);
    }
    // The order matters only where two of them overlap. A file system keeps changes of size in theirs.
    if (!has_resize && overlaps(choice)) std::shuffle(choice.begin(), choice.end(), random);
    return choice;
  }

  std::shared_ptr<MemoryDevice> materialise(const Choice& choice) const {
    std::shared_ptr<MemoryDevice> disk = durable_->clone();
    for (const Applied& applied : choice) apply(record_.log[applied.index], applied, *disk);
    return disk;
  }

  // Equal for equal disks: what is durable plus what was applied. (Also for "all" before a flush and "none" after it.)
  std::string key(const Choice& choice) const {
    std::vector<Applied> rest = choice;
    size_t durable = next_ - pending_.size();
    for (const size_t index : pending_) {
      if (rest.empty() || rest.front().index != index || !rest.front().sectors.empty()) break;
      rest.erase(rest.begin());
      durable = index + 1;
    }
    while (durable > 0 && record_.log[durable - 1].kind == kOpFlush) --durable;
    std::string text = fmt::format("{}", durable);
    for (const Applied& applied : rest) {
      text += fmt::format(",{}:", applied.index);
      for (const bool sector : applied.sectors) text += sector ? '1' : '0';
    }
    return text + ";";
  }

  std::string describe(const Choice& choice) const {
    std::string text =
        fmt::format(", {}: {} of {} unflushed operations on disk", record_.name, choice.size(), pending_.size());
    if (choice.size() == pending_.size() && std::all_of(choice.begin(), choice.end(), is_whole)) return text;
    for (const Applied& applied : choice) {
      text += fmt::format("{}{}{}", &applied == &choice.front() ? " (numbers " : ", ", applied.index,
                          is_whole(applied) ? "" : " torn");
    }
    return choice.empty() ? text : text + ")";
  }

 private:
  static bool is_whole(const Applied& applied) { return applied.sectors.empty(); }

  bool overlaps(const Choice& choice) const {
    std::vector<ByteRange> ranges;
    for (const Applied& applied : choice) {
      ranges.push_back({record_.log[applied.index].offset, record_.log[applied.index].length});
    }
    std::sort(ranges.begin(), ranges.end(), [](const ByteRange& a, const ByteRange& b) { return a.offset < b.offset; });
    uint64_t end = 0;
    for (const ByteRange& range : ranges) {
      if (range.offset < end) return true;
      end = std::max(end, range.offset + range.length);
    }
    return false;
  }

  const FaultControl::DiskRecord& record_;
  std::unique_ptr<MemoryDevice> durable_;
  std::vector<size_t> pending_;  // unflushed operations, indexes in the log
  size_t next_ = 0;
};

class Enumeration {
 public:
  Enumeration(const FaultControl& control, const CrashOptions& options, const std::function<bool(CrashState&)>& visit)
      : control_(control), options_(options), visit_(visit), random_(options.seed) {
    for (const auto& record : control.records()) disks_.emplace_back(*record);
  }

  size_t run() {
    std::optional<size_t> touched;
    for (uint64_t completed = 0; going_ && completed <= control_.recorded_operations(); ++completed) {
      if (completed > 0) touched = advance(completed - 1);
      moment(completed, touched);
      // A mark after this very operation: the same disks, with and without it.
      while (going_ && marks_passed_ < control_.marks().size() && control_.marks()[marks_passed_] == completed) {
        ++marks_passed_;
        seen_.clear();
        moment(completed, touched);
      }
    }
    return visited_;
  }

 private:
  size_t advance(uint64_t sequence) {
    size_t i = 0;
    while (!disks_.at(i).next_is(sequence)) ++i;
    disks_[i].advance();
    return i;
  }

  std::vector<Choice> on_each(Choice (DiskHistory::*pick)() const) const {
    std::vector<Choice> choices;
    for (const DiskHistory& disk : disks_) choices.push_back((disk.*pick)());
    return choices;
  }

  void moment(uint64_t completed, std::optional<size_t> touched) {
    for (const auto pick : {&DiskHistory::none, &DiskHistory::all}) {
      std::vector<Choice> choices = on_each(pick);
      visit(completed, choices);
      if (!touched) continue;
      for (Choice& variation : disks_[*touched].variations(options_, random_)) {
        choices[*touched] = std::move(variation);
        visit(completed, choices);
      }
    }
    for (unsigned i = 0; i < options_.random_states; ++i) {
      std::vector<Choice> choices;
      for (const DiskHistory& disk : disks_) choices.push_back(disk.random_choice(random_));
      visit(completed, choices);
    }
  }

  void visit(uint64_t completed, const std::vector<Choice>& choices) {
    if (!going_) return;
    std::string key;
    for (size_t i = 0; i < disks_.size(); ++i) key += disks_[i].key(choices[i]);
    if (!seen_.insert(std::move(key)).second) return;
    CrashState state;
    state.completed = completed;
    state.marks_passed = marks_passed_;
    state.description =
        fmt::format("power failure after operation {} of {}", completed, control_.recorded_operations());
    if (!control_.marks().empty()) state.description += fmt::format(", {} marks passed", marks_passed_);
    for (size_t i = 0; i < disks_.size(); ++i) {
      state.disks.push_back(disks_[i].materialise(choices[i]));
      state.description += disks_[i].describe(choices[i]);
    }
    state.description += fmt::format(" (seed {})", options_.seed);
    ++visited_;
    going_ = visit_(state);
  }

  const FaultControl& control_;
  const CrashOptions& options_;
  const std::function<bool(CrashState&)>& visit_;
  Random random_;
  std::vector<DiskHistory> disks_;
  size_t marks_passed_ = 0;
  std::set<std::string> seen_;  // since the last mark
  size_t visited_ = 0;
  bool going_ = true;
};

}  // namespace

size_t for_each_crash_state(const FaultControl& control, const CrashOptions& options,
                            const std::function<bool(CrashState&)>& visit) {
  return Enumeration(control, options, visit).run();
}

}  // namespace varve
