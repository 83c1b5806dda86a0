// Headers that lie: small changes to one good image, and what becomes of each. The unit tests of the header check what
// we say; the interop tests check that qemu-img refuses the same ones, or why not.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "qcow2/image.h"
#include "support/image_bytes.h"

namespace varve::test {

// Image::create() puts, in clusters of 64 KiB: header, refcount table, one refcount block, L1 table; the first free
// cluster is number 4.
inline const qcow2::CreateOptions kGoodImage{.size = 1 << 20};
inline constexpr uint64_t kGoodCluster = 65536;

struct Patch {
  uint64_t offset = 0;
  unsigned width = 4;  // bytes; 0: the file ends here
  uint64_t value = 0;
};

struct HostileHeader {
  std::string name;
  std::vector<Patch> patches;
  ErrorKind kind = ErrorKind::kCorrupt;
  uint64_t offset = 0;  // that the error names
  std::string message;  // a part of it
  // QEMU opens this one for reading (and finds out later, or never): it does not compare tables with the file's size.
  bool qemu_opens = false;
};

inline void apply(BlockDevice& device, const Patch& p) {
  switch (p.width) {
    case 0:
      ASSERT_TRUE(device.resize(p.offset));
      return;
    case 1:
      return poke(device, p.offset, static_cast<uint8_t>(p.value));
    case 2:
      return poke(device, p.offset, static_cast<uint16_t>(p.value));
    case 4:
      return poke(device, p.offset, static_cast<uint32_t>(p.value));
    case 8:
      return poke(device, p.offset, p.value);
    default:
      FAIL() << "no such width: " << p.width;
  }
}

inline std::vector<HostileHeader> hostile_headers() {
  constexpr uint64_t kC = kGoodCluster;
  constexpr auto kBad = ErrorKind::kCorrupt;
  constexpr auto kNo = ErrorKind::kUnsupported;
  constexpr bool kOpens = true;
  return {
      {"EmptyFile", {{0, 0}}, kBad, 0, "is not a qcow2 image (0 bytes"},
      {"FileOfOneByte", {{1, 0}}, kBad, 0, "is not a qcow2 image (1 bytes"},
      {"FileCutInTheFixedHeader", {{71, 0}}, kBad, 0, "is not a qcow2 image (71 bytes"},
      {"FileCutInTheVersion3Header",
       {{103, 0}},
       kBad,
       100,
       "the header of 104 bytes runs past the end of the file of 103"},
      {"FileCutBehindTheHeader", {{112, 0}}, kBad, 40, "L1 table (offset 0x30000, 8 bytes) lies outside", kOpens},
      {"FileCutAfterTheHeaderCluster", {{kC, 0}}, kBad, 40, "lies outside of the file of 65536 bytes", kOpens},
      {"FileCutBeforeTheL1Table", {{3 * kC, 0}}, kBad, 40, "lies outside of the file of 196608 bytes", kOpens},
      {"WrongMagic", {{0, 4, 0x514649fa}}, kBad, 0, "wrong magic number"},
      {"QcowVersion1", {{4, 4, 1}}, kNo, 4, "version 1 is not supported"},
      {"QcowVersion4", {{4, 4, 4}}, kNo, 4, "version 4 is not supported"},
      {"ClustersOf256Bytes", {{20, 4, 8}}, kBad, 20, "cluster size 2^8 "},
      {"ClustersOf4MiB", {{20, 4, 22}}, kBad, 20, "cluster size 2^22 "},
      {"ClusterBits63", {{20, 4, 63}}, kBad, 20, "cluster size 2^63 "},
      {"ClusterBits64", {{20, 4, 64}}, kBad, 20, "cluster size 2^64 "},
      {"ClusterBitsAllOnes", {{20, 4, 0xffffffff}}, kBad, 20, "cluster size 2^4294967295 "},
      {"VirtualSizeBeyondTheL1Table",
       {{24, 8, uint64_t{1} << 40}},
       kBad,
       36,
       "too small for a disk of 1099511627776 bytes"},
      {"VirtualSizeOfAllOnes", {{24, 8, ~uint64_t{0}}}, kBad, 24, "virtual size of 18446744073709551615 bytes"},
      {"VirtualSize2To63", {{24, 8, uint64_t{1} << 63}}, kBad, 24, "virtual size of 9223372036854775808 bytes"},
      {"UnknownEncryption", {{32, 4, 3}}, kBad, 32, "unknown encryption method 3"},
      {"L1TableTooLarge", {{36, 4, (32u << 20) / 8 + 1}}, kBad, 36, "4194305 entries exceeds the limit of 4194304"},
      {"L1SizeAllOnes", {{36, 4, 0xffffffff}}, kBad, 36, "4294967295 entries exceeds"},
      {"L1SizeZero",
       {{36, 4, 0}},
       kBad,
       36,
       "L1 table of 0 entries is too small for a disk of 1048576 bytes (needs 1)"},
      {"L1BeyondTheFile", {{40, 8, 64 * kC}}, kBad, 40, "lies outside of the file of 196616 bytes", kOpens},
      {"L1LongerThanTheFile", {{36, 4, 9000}}, kBad, 40, "(offset 0x30000, 72000 bytes) lies outside", kOpens},
      {"L1Misaligned", {{40, 8, 3 * kC + 512}}, kBad, 40, "L1 table at offset 0x30200 is not cluster-aligned"},
      {"L1InTheHeader", {{40, 8, 0}}, kBad, 40, "L1 table at offset 0x0 overlaps the header", kOpens},
      {"L1Near2To64", {{40, 8, ~uint64_t{0} - kC + 1}}, kBad, 40, "offset 0xffffffffffff0000"},
      {"L1EndsBeyond2To64",
       {{40, 8, ~uint64_t{0} - kC + 1}, {36, 4, 4194304}},
       kBad,
       40,
       "33554432 bytes) lies outside"},
      {"RefcountTableBeyondTheFile", {{48, 8, 64 * kC}}, kBad, 48, "refcount table (offset 0x400000", kOpens},
      {"RefcountTableMisaligned",
       {{48, 8, kC + 8}},
       kBad,
       48,
       "refcount table at offset 0x10008 is not cluster-aligned"},
      {"RefcountTableInTheHeader", {{48, 8, 0}}, kBad, 48, "refcount table at offset 0x0 overlaps the header", kOpens},
      {"RefcountTableNear2To64", {{48, 8, ~uint64_t{0} - kC + 1}}, kBad, 48, "offset 0xffffffffffff0000"},
      {"RefcountTableOnTheL1Table", {{48, 8, 3 * kC}}, kBad, 40, "L1 table and refcount table overlap", kOpens},
      {"NoRefcountTable", {{56, 4, 0}}, kBad, 56, "has no refcount table"},
      {"RefcountTableTooLarge",
       {{56, 4, 129}},
       kBad,
       56,
       "refcount table of 129 clusters exceeds the limit of 8388608"},
      {"RefcountTableOfAllOnes", {{56, 4, 0xffffffff}}, kBad, 56, "4294967295 clusters exceeds"},
      {"RefcountTableLongerThanTheFile", {{56, 4, 128}}, kBad, 48, "8388608 bytes) lies outside", kOpens},
      {"TooManySnapshots", {{60, 4, 65537}}, kBad, 60, "65537 snapshots exceed the limit of 65536"},
      {"SnapshotsOfAllOnes", {{60, 4, 0xffffffff}}, kBad, 60, "4294967295 snapshots exceed"},
      {"SnapshotTableBeyondTheFile",
       {{60, 4, 1}, {64, 8, 64 * kC}},
       kBad,
       64,
       "snapshot table (offset 0x400000",
       kOpens},
      {"SnapshotTableMisaligned",
       {{60, 4, 1}, {64, 8, 3 * kC + 8}},
       kBad,
       64,
       "snapshot table at offset 0x30008 is not"},
      {"SnapshotTableInTheHeader", {{60, 4, 1}, {64, 8, 0}}, kBad, 64, "snapshot table at offset 0x0 overlaps", kOpens},
      {"SnapshotTableOnTheL1Table",
       {{60, 4, 1}, {64, 8, 3 * kC}},
       kBad,
       40,
       "L1 table and snapshot table overlap",
       kOpens},
      {"SnapshotTableNear2To64", {{60, 4, 65536}, {64, 8, ~uint64_t{0} - kC + 1}}, kBad, 64, "0xffffffffffff0000"},
      {"SnapshotTableLongerThanTheFile",
       {{60, 4, 65536}, {64, 8, 2 * kC}},
       kBad,
       64,
       "2621440 bytes) lies outside",
       kOpens},
      {"RefcountsOf128Bits", {{96, 4, 7}}, kBad, 96, "refcount width 2^7 exceeds 64 bits"},
      {"RefcountOrderAllOnes", {{96, 4, 0xffffffff}}, kBad, 96, "refcount width 2^4294967295"},
      {"HeaderLengthZero", {{100, 4, 0}}, kBad, 100, "header length 0 "},
      {"HeaderLength103", {{100, 4, 103}}, kBad, 100, "header length 103 "},
      {"HeaderLengthOverACluster", {{100, 4, kC + 8}}, kBad, 100, "header length 65544 "},
      {"HeaderLengthAllOnes", {{100, 4, 0xffffffff}}, kBad, 100, "header length 4294967295 "},
      {"UnknownCompression", {{72, 8, 8}, {104, 1, 2}}, kBad, 104, "unknown compression type 2"},
      {"CompressionWithoutItsBit", {{104, 1, 1}}, kBad, 104, "compression type is set without"},
      {"CompressionBitForZlib", {{72, 8, 8}}, kBad, 72, "the compression type feature bit is set for zlib"},
      {"UnknownFeature", {{72, 8, 0x20}}, kNo, 72, "features that this version does not know: bit 5"},
      {"AllFeatures", {{72, 8, ~uint64_t{0x8}}}, kNo, 72, "bit 5, bit 6"},
      {"ExtendedL2InSmallClusters", {{72, 8, 0x10}, {20, 4, 12}}, kBad, 20, "clusters of 16 KiB or more, not 4096"},
      {"BackingNameOutsideTheCluster", {{8, 8, kC + 1}, {16, 4, 8}}, kBad, 8, "offset 0x10001 lies outside"},
      {"BackingNameFarOutside", {{8, 8, ~uint64_t{0}}, {16, 4, 8}}, kBad, 8, "offset 0xffffffffffffffff lies outside"},
      {"BackingNameInTheHeader", {{8, 8, 80}, {16, 4, 8}}, kBad, 8, "offset 0x50 overlaps the header", kOpens},
      {"BackingNameTooLong", {{8, 8, 1024}, {16, 4, 1024}}, kBad, 16, "backing file name of 1024 bytes is too long"},
      {"BackingNameRunsOut", {{8, 8, kC - 4}, {16, 4, 5}}, kBad, 16, "backing file name of 5 bytes is too long"},
      {"BackingNameOfAllOnes", {{8, 8, 1024}, {16, 4, 0xffffffff}}, kBad, 16, "name of 4294967295 bytes is too long"},
      {"ExtensionRunsOut",
       {{112, 4, 0x12345678}, {116, 4, kC}},
       kBad,
       112,
       "extension 0x12345678 of 65536 bytes runs past"},
      {"ExtensionsRunIntoTheBackingName", {{8, 8, 116}, {16, 4, 8}}, kBad, 112, "run into the backing file name"},
      {"ExtensionOfAllOnes", {{112, 4, 0x12345678}, {116, 4, 0xffffffff}}, kBad, 112, "4294967295 bytes runs past"},
      {"BackingFormatTooLong", {{112, 4, 0xe2792aca}, {116, 4, 16}}, kBad, 112, "backing format name is too long"},
  };
}

}  // namespace varve::test
