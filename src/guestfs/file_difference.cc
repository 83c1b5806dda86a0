#include "guestfs/file_difference.h"

#include <algorithm>
#include <future>

namespace varve::guestfs {

namespace {

using Files = std::vector<GuestFile>;

struct Pair {
  std::string path;
  bool before = false;  // whether it is a directory there
  bool after = false;
};

Result<Files> sorted(const ListDirectory& list, const std::string& path) {
  Files files = TRY(list(path));
  std::ranges::sort(files, {}, &GuestFile::name);
  return files;
}

bool is_directory(const std::optional<GuestFile>& file) {
  return file && file->kind == GuestFileKind::kDirectory;
}

// Merges two sorted listings: `both` gets what has the same name in them together.
template <typename Visit>
Result<void> merge(Files before, Files after, const Visit& visit) {
  size_t a = 0;
  size_t b = 0;
  while (a < before.size() || b < after.size()) {
    const bool take_before = b == after.size() || (a < before.size() && before[a].name <= after[b].name);
    const bool take_after = a == before.size() || (b < after.size() && after[b].name <= before[a].name);
    std::optional<GuestFile> one;
    std::optional<GuestFile> other;
    if (take_before) one = std::move(before[a++]);
    if (take_after) other = std::move(after[b++]);
    TRY(visit(std::move(one), std::move(other)));
  }
  return {};
}

}  // namespace

std::vector<std::string> changes_of(const GuestFile& before, const GuestFile& after) {
  if (before.kind != after.kind) return {"kind"};
  std::vector<std::string> changes;
  const bool directory = before.kind == GuestFileKind::kDirectory;
  if (!directory && before.size_bytes != after.size_bytes) changes.emplace_back("size");
  if (!directory && (before.modified_sec != after.modified_sec || before.modified_nsec != after.modified_nsec)) {
    changes.emplace_back("time");
  }
  if (before.mode != after.mode) changes.emplace_back("mode");
  if (before.owner != after.owner || before.group != after.group) changes.emplace_back("owner");
  if (before.link_target != after.link_target) changes.emplace_back("target");
  const bool inode = before.changed_sec != after.changed_sec || before.changed_nsec != after.changed_nsec;
  if (changes.empty() && !directory && inode) changes.emplace_back("attributes");
  return changes;
}

Result<void> compare_trees(const ListDirectory& before, const ListDirectory& after,
                           const std::function<Result<void>(const GuestFileChange&)>& visit) {
  std::vector<Pair> waiting = {{.path = "/", .before = true, .after = true}};
  while (!waiting.empty()) {
    const Pair pair = std::move(waiting.back());
    waiting.pop_back();
    std::future<Result<Files>> other;
    if (pair.after) other = std::async(std::launch::async, [&] { return sorted(after, pair.path); });
    Result<Files> one = pair.before ? sorted(before, pair.path) : Result<Files>(Files{});
    Result<Files> two = pair.after ? other.get() : Result<Files>(Files{});
    if (!one) return std::move(one).error();
    if (!two) return std::move(two).error();
    const size_t first = waiting.size();
    TRY(merge(*std::move(one), *std::move(two),
              [&](std::optional<GuestFile> file, std::optional<GuestFile> successor) -> Result<void> {
                const std::string path = path_in(pair.path, file ? file->name : successor->name);
                if (is_directory(file) || is_directory(successor)) {
                  waiting.push_back({.path = path, .before = is_directory(file), .after = is_directory(successor)});
                }
                if (file && successor && changes_of(*file, *successor).empty()) return {};
                return visit({.path = path, .before = std::move(file), .after = std::move(successor)});
              }));
    std::reverse(waiting.begin() + static_cast<std::ptrdiff_t>(first), waiting.end());  // the first is next
  }
  return {};
}

}  // namespace varve::guestfs
