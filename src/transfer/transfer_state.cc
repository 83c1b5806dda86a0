#include "transfer/transfer_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"

namespace varve {

namespace {

using nlohmann::json;

constexpr size_t kMaxBytes = size_t{64} << 20;

json to_json(const FileStamp& stamp) {
  return {{"inode", stamp.inode}, {"size", stamp.size}, {"mtime", stamp.mtime_sec}, {"nsec", stamp.mtime_nsec}};
}

FileStamp stamp_from(const json& value) {
  return {.inode = value.at("inode").get<uint64_t>(),
          .size = value.at("size").get<uint64_t>(),
          .mtime_sec = value.at("mtime").get<int64_t>(),
          .mtime_nsec = value.at("nsec").get<uint32_t>()};
}

TransferState state_from(const json& document) {
  TransferState state;
  state.purpose = document.at("purpose").get<std::string>();
  state.uuid = document.at("uuid").get<std::string>();
  state.documents = document.at("documents").get<std::string>();
  for (const json& entry : document.at("files")) {
    state.files.push_back({.path = entry.at("path").get<std::string>(),
                           .source_path = entry.at("from").get<std::string>(),
                           .source = stamp_from(entry.at("source")),
                           .is_whole = entry.at("whole").get<bool>(),
                           .checksum = entry.at("checksum").get<std::string>(),
                           .copied = stamp_from(entry.at("copied")),
                           .is_settled = entry.at("settled").get<bool>()});
  }
  return state;
}

}  // namespace

TransferredFile* TransferState::find(const std::string& path) {
  const auto found = std::ranges::find(files, path, &TransferredFile::path);
  return found == files.end() ? nullptr : &*found;
}

std::string TransferStateFile::root_path() const {
  return fmt::format("{}/{}.json", Layout::transfer_directory(), domain_);
}

Result<TransferState> TransferStateFile::load() const {
  const auto path = layout_.resolve(root_path());
  if (!path && path.error().kind == ErrorKind::kNotFound) return TransferState();
  if (!path) return path.error();
  const std::string text = TRY(read_file(*path, kMaxBytes));
  try {
    return state_from(json::parse(text));
  } catch (const json::exception&) {
    Error error = make_error(ErrorKind::kCorrupt, fmt::format("{} can't be understood", *path));
    error.path = *path;
    error.notes.emplace_back(
        "it says how far a transfer has come; without it, that begins anew, and files named "
        "*.varve-part are left behind");
    return error;
  }
}

Result<void> TransferStateFile::save(const TransferState& state) const {
  json files = json::array();
  for (const TransferredFile& file : state.files) {
    files.push_back({{"path", file.path},
                     {"from", file.source_path},
                     {"source", to_json(file.source)},
                     {"whole", file.is_whole},
                     {"checksum", file.checksum},
                     {"copied", to_json(file.copied)},
                     {"settled", file.is_settled}});
  }
  const json document = {
      {"purpose", state.purpose}, {"uuid", state.uuid}, {"documents", state.documents}, {"files", std::move(files)}};
  return apply(layout_,
               {.path = root_path(), .contents = document.dump(1, ' ', false, json::error_handler_t::replace)});
}

Result<void> TransferStateFile::remove() const {
  return apply(layout_, {.path = root_path(), .contents = {}});
}

}  // namespace varve
