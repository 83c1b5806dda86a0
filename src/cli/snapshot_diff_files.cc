#include "cli/snapshot_diff_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/units.h"
#include "cli/guest_access.h"
#include "cli/interrupt.h"
#include "cli/local_host.h"
#include "guestfs/file_difference.h"

namespace varve::cli {

namespace {

using guestfs::GuestFile;
using guestfs::GuestFileChange;
using guestfs::GuestFileKind;
using guestfs::GuestFiles;
using guestfs::GuestFileSystem;
using nlohmann::json;

// The same device at both points.
struct ComparedFileSystem {
  std::optional<GuestFileSystem> before;
  std::optional<GuestFileSystem> after;
};

std::map<std::string, ComparedFileSystem> pair_up(std::vector<GuestFileSystem> before,
                                                  std::vector<GuestFileSystem> after) {
  std::map<std::string, ComparedFileSystem> pairs;
  for (GuestFileSystem& one : before) pairs[one.name].before = std::move(one);
  for (GuestFileSystem& one : after) pairs[one.name].after = std::move(one);
  return pairs;
}

// Why the files of the two are not compared; nothing where they are.
std::optional<std::string> why_not(const ComparedFileSystem& pair) {
  if (!pair.before) return fmt::format("it is new ({})", pair.after->type);
  if (!pair.after) return fmt::format("it is gone (it was {})", pair.before->type);
  if (pair.before->type != pair.after->type) {
    return fmt::format("it is another one: {} before, {} after", pair.before->type, pair.after->type);
  }
  if (!pair.before->has_files()) return fmt::format("no files are read from {}", pair.before->type);
  return std::nullopt;
}

std::string size_of(const GuestFile& file) {
  return file.kind == GuestFileKind::kFile ? format_size(static_cast<uint64_t>(std::max<int64_t>(file.size_bytes, 0)))
                                           : name_of(file.kind);
}

std::string line_of(const GuestFileChange& change) {
  const GuestFile& shown = change.after ? *change.after : *change.before;
  const char sign = !change.before ? '+' : !change.after ? '-' : '~';
  std::string size = size_of(shown);
  std::string what;
  if (change.before && change.after) {
    const std::string then = size_of(*change.before);
    if (then != size) size = then + " → " + size;
    for (const std::string& word : guestfs::changes_of(*change.before, *change.after)) {
      what += (what.empty() ? "  " : ", ") + word;
    }
  }
  return fmt::format("  {} {}  {}  {}{}\n", sign, visible(change.path), size, format_local_time(shown.modified_sec),
                     what);
}

json json_of(const std::optional<GuestFile>& file) {
  if (!file) return {};
  return {{"kind", name_of(file->kind)},
          {"mode", fmt::format("{:04o}", file->mode)},
          {"owner", file->owner},
          {"group", file->group},
          {"size_bytes", file->size_bytes},
          {"modified_sec", file->modified_sec},
          {"modified_nsec", file->modified_nsec},
          {"target", file->kind == GuestFileKind::kLink ? json(file->link_target) : json()}};
}

json json_of(const GuestFileChange& change) {
  json what = json::array();
  if (change.before && change.after) what = guestfs::changes_of(*change.before, *change.after);
  return {{"path", change.path},
          {"change", !change.before  ? "added"
                     : !change.after ? "removed"
                                     : "changed"},
          {"what", what},
          {"before", json_of(change.before)},
          {"after", json_of(change.after)}};
}

guestfs::ListDirectory listing_of(GuestFiles& files) {
  return [&files](const std::string& path) -> Result<std::vector<GuestFile>> {
    if (interrupted()) return make_error(ErrorKind::kInterrupted, "it was stopped");
    return files.list(path);
  };
}

// Both at once: each waits for a virtual machine.
template <typename Call>
Result<void> on_both(GuestFiles& before, GuestFiles& after, const Call& call) {
  auto other = std::async(std::launch::async, [&] { return call(after, false); });
  auto one = call(before, true);
  auto two = other.get();
  if (!one) return std::move(one).error();
  if (!two) return std::move(two).error();
  return {};
}

Result<void> compare_files(GuestFiles& before, GuestFiles& after, const ComparedFileSystem& pair,
                           const std::function<Result<void>(const GuestFileChange&)>& visit) {
  TRY(on_both(before, after,
              [&](GuestFiles& files, bool is_before) { return files.mount(is_before ? *pair.before : *pair.after); }));
  return guestfs::compare_trees(listing_of(before), listing_of(after), visit);
}

Result<bool> compare_all(Context& context, Guest& before, Guest& after, json* result) {
  std::vector<GuestFileSystem> then;
  std::vector<GuestFileSystem> now;
  TRY(on_both(*before.files, *after.files, [&](GuestFiles& files, bool is_before) -> Result<void> {
    (is_before ? then : now) = TRY(files.file_systems());
    return {};
  }));
  const auto pairs = pair_up(std::move(then), std::move(now));
  bool whole = true;
  if (pairs.empty() && result == nullptr) context.output.print("Files: there are no file systems\n");
  for (const auto& [name, pair] : pairs) {
    const std::string type = pair.after ? pair.after->type : pair.before->type;
    std::optional<std::string> problem = why_not(pair);
    json changes = json::array();
    size_t count = 0;
    if (!problem) {
      const auto compared =
          compare_files(*before.files, *after.files, pair, [&](const GuestFileChange& change) -> Result<void> {
            if (result != nullptr) {
              changes.push_back(json_of(change));
            } else {
              if (count == 0) context.output.print(fmt::format("Files of {} ({}):\n", visible(name), visible(type)));
              context.output.print(line_of(change));
            }
            ++count;
            return {};
          });
      if (!compared && interrupted()) return compared.error();
      if (!compared) {
        problem = compared.error().message;
        whole = false;
      }
    }
    if (result != nullptr) {
      result->push_back({{"device", name},
                         {"type", type},
                         {"problem", problem ? json(*problem) : json()},
                         {"changes", std::move(changes)}});
    } else if (problem) {
      context.output.print(fmt::format("Files of {}: {}\n", visible(name), visible(*problem)));
    } else if (count == 0) {
      context.output.print(fmt::format("Files of {} ({}): no difference\n", visible(name), visible(type)));
    }
  }
  return whole;
}

}  // namespace

Result<bool> diff_files(Context& context, Host& host, const FilesDiffRequest& request, json* result) {
  std::vector<std::string> targets;
  if (!request.disk.empty()) targets.push_back(request.disk);
  const auto first = TRY(points_of_snapshot(host, request.domain, request.one, targets));
  const auto second = request.other.empty() ? TRY(points_of_today(host, request.domain, targets))
                                            : TRY(points_of_snapshot(host, request.domain, request.other, targets));
  const InterruptWatch watch;
  // Both servers from this thread: each ends with the thread that started it.
  PointServer before_server = TRY(PointServer::start(request.domain, first));
  PointServer after_server = TRY(PointServer::start(request.domain, second));
  // The thread that starts an appliance stays as long as that: libguestfs may tie the one to the other.
  std::promise<Result<Guest>> started;
  std::promise<void> done;
  std::jthread other([&] {
    started.set_value(open_guest(context, std::move(after_server)));
    done.get_future().wait();
  });
  const auto at_the_end = [](std::promise<void>* promise) { promise->set_value(); };
  const std::unique_ptr<std::promise<void>, decltype(at_the_end)> ending(&done, at_the_end);
  auto before = open_guest(context, std::move(before_server));
  auto after = started.get_future().get();
  if (!before) return std::move(before).error();
  if (!after) return std::move(after).error();
  auto compared = compare_all(context, *before, *after, result);
  if (!compared) return unless_interrupted(std::move(compared).error());
  return compared;
}

}  // namespace varve::cli
