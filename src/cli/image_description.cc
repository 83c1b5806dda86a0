#include "cli/image_description.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "cli/snapshot_table_text.h"
#include "crypto/luks_header.h"
#include "image/backing_name.h"
#include "qcow2/bitmap_directory.h"
#include "qcow2/luks_area.h"

namespace varve::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kNanosecondsPerSecond = 1000000000;

Json describe_snapshot(const qcow2::Snapshot& snapshot) {
  Json json = Json::object();
  if (snapshot.icount && *snapshot.icount != ~uint64_t{0}) json["icount"] = static_cast<int64_t>(*snapshot.icount);
  json["vm-clock-nsec"] = snapshot.vm_clock_nsec % kNanosecondsPerSecond;
  json["name"] = snapshot_word(snapshot.name);
  json["date-sec"] = snapshot.date_sec;
  json["date-nsec"] = snapshot.date_nsec;
  json["vm-clock-sec"] = snapshot.vm_clock_nsec / kNanosecondsPerSecond;
  json["id"] = snapshot_word(snapshot.id);
  json["vm-state-size"] = snapshot.vm_state_size;
  return json;
}

Json describe_bitmap(const qcow2::Bitmap& bitmap) {
  Json flags = Json::array();
  if (bitmap.in_use) flags.push_back("in-use");
  if (bitmap.automatic) flags.push_back("auto");
  Json json = Json::object();
  json["flags"] = flags;
  json["name"] = bitmap.name;
  json["granularity"] = bitmap.granularity;
  return json;
}

// A qcow2 image says which of its methods it is.
enum class Place : uint8_t { kImage, kQcow2 };

Json describe_luks(const crypto::LuksHeader& luks, Place place) {
  Json slots = Json::array();
  for (const crypto::LuksSlot& slot : luks.slots) {
    Json json = Json::object();
    json["active"] = slot.active;
    if (slot.active) json["iters"] = slot.iterations;
    json["key-offset"] = slot.key_offset;
    if (slot.active) json["stripes"] = slot.stripes;
    slots.push_back(std::move(json));
  }
  const crypto::CipherSpec& cipher = luks.cipher;
  Json json = Json::object();
  json["ivgen-alg"] = name_of(cipher.iv_generator);
  json["hash-alg"] = name_of(luks.hash);
  json["cipher-alg"] = name_of(cipher.algorithm);
  json["uuid"] = luks.uuid;
  if (cipher.iv_generator == crypto::IvGenerator::kEssiv) json["ivgen-hash-alg"] = name_of(*cipher.iv_hash);
  if (place == Place::kQcow2) json["format"] = "luks";
  json["cipher-mode"] = name_of(cipher.mode);
  json["slots"] = std::move(slots);
  json["payload-offset"] = luks.payload_offset;
  json["master-key-iters"] = luks.key_digest_iterations;
  return json;
}

Result<Json> describe_encryption(qcow2::Image& image) {
  if (image.header().crypt_method == qcow2::CryptMethod::kAes) return Json{{"format", "aes"}};
  return describe_luks(TRY(crypto::read_luks_header(TRY(qcow2::luks_area(image.file(), image.header())))),
                       Place::kQcow2);
}

Result<Json> describe_format(qcow2::Image& image) {
  const qcow2::Header& header = image.header();
  Json data = Json::object();
  data["compat"] = header.version < 3 ? "0.10" : "1.1";
  data["compression-type"] = header.compression_type == qcow2::CompressionType::kZlib ? "zlib" : "zstd";
  if (header.version >= 3) data["lazy-refcounts"] = header.lazy_refcounts();
  if (header.bitmaps) {
    Json list = Json::array();
    for (const qcow2::Bitmap& bitmap : TRY(qcow2::read_bitmap_directory(image.file(), header, *header.bitmaps)))
      list.push_back(describe_bitmap(bitmap));
    data["bitmaps"] = std::move(list);
  }
  data["refcount-bits"] = header.refcount_bits();
  if (header.has_data_file() && header.data_file) data["data-file"] = *header.data_file;
  if (header.crypt_method != qcow2::CryptMethod::kNone) data["encrypt"] = TRY(describe_encryption(image));
  if (header.has_data_file()) {
    data["data-file-raw"] = (header.autoclear_features & qcow2::kAutoclearRawDataFile) != 0;
  }
  if (header.version >= 3) {
    data["corrupt"] = header.is_corrupt();
    data["extended-l2"] = header.has_extended_l2();
  }
  Json json = Json::object();
  json["type"] = "qcow2";
  json["data"] = std::move(data);
  return json;
}

// A name of the JSON document as text: "refcount-bits" is "refcount bits".
std::string label_of(std::string key) {
  std::ranges::replace(key, '-', ' ');
  return key;
}

void append_value(std::string& text, const std::string& label, const Json& value, size_t depth);

void append_members(std::string& text, const Json& json, size_t depth) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) append_value(text, label_of(key), value, depth);
  } else {
    size_t index = 0;
    for (const auto& value : json) append_value(text, fmt::format("[{}]", index++), value, depth);
  }
}

void append_value(std::string& text, const std::string& label, const Json& value, size_t depth) {
  text += std::string(4 * depth, ' ') + label + ":";
  if (value.is_structured()) {
    text += "\n";
    append_members(text, value, depth + 1);
  } else {
    text += fmt::format(" {}\n", value.is_string() ? value.get<std::string>() : value.dump());
  }
}

}  // namespace

Result<Json> describe_image(const image::OpenImage& image, const std::string& name) {
  qcow2::Image* qcow2 = image.qcow2();
  const qcow2::Header* header = qcow2 != nullptr ? &qcow2->header() : nullptr;
  // QEMU asks the topmost driver, and blkdebug knows nothing of backing files and dirty images.
  const qcow2::Header* named = image.has_disk_filter() ? nullptr : header;
  Json json = Json::object();
  if (qcow2 != nullptr && !qcow2->snapshots().empty()) {
    Json list = Json::array();
    for (const qcow2::Snapshot& snapshot : qcow2->snapshots()) list.push_back(describe_snapshot(snapshot));
    json["snapshots"] = std::move(list);
  }
  if (named != nullptr && named->backing_format) json["backing-filename-format"] = *header->backing_format;
  json["virtual-size"] = TRY(image.device()->size());
  json["filename"] = name;
  if (header != nullptr) json["cluster-size"] = header->cluster_size();
  json["format"] = image.has_disk_filter() ? "blkdebug" : name_of(image.format());
  if (!image.has_filters()) json["actual-size"] = TRY(image.file().allocated_bytes());
  if (qcow2 != nullptr && !image.has_disk_filter()) json["format-specific"] = TRY(describe_format(*qcow2));
  if (const image::LuksImage* luks = image.luks(); luks != nullptr && !image.has_disk_filter())
    json["format-specific"] = Json{{"type", "luks"}, {"data", describe_luks(luks->header(), Place::kImage)}};
  if (named != nullptr && named->backing_file) {
    const bool is_file_name = image::protocol_of(*named->backing_file).has_value();
    json["full-backing-filename"] =
        is_file_name ? *named->backing_file : image::resolve_backing_name(image.path(), *named->backing_file);
  }
  const bool encrypted_qcow2 = header != nullptr && header->crypt_method != qcow2::CryptMethod::kNone;
  if (encrypted_qcow2 || image.luks() != nullptr) json["encrypted"] = true;
  if (named != nullptr && named->backing_file) json["backing-filename"] = *named->backing_file;
  json["dirty-flag"] = header != nullptr && header->is_dirty();
  return json;
}

Result<std::string> image_text(const image::OpenImage& image, const std::string& name) {
  const Json json = TRY(describe_image(image, name));
  const auto text_of = [&](const char* key) { return json.at(key).get<std::string>(); };
  const auto virtual_size = json.at("virtual-size").get<uint64_t>();
  std::string text =
      fmt::format("image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n", text_of("filename"),
                  text_of("format"), format_size(virtual_size), virtual_size,
                  json.contains("actual-size") ? format_size(json.at("actual-size").get<uint64_t>()) : "unavailable");
  if (json.contains("encrypted")) text += "encrypted: yes\n";
  if (json.contains("cluster-size")) text += fmt::format("cluster_size: {}\n", json.at("cluster-size").get<uint64_t>());
  if (json.at("dirty-flag").get<bool>()) text += "cleanly shut down: no\n";
  if (json.contains("backing-filename")) {
    text += "backing file: " + text_of("backing-filename");
    if (text_of("full-backing-filename") != text_of("backing-filename")) {
      text += fmt::format(" (actual path: {})", text_of("full-backing-filename"));
    }
    text += "\n";
  }
  if (json.contains("backing-filename-format")) {
    text += fmt::format("backing file format: {}\n", text_of("backing-filename-format"));
  }
  if (image.qcow2() != nullptr) text += snapshot_table_text(image.qcow2()->snapshots());
  if (json.contains("format-specific")) {
    text += "Format specific information:\n";
    append_members(text, json.at("format-specific").at("data"), 1);
  }
  return text;
}

}  // namespace varve::cli
