#include "crypto/luks_volume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "base/endian.h"
#include "io/fault_device.h"
#include "io/memory_device.h"

namespace varve::crypto {
namespace {

using testing::HasSubstr;

constexpr uint64_t kAt = 65536;  // where the header lies in the file

LuksFormat quick(CipherSpec cipher = {}) {
  return {cipher, HashAlgorithm::kSha256, 1};
}

struct Volume {
  std::shared_ptr<MemoryDevice> file;
  LuksArea area;
};

Volume make_volume(const LuksFormat& format = quick()) {
  Volume volume{std::make_shared<MemoryDevice>("luks", kAt + luks_header_area(format.cipher)), {}};
  const auto bytes = make_luks_header(format, SecretBytes("first"));
  EXPECT_TRUE(bytes) << bytes.error().message;
  EXPECT_TRUE(volume.file->write_at(kAt, *bytes));
  volume.area = {volume.file.get(), kAt, luks_header_area(format.cipher)};
  return volume;
}

bool opens(const LuksArea& area, std::string_view passphrase) {
  const auto header = read_luks_header(area);
  EXPECT_TRUE(header) << header.error().message;
  return unlock(area, *header, SecretBytes(passphrase)).has_value();
}

std::array<std::byte, kLuksHeaderBytes> header_bytes(const LuksArea& area) {
  std::array<std::byte, kLuksHeaderBytes> bytes;
  EXPECT_TRUE(area.device->read_at(area.offset, bytes));
  return bytes;
}

// ---- the header

TEST(LuksHeader, SurvivesARoundTrip) {
  const Volume volume = make_volume();
  const auto bytes = header_bytes(volume.area);
  const auto header = parse_luks_header(bytes);
  ASSERT_TRUE(header) << header.error().message;
  EXPECT_EQ(serialize_luks_header(*header), bytes);
  EXPECT_EQ(header->cipher, CipherSpec{});
  EXPECT_EQ(header->payload_offset, 2068480u);  // QEMU's, for two keys of 256 bits
  EXPECT_EQ(header->uuid.size(), 36u);
  EXPECT_EQ(header->active_slots(), 1u);
  EXPECT_EQ(header->slots[7].key_offset, 4096u + 7 * 258048);
}

struct Damage {
  const char* what;
  size_t offset;
  std::vector<unsigned char> bytes;
  const char* message;
};

// Offsets: LUKS specification, figure 1; slots begin at 208 and have 48 bytes: active, iterations, salt, offset,
// stripes.
TEST(LuksHeader, EveryLimitIsChecked) {
  const Volume volume = make_volume();
  const auto good = header_bytes(volume.area);
  const std::vector<unsigned char> full(32, 'a');
  const std::vector<Damage> all{
      {"magic", 0, {'X'}, "Volume is not in LUKS format"},
      {"version", 6, {0, 2}, "LUKS version 2 is not supported"},
      {"cipher", 8, full, "LUKS header cipher name is not NUL terminated"},
      {"mode", 40, full, "LUKS header cipher mode is not NUL terminated"},
      {"hash", 72, full, "LUKS header hash spec is not NUL terminated"},
      {"payload", 104, {0, 0, 0, 7}, "LUKS payload is overlapping with the header"},
      {"digest iterations", 164, {0, 0, 0, 0}, "LUKS key iteration count is zero"},
      {"stripes", 208 + 44, {0, 0, 0x0f, 0xa1}, "Keyslot 0 is corrupted (stripes 4001 != 4000)"},
      {"stripes", 208 + 44, {0xff, 0xff, 0xff, 0xff}, "Keyslot 0 is corrupted (stripes -1 != 4000)"},
      {"state", 208 + 48, {1, 2, 3, 4}, "Keyslot 1 state (active/disable) is corrupted"},
      {"iterations", 208 + 4, {0, 0, 0, 0}, "Keyslot 0 iteration count is zero"},
      {"material", 208 + 40, {0, 0, 0, 0}, "Keyslot 0 is overlapping with the LUKS header"},
      {"material", 208 + 40, {0xff, 0xff, 0xff, 0xff}, "Keyslot 0 is overlapping with the encrypted payload"},
      {"material", 208 + 3 * 48 + 40, {0, 0, 0, 16}, "Keyslots 0 and 3 are overlapping in the header"},
      {"key size", 108, {0xff, 0xff, 0xff, 0xff}, "Keyslot 0 is overlapping with the encrypted payload"},
      {"key size", 108, {0, 0, 0, 63}, "Algorithm 'aes' with key size 31 bytes not supported"},
      {"key size", 108, {0, 0, 0, 0}, "Algorithm 'aes' with key size 0 bytes not supported"},
      {"cipher", 8, {'d', 'e', 's', 0}, "Algorithm 'des' with key size 32 bytes not supported"},
      {"mode", 40, {'x', 't', 's', 0}, "Unexpected cipher mode string format 'xts'"},
      {"mode", 40, {'l', 'r', 'w', '-', 'x', 0}, "Cipher mode 'lrw' not supported"},
      {"mode", 40, {'x', 't', 's', '-', 'x', 0}, "IV generator 'x' not supported"},
      {"mode", 40, {'x', 't', 's', '-', 'x', ':', 'y', 0}, "Hash algorithm 'y' not supported"},
      {"mode", 40, {'c', 'b', 'c', '-', 'e', 's', 's', 'i', 'v', 0}, "not supported"},
      {"hash", 72, {'x', 0}, "Hash algorithm 'x' not supported"},
  };
  for (const Damage& damage : all) {
    auto bytes = good;
    std::memcpy(&bytes[damage.offset], damage.bytes.data(), damage.bytes.size());
    const auto header = parse_luks_header(bytes);
    ASSERT_FALSE(header) << damage.what << ": " << damage.message;
    EXPECT_THAT(header.error().message, HasSubstr(damage.message));
  }
}

TEST(LuksHeader, RandomDamageIsRefusedOrHarmless) {
  const Volume volume = make_volume();
  const auto good = header_bytes(volume.area);
  std::mt19937_64 random(11);
  for (int round = 0; round < 20000; ++round) {
    auto bytes = good;
    const auto changes = 1 + random() % 4;
    for (uint64_t i = 0; i < changes; ++i) {
      const size_t at = random() % bytes.size();
      bytes[at] = static_cast<std::byte>(random());
    }
    const auto header = parse_luks_header(bytes);
    if (!header) continue;
    for (const LuksSlot& slot : header->slots)
      EXPECT_LE(slot.key_offset + luks_material_bytes(header->cipher), header->payload_offset);
  }
}

TEST(LuksVolume, AHeaderBehindTheEndOfTheFileIsRefused) {
  const Volume volume = make_volume();
  for (const LuksArea& area :
       {LuksArea{volume.file.get(), uint64_t{1} << 63, 1 << 20},
        LuksArea{volume.file.get(), *volume.file->size() - 100, 1 << 20}, LuksArea{volume.file.get(), kAt, 591}}) {
    const auto header = read_luks_header(area);
    ASSERT_FALSE(header);
    EXPECT_EQ(header.error().kind, ErrorKind::kCorrupt);
  }
}

TEST(LuksVolume, KeyMaterialOutsideOfWhatTheImageCallsTheHeaderIsNotRead) {
  Volume volume = make_volume();
  volume.area.length = 8192;
  const auto header = read_luks_header(volume.area);
  ASSERT_TRUE(header);
  const auto key = unlock(volume.area, *header, SecretBytes("first"));
  ASSERT_FALSE(key);
  EXPECT_EQ(key.error().message, "Request for data outside of extension header");
}

// ---- passphrases and slots

class Formats : public testing::TestWithParam<LuksFormat> {};

TEST_P(Formats, OpenWithThePassphraseAndNoOther) {
  const Volume volume = make_volume(GetParam());
  EXPECT_TRUE(opens(volume.area, "first"));
  EXPECT_FALSE(opens(volume.area, "second"));
  EXPECT_FALSE(opens(volume.area, ""));
}

INSTANTIATE_TEST_SUITE_P(
    LuksVolume, Formats,
    testing::Values(
        quick(), quick({CipherAlgorithm::kAes128, CipherMode::kCbc, IvGenerator::kPlain, {}}),
        // 96000 bytes of key material: not whole sectors.
        quick({CipherAlgorithm::kAes192, CipherMode::kCbc, IvGenerator::kEssiv, HashAlgorithm::kSha256}),
        LuksFormat{{CipherAlgorithm::kAes192, CipherMode::kXts, IvGenerator::kPlain64, {}}, HashAlgorithm::kSha512, 1},
        LuksFormat{{}, HashAlgorithm::kRipemd160, 1}));

TEST(LuksVolume, ANewSlotOpensTheSameKey) {
  const Volume volume = make_volume();
  const LuksHeader before = *read_luks_header(volume.area);
  const SecretBytes first = *unlock(volume.area, before, SecretBytes("first"));
  ASSERT_TRUE(add_key_slot(volume.area, SecretBytes("first"), SecretBytes("second"), std::nullopt, 1,
                           KeySlotCare::kRefuseLoss));
  ASSERT_TRUE(add_key_slot(volume.area, SecretBytes("second"), SecretBytes("third"), 6, 1, KeySlotCare::kRefuseLoss));
  const LuksHeader header = *read_luks_header(volume.area);
  EXPECT_TRUE(header.slots[0].active && header.slots[1].active && header.slots[6].active);
  EXPECT_EQ(header.active_slots(), 3u);
  for (const char* passphrase : {"first", "second", "third"}) {
    const auto key = unlock(volume.area, header, SecretBytes(passphrase));
    ASSERT_TRUE(key) << passphrase;
    EXPECT_EQ(key->text(), first.text());
  }
}

std::string message_of(const Result<void>& result) {
  return result ? "done" : result.error().message;
}

TEST(LuksVolume, RefusalsAreQemus) {
  const Volume volume = make_volume();
  const SecretBytes first("first"), second("second");
  const auto add = [&](const SecretBytes& old, std::optional<uint64_t> slot, KeySlotCare care) {
    return message_of(add_key_slot(volume.area, old, second, slot, 1, care));
  };
  EXPECT_EQ(add(first, 8, KeySlotCare::kForce), "Invalid keyslot 8 specified, must be between 0 and 7");
  EXPECT_EQ(add(first, 0, KeySlotCare::kRefuseLoss), "Refusing to overwrite active keyslot 0 - please erase it first");
  EXPECT_EQ(add(second, 1, KeySlotCare::kRefuseLoss), "Invalid password, cannot unlock any keyslot");

  const auto erase = [&](uint64_t slot, const SecretBytes* passphrase) {
    return message_of(erase_key_slot(volume.area, slot, passphrase, KeySlotCare::kRefuseLoss));
  };
  EXPECT_EQ(erase(9, nullptr), "Invalid keyslot 9 specified, must be between 0 and 7");
  EXPECT_EQ(erase(1, nullptr), "Given keyslot 1 is already erased (inactive) ");
  EXPECT_EQ(erase(0, &second), "Given keyslot 0 doesn't contain the given old password for erase operation");
  EXPECT_EQ(erase(0, nullptr),
            "Attempt to erase the only active keyslot 0 which will erase all the data in the image irreversibly - "
            "refusing operation");
  EXPECT_EQ(message_of(erase_key_slots_of(volume.area, second, KeySlotCare::kRefuseLoss)),
            "No keyslots match given (old) password for erase operation");
  EXPECT_EQ(message_of(erase_key_slots_of(volume.area, first, KeySlotCare::kRefuseLoss)),
            "All the active keyslots match the (old) password that was given and erasing them will erase all the data "
            "in the image irreversibly - refusing operation");
  EXPECT_TRUE(opens(volume.area, "first"));
}

TEST(LuksVolume, AnErasedSlotIsGoneForGood) {
  const Volume volume = make_volume();
  ASSERT_TRUE(add_key_slot(volume.area, SecretBytes("first"), SecretBytes("second"), 6, 1, KeySlotCare::kRefuseLoss));
  const LuksHeader before = *read_luks_header(volume.area);
  ASSERT_TRUE(erase_key_slots_of(volume.area, SecretBytes("second"), KeySlotCare::kRefuseLoss));
  EXPECT_FALSE(opens(volume.area, "second"));
  EXPECT_TRUE(opens(volume.area, "first"));
  // Not even with the old header: the key material is gone too.
  ASSERT_TRUE(volume.file->write_at(kAt, serialize_luks_header(before)));
  EXPECT_FALSE(opens(volume.area, "second"));
}

TEST(LuksVolume, ForceErasesTheLastSlot) {
  const Volume volume = make_volume();
  ASSERT_TRUE(erase_key_slot(volume.area, 0, nullptr, KeySlotCare::kForce));
  EXPECT_EQ(read_luks_header(volume.area)->active_slots(), 0u);
}

TEST(LuksVolume, AllSlotsInUse) {
  const Volume volume = make_volume();
  for (int i = 1; i < 8; ++i)
    ASSERT_TRUE(
        add_key_slot(volume.area, SecretBytes("first"), SecretBytes("x"), std::nullopt, 1, KeySlotCare::kRefuseLoss));
  EXPECT_EQ(message_of(add_key_slot(volume.area, SecretBytes("first"), SecretBytes("y"), std::nullopt, 1,
                                    KeySlotCare::kRefuseLoss)),
            "Can't add a keyslot - all keyslots are in use");
}

// A power cut at any write of adding and of erasing a slot (of slot 6, whose entry lies across two sectors) leaves a
// header that parses, the first passphrase working, and the slot either whole or not active.
TEST(LuksVolume, APowerCutNeverLosesTheOtherSlots) {
  for (const bool erasing : {false, true}) {
    bool finished = false;
    for (uint64_t cut = 1; !finished; ++cut) {
      Volume volume = make_volume();
      if (erasing) {
        ASSERT_TRUE(
            add_key_slot(volume.area, SecretBytes("first"), SecretBytes("second"), 6, 1, KeySlotCare::kRefuseLoss));
      }
      FaultDevice faulty(volume.file->clone());
      const LuksArea area{&faulty, kAt, volume.area.length};
      faulty.control().cut_power_at(cut);
      const auto result =
          erasing ? erase_key_slot(area, 6, nullptr, KeySlotCare::kRefuseLoss)
                  : add_key_slot(area, SecretBytes("first"), SecretBytes("second"), 6, 1, KeySlotCare::kRefuseLoss);
      finished = result.has_value();
      const LuksArea left{&faulty.disk(), kAt, volume.area.length};
      EXPECT_TRUE(opens(left, "first")) << "cut at " << cut;
      const auto header = read_luks_header(left);
      ASSERT_TRUE(header);
      if (erasing || !header->slots[6].active) {
        EXPECT_EQ(opens(left, "second"), header->slots[6].active) << "cut at " << cut;
      } else {
        EXPECT_TRUE(opens(left, "second")) << "cut at " << cut;
      }
    }
  }
}

}  // namespace
}  // namespace varve::crypto
