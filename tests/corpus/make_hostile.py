#!/usr/bin/env python3
"""Makes the images of tests/corpus/hostile, the same bytes every time.

Each is one good image with one lie in it, of 512-byte clusters where nothing else is said. Files are cut behind their
last byte that is not zero. catalogue.json, which is kept by hand, says of each what size it is padded to, what is wrong
with it, and what every command makes of it (tests/interop/hostile_catalogue_test.cc).

usage: tests/corpus/make_hostile.py [DIRECTORY]
"""
import os
import struct
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
CLUSTER = 512
COPIED = 1 << 63
COMPRESSED = 1 << 62
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURES = 0x6803F857
EXTENSION_BITMAPS = 0x23852875
EXTENSION_CRYPTO = 0x0537BE77
EXTENSION_DATA_FILE = 0x44415441
ALL32 = 0xFFFFFFFF
ALL64 = 0xFFFFFFFFFFFFFFFF


class Image:
    """Clusters: 0 header, 1 refcount table, 2 refcount block, 3 L1, 4 L2, 5 and 6 data; the disk has 32 KiB."""

    def __init__(self, version=3, clusters=7, bits=9):
        self.bits = bits
        self.cluster = 1 << bits
        self.data = bytearray(clusters * self.cluster)
        self.extensions_at = 112 if version == 3 else 72
        c = self.cluster
        self.put(0, struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, bits, 64 * c, 0, 1, 3 * c, c, 1, 0, 0))
        if version == 3:
            self.put(72, struct.pack(">QQQII", 0, 0, 0, 4, 112))
        self.u64(c, 2 * c)
        for i in range(7):
            self.refcount(i, 1)
        self.u64(3 * c, 4 * c | COPIED)
        self.u64(4 * c, 5 * c | COPIED)
        self.u64(4 * c + 8, 6 * c | COPIED)
        self.put(5 * c, b"\x51" * c)
        self.put(6 * c, b"\x52" * c)

    def at(self, number):
        return number * self.cluster

    def put(self, offset, data):
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset:offset + len(data)] = data
        return self

    def u8(self, offset, value):
        return self.put(offset, struct.pack(">B", value))

    def u16(self, offset, value):
        return self.put(offset, struct.pack(">H", value))

    def u32(self, offset, value):
        return self.put(offset, struct.pack(">I", value))

    def u64(self, offset, value):
        return self.put(offset, struct.pack(">Q", value & ALL64))

    def cut(self, size):
        del self.data[size:]
        return self

    def refcount(self, cluster, count):
        return self.u16(2 * self.cluster + 2 * cluster, count)

    def clusters(self, last):
        """Clusters up to this one exist and are in use once."""
        for i in range(7, last + 1):
            self.refcount(i, 1)
        if len(self.data) < self.at(last + 1):
            self.data.extend(bytes(self.at(last + 1) - len(self.data)))
        return self

    def l1(self, index, entry):
        return self.u64(self.at(3) + 8 * index, entry)

    def l2(self, index, entry):
        return self.u64(self.at(4) + 8 * index, entry)

    def extension(self, kind, data, length=None):
        self.put(self.extensions_at, struct.pack(">II", kind, len(data) if length is None else length) + data)
        self.extensions_at += 8 + (len(data) + 7) // 8 * 8
        return self

    def features(self, *names):
        return self.extension(EXTENSION_FEATURES,
                              b"".join(struct.pack(">BB46s", 0, bit, name) for bit, name in names))

    def backing(self, name, form=b"raw", offset=400, length=None):
        if form is not None:
            self.extension(EXTENSION_BACKING_FORMAT, form)
        self.put(offset, name)
        return self.u64(8, offset).u32(16, len(name) if length is None else length)

    def data_file(self, name):
        self.u64(72, 4)
        return self if name is None else self.extension(EXTENSION_DATA_FILE, name)


def snapshot_entry(l1=8 * CLUSTER, l1_size=1, name=b"one", number=b"1", extra=struct.pack(">QQQ", 0, 32768, ALL64),
                   id_size=None, name_size=None, extra_size=None, vm_state=0):
    entry = struct.pack(">QIHHIIQII", l1, l1_size, len(number) if id_size is None else id_size,
                        len(name) if name_size is None else name_size, 1700000000, 0, 0, vm_state,
                        len(extra) if extra_size is None else extra_size) + extra + number + name
    return entry + bytes(-len(entry) % 8)


def with_snapshots(*entries, count=None, **changes):
    """The snapshot table in cluster 7, the snapshot's L1 in cluster 8; all else is shared."""
    image = Image().clusters(8)
    entries = entries or (snapshot_entry(**changes),)
    image.put(image.at(7), b"".join(entries))
    image.u32(60, len(entries) if count is None else count).u64(64, image.at(7))
    image.l1(0, image.at(4)).u64(image.at(8), image.at(4))
    image.l2(0, image.at(5)).l2(1, image.at(6))
    for cluster in (4, 5, 6):
        image.refcount(cluster, 2)
    return image


def bitmap_entry(table=8 * CLUSTER, entries=1, flags=2, kind=1, granularity=9, name=b"dirty", extra=b"",
                 name_size=None, extra_size=None):
    entry = struct.pack(">QIIBBHI", table, entries, flags, kind, granularity,
                        len(name) if name_size is None else name_size,
                        len(extra) if extra_size is None else extra_size) + extra + name
    return entry + bytes(-len(entry) % 8)


def with_bitmaps(*entries, count=None, size=None, offset=None, table=None, **changes):
    """The directory in cluster 7, one bitmap's table in cluster 8, its bits in cluster 9."""
    image = Image().clusters(9)
    entries = entries or (bitmap_entry(**changes),)
    directory = b"".join(entries)
    image.put(image.at(7), directory)
    image.u64(88, 1)
    image.extension(EXTENSION_BITMAPS, struct.pack(">IIQQ", len(entries) if count is None else count, 0,
                                                   len(directory) if size is None else size,
                                                   image.at(7) if offset is None else offset))
    image.u64(image.at(8), image.at(9) if table is None else table)
    return image.put(image.at(9), b"\x0f")


def compressed(stream, kind=0, offset=None, sectors=None, version=3):
    """A compressed cluster, the second one of the disk, in cluster 6 or wherever it is said to be."""
    image = Image(version=version)
    image.put(image.at(6), bytes(512)).put(image.at(6), stream)
    if kind != 0:
        image.u64(72, 8).u8(104, kind)
    last = (len(image.data) - 1) // 512
    image.clusters(last)
    where = image.at(6) if offset is None else offset
    count = last - 6 if sectors is None else sectors
    return image.l2(1, COMPRESSED | count << 61 | where)  # 512-byte clusters: one bit for further sectors


def kept_stream(name):
    """From the corpus of the decompression fuzzer, whose first byte is not the stream's."""
    with open(os.path.join(HERE, "compressed", name), "rb") as file:
        return file.read()[1:]


def deflate(data):
    c = zlib.compressobj(9, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


IMAGES = {}
SIZES = {}  # of the files before they are cut


def add(name, image):
    assert name not in IMAGES, name
    IMAGES[name] = bytes(image.data).rstrip(b"\0")
    SIZES[name] = len(image.data)


def header_images():
    add("good", Image())
    add("file_of_four_bytes", Image().cut(4))
    add("file_cut_in_fixed_header", Image().cut(71))
    add("file_cut_in_v3_header", Image().cut(103))
    add("file_cut_behind_header", Image().cut(112))
    add("file_cut_behind_header_cluster", Image().cut(512))
    add("magic_wrong", Image().u32(0, 0x514649FA))
    for value in (0, 1, 4, ALL32):
        add(f"version_{value:x}", Image().u32(4, value))
    for value in (0, 8, 22, 31, 32, 63, 64, ALL32):
        add(f"cluster_bits_{value:x}", Image().u32(20, value))
    add("size_beyond_l1", Image().u64(24, 1 << 40))
    add("size_beyond_l1_by_one", Image().u64(24, 32769))
    add("size_2_to_63", Image().u64(24, 1 << 63))
    add("size_all_ones", Image().u64(24, ALL64))
    add("crypt_method_3", Image().u32(32, 3))
    add("crypt_method_all_ones", Image().u32(32, ALL32))
    add("crypt_luks_without_header", Image().u32(32, 2))
    add("l1_size_zero", Image().u32(36, 0))
    add("l1_size_over_limit", Image().u32(36, (32 << 20) // 8 + 1))
    add("l1_size_7fffffff", Image().u32(36, 0x7FFFFFFF))
    add("l1_size_all_ones", Image().u32(36, ALL32))
    add("l1_in_header", Image().u64(40, 0))
    add("l1_misaligned", Image().u64(40, 3 * 512 + 8))
    add("l1_beyond_file", Image().u64(40, 1 << 20))
    add("l1_longer_than_file", Image().u32(36, 9000))
    add("l1_end_beyond_2_to_63", Image().u64(40, 0x7FFFFFFFFFFFFE00).u32(36, 0xFFFF))
    add("l1_near_2_to_64", Image().u64(40, ALL64 - 511))
    add("refcount_table_in_header", Image().u64(48, 0))
    add("refcount_table_misaligned", Image().u64(48, 0x1234567890ABCDEF))
    add("refcount_table_beyond_file", Image().u64(48, 1 << 20))
    add("refcount_table_near_2_to_64", Image().u64(48, ALL64 - 0xFFFF).u32(56, 0x7F))
    add("refcount_table_none", Image().u32(56, 0))
    add("refcount_table_over_limit", Image().u32(56, (8 << 20) // 512 + 1))
    add("refcount_table_all_ones", Image().u32(56, ALL32))
    add("refcount_table_longer_than_file", Image().u32(56, 100))
    add("refcount_order_7", Image().u32(96, 7))
    add("refcount_order_all_ones", Image().u32(96, ALL32))
    for value in (0, 103, 105, 513, 520, 0x7FFFFFFF, ALL32):
        add(f"header_length_{value:x}", Image().u32(100, value))
    add("incompatible_unknown", Image().u64(72, 1 << 63))
    add("incompatible_all_but_known", Image().u64(72, ALL64 & ~0x1F))
    add("incompatible_named", Image().u64(72, 7 << 61).features((61, b"test1"), (63, b"test3")))
    add("incompatible_name_speaks_to_terminal", Image().u64(72, 1 << 40).features((40, b"\x1b[2J\x1b]0;x\x07\n")))
    add("incompatible_name_table_runs_out", Image().u64(72, 1 << 40).extension(EXTENSION_FEATURES, b"\0(abc", 4000))
    add("compression_type_2", Image().u64(72, 8).u8(104, 2))
    add("compression_type_without_bit", Image().u8(104, 1))
    add("compression_bit_for_zlib", Image().u64(72, 8))
    add("extended_l2_in_small_clusters", Image().u64(72, 0x10))
    add("corrupt_bit", Image().u64(72, 2))
    add("dirty_bit", Image().u64(72, 1))
    add("extension_runs_out", Image().extension(0x12345678, b"abc", 512))
    add("extension_7fffffff", Image().extension(0x12345678, b"abc", 0x7FFFFFFF))
    add("extension_all_ones", Image().extension(0x12345678, b"abc", ALL32))
    add("extension_ends_at_backing_name", Image().backing(b"secret", b"raw", offset=116))
    add("backing_format_too_long", Image().backing(b"secret", b"raw" * 6))
    add("crypto_extension_without_luks", Image().extension(EXTENSION_CRYPTO, bytes(16)))
    add("crypto_extension_too_short", Image().u32(32, 2).extension(EXTENSION_CRYPTO, bytes(8)))
    add("crypto_header_misaligned", Image().u32(32, 2).extension(EXTENSION_CRYPTO, struct.pack(">QQ", 100, 512)))
    add("crypto_header_beyond_file", Image().u32(32, 2).extension(EXTENSION_CRYPTO, struct.pack(">QQ", 1 << 40, 512)))
    add("crypto_header_of_all_ones", Image().u32(32, 2).extension(EXTENSION_CRYPTO, struct.pack(">QQ", 512, ALL64)))


def snapshot_images():
    add("snapshots_65537", with_snapshots(count=65537))
    add("snapshots_all_ones", with_snapshots(count=ALL32))
    add("snapshots_more_than_there_are", with_snapshots(count=2))
    add("snapshots_65536_beyond_file", Image().u32(60, 65536).u64(64, 16 << 20))
    add("snapshot_table_in_header", with_snapshots().u64(64, 0))
    add("snapshot_table_misaligned", with_snapshots().u64(64, 7 * 512 + 8))
    add("snapshot_table_beyond_file", with_snapshots().u64(64, 1 << 20))
    add("snapshot_table_near_2_to_64", with_snapshots(count=0xFFFF).u64(64, ALL64 - 0xFFFF))
    add("snapshot_id_runs_out", with_snapshots(id_size=0xFFFF))
    add("snapshot_name_runs_out", with_snapshots(name_size=0xFFFF))
    add("snapshot_extra_over_limit", with_snapshots(extra_size=1025))
    add("snapshot_extra_all_ones", with_snapshots(extra_size=ALL32))
    add("snapshot_extra_of_four_bytes", with_snapshots(extra=bytes(4)))
    add("snapshot_l1_too_large", with_snapshots(l1_size=0x10000000))
    add("snapshot_l1_all_ones", with_snapshots(l1_size=ALL32))
    add("snapshot_l1_misaligned", with_snapshots(l1=0x400208))
    add("snapshot_l1_beyond_file", with_snapshots(l1=1 << 20))
    add("snapshot_l1_in_header", with_snapshots(l1=0))
    add("snapshot_l1_near_2_to_64", with_snapshots(l1=ALL64 - 511))
    add("snapshot_l1_empty", with_snapshots(l1_size=0))
    add("snapshot_disk_of_all_ones", with_snapshots(extra=struct.pack(">QQ", 0, ALL64)))
    add("snapshot_disk_larger_than_l1", with_snapshots(extra=struct.pack(">QQ", 0, 1 << 40)))
    add("snapshot_name_speaks_to_terminal", with_snapshots(name=b"\x1b[2J\x1b]0;owned\x07"))
    add("snapshot_name_with_nul", with_snapshots(name=b"on\0e"))
    add("snapshot_name_is_path", with_snapshots(name=b"../../etc/passwd"))
    add("snapshot_ids_equal", with_snapshots(snapshot_entry(), snapshot_entry(name=b"two")))
    add("snapshot_id_not_a_number", with_snapshots(number=b"99999999999999999999999"))
    add("snapshot_state_of_2_to_63", with_snapshots(extra=struct.pack(">QQ", 1 << 63, 32768)))
    add("snapshot_l2_reserved_bits", with_snapshots().u64(8 * 512, 4 * 512 | 1 << 60))


def bitmap_images():
    add("bitmaps_extension_too_short", Image().u64(88, 1).extension(EXTENSION_BITMAPS, bytes(16)))
    add("bitmaps_none", with_bitmaps(count=0))
    add("bitmaps_65536", with_bitmaps(count=65536))
    add("bitmaps_all_ones", with_bitmaps(count=ALL32))
    add("bitmaps_more_than_there_are", with_bitmaps(count=2))
    add("bitmaps_fewer_than_there_are", with_bitmaps(bitmap_entry(), bitmap_entry(name=b"more"), count=1))
    add("bitmap_directory_empty", with_bitmaps(size=0))
    add("bitmap_directory_over_limit", with_bitmaps(size=(64 << 20) + 1))
    add("bitmap_directory_all_ones", with_bitmaps(size=ALL64))
    add("bitmap_directory_misaligned", with_bitmaps(offset=7 * 512 + 8))
    add("bitmap_directory_beyond_file", with_bitmaps(offset=1 << 20))
    add("bitmap_directory_in_header", with_bitmaps(offset=0))
    add("bitmap_directory_near_2_to_64", with_bitmaps(offset=ALL64 - 511, size=1024))
    add("bitmap_name_runs_out", with_bitmaps(name_size=0xFFFF))
    add("bitmap_name_of_1024", with_bitmaps(name=b"n" * 1024, table=10 * 512).u64(10 * 512, 0))
    add("bitmap_name_empty", with_bitmaps(name=b""))
    add("bitmap_name_speaks_to_terminal", with_bitmaps(name=b"\x1b[2J\x1b]0;owned\x07"))
    add("bitmap_names_equal", with_bitmaps(bitmap_entry(), bitmap_entry(entries=0, table=0)))
    add("bitmap_extra_runs_out", with_bitmaps(extra_size=ALL32))
    add("bitmap_extra_unknown", with_bitmaps(extra=b"\1\2\3\4\5\6\7\10"))
    add("bitmap_type_unknown", with_bitmaps(kind=2))
    add("bitmap_flags_unknown", with_bitmaps(flags=0x80000002))
    add("bitmap_granularity_8", with_bitmaps(granularity=8))
    add("bitmap_granularity_32", with_bitmaps(granularity=32))
    add("bitmap_granularity_255", with_bitmaps(granularity=255))
    add("bitmap_table_misaligned", with_bitmaps(table=None).put(7 * 512, struct.pack(">Q", 8 * 512 + 8)))
    add("bitmap_table_beyond_file", with_bitmaps().put(7 * 512, struct.pack(">Q", 1 << 20)))
    add("bitmap_table_in_header", with_bitmaps().put(7 * 512, struct.pack(">Q", 0)))
    add("bitmap_table_over_limit", with_bitmaps(entries=0x8000001))
    add("bitmap_table_all_ones", with_bitmaps(entries=ALL32))
    add("bitmap_table_too_short", with_bitmaps(entries=0))
    add("bitmap_table_entry_reserved_bits", with_bitmaps(table=9 * 512 | 1 << 60))
    add("bitmap_table_entry_misaligned", with_bitmaps(table=9 * 512 + 16))
    add("bitmap_data_beyond_file", with_bitmaps(table=1 << 20))
    add("bitmap_data_in_header", with_bitmaps(table=512))


def overlapping_images():
    add("overlap_l1_refcount_table", Image().u64(40, 512))
    add("overlap_snapshot_table_l1", with_snapshots().u64(64, 3 * 512))
    add("overlap_bitmap_directory_l1", with_bitmaps(offset=3 * 512))
    add("overlap_l2_header", Image().l1(0, COPIED))
    add("overlap_l2_refcount_table", Image().l1(0, 512 | COPIED))
    add("overlap_l2_refcount_block", Image().l1(0, 2 * 512 | COPIED))
    add("overlap_l2_l1", Image().l1(0, 3 * 512 | COPIED))
    add("overlap_l2_twice", Image().u32(36, 2).u64(24, 65536).l1(1, 4 * 512 | COPIED))
    add("overlap_data_header", Image().l2(0, COPIED).l2(1, 1))
    add("overlap_data_refcount_table", Image().l2(0, 512 | COPIED))
    add("overlap_data_refcount_block", Image().l2(0, 2 * 512 | COPIED))
    add("overlap_data_l1", Image().l2(0, 3 * 512 | COPIED))
    add("overlap_data_l2", Image().l2(0, 4 * 512 | COPIED))
    add("overlap_data_twice", Image().l2(1, 5 * 512 | COPIED))
    add("overlap_snapshot_l1_active_l1", with_snapshots(l1=3 * 512))
    add("overlap_snapshot_l1_refcount_block", with_snapshots(l1=2 * 512))
    add("overlap_bitmap_data_l1", with_bitmaps(table=3 * 512))
    add("overlap_bitmap_table_l2", with_bitmaps().put(7 * 512, struct.pack(">Q", 4 * 512)))


def table_images():
    add("l1_entry_reserved_bits", Image().l1(0, 4 * 512 | COPIED | 1 << 60))
    add("l1_entry_low_bits", Image().l1(0, 4 * 512 | COPIED | 1))
    add("l1_entry_misaligned", Image(bits=12).l1(0, 4 * 4096 + 512 | COPIED))
    add("l1_entry_beyond_file", Image().l1(0, 1 << 30 | COPIED))
    add("l1_entry_huge", Image().l1(0, 0x00FFFFFFFFFFFE00 | COPIED))
    add("l2_entry_reserved_bits", Image().l2(0, 5 * 512 | COPIED | 1 << 60))
    add("l2_entry_low_bits", Image().l2(0, 5 * 512 | COPIED | 2))
    add("l2_entry_misaligned", Image(bits=12).l2(0, 5 * 4096 + 512 | COPIED))
    add("l2_entry_beyond_file", Image().l2(0, 1 << 30 | COPIED))
    add("l2_entry_huge", Image().l2(0, 0x00FFFFFFFFFFFE00 | COPIED))
    add("l2_zero_flag_in_version_2", Image(version=2).l2(0, 5 * 512 | COPIED | 1))
    add("l2_entry_zero_misaligned", Image(bits=12).l2(0, 5 * 4096 + 512 | COPIED | 1))
    add("copied_flag_missing", Image().l2(0, 5 * 512))
    add("copied_flag_with_two_references", Image().refcount(5, 2))
    add("refcount_zero_in_use", Image().refcount(5, 0))
    add("refcount_zero_of_header", Image().refcount(0, 0))
    add("refcount_leak", Image().clusters(7))
    add("refcount_of_all_ones", Image().refcount(5, 0xFFFF))
    add("refcount_block_reserved_bits", Image().u64(512, 2 * 512 | 1))
    add("refcount_block_beyond_file", Image().u64(512, 1 << 30))
    add("refcount_block_huge", Image().u64(512, ALL64 & ~511))
    add("refcount_block_in_header", Image().u64(520, 0).u64(512, 0))
    add("refcount_block_is_the_table", Image().u64(512, 512))
    add("refcount_block_twice", Image().u64(520, 2 * 512))


def compressed_images():
    good = deflate(b"\x53" * 512)
    add("compressed_beyond_file", compressed(good, offset=1 << 20))
    add("compressed_huge_offset", compressed(good, offset=(1 << 61) - 512))
    add("compressed_at_end_of_file", compressed(good, offset=7 * 512 - 4, sectors=1))
    add("compressed_in_header", compressed(good, offset=0))
    add("compressed_is_its_own_l2", compressed(good, offset=4 * 512))
    add("compressed_with_copied_flag", compressed(good).l2(1, COPIED | COMPRESSED | 6 * 512))
    add("compressed_zlib_garbage", compressed(b"\xff" * 100))
    add("compressed_zlib_empty", compressed(b""))
    add("compressed_zlib_too_short", compressed(deflate(b"\x53" * 100)))
    add("compressed_zlib_cut", compressed(deflate(bytes(range(256)) * 2)[:40]))
    add("compressed_zlib_bomb", compressed(deflate(bytes(300 << 10))))
    add("compressed_zstd_garbage", compressed(b"\x28\xb5\x2f\xfd" + b"\xff" * 60, kind=1))
    add("compressed_zstd_empty", compressed(b"", kind=1))
    add("compressed_zstd_bomb", compressed(kept_stream("zstd_bomb"), kind=1))
    add("compressed_zstd_large_window", compressed(kept_stream("zstd_large_window"), kind=1))
    add("compressed_zlib_in_zstd_image", compressed(good, kind=1))


def images_that_name_files():
    add("backing_offset_behind_cluster", Image().backing(b"", offset=400).u64(8, 513))
    add("backing_offset_all_ones", Image().backing(b"", offset=400).u64(8, ALL64))
    add("backing_name_in_header", Image().u64(8, 80).u32(16, 8))
    add("backing_name_of_1024", Image(bits=12).backing(b"n" * 1024, offset=1024))
    add("backing_name_runs_out", Image().backing(b"secret", offset=508, length=5))
    add("backing_name_all_ones", Image().backing(b"secret", length=ALL32))
    add("backing_name_empty", Image().backing(b""))
    add("backing_name_with_nul", Image().backing(b"secret\0.raw"))
    add("backing_name_speaks_to_terminal", Image().backing(b"\x1b[2J\x1b]0;owned\x07"))
    add("backing_itself", Image().backing(b"backing_itself", b"qcow2"))
    add("backing_loop_a", Image().backing(b"backing_loop_b", b"qcow2"))
    add("backing_loop_b", Image().backing(b"./backing_loop_a", b"qcow2"))
    add("backing_json", Image().backing(b'json:{"driver":"file","filename":"secret"}'))
    add("backing_nbd", Image().backing(b"nbd:127.0.0.1:1"))
    add("backing_nbd_uri", Image().backing(b"nbd+unix:///x?socket=secret"))
    add("backing_ssh", Image().backing(b"ssh://root@127.0.0.1/etc/passwd"))
    add("backing_fat", Image().backing(b"fat:rw:."))
    add("backing_fd", Image().backing(b"fd:0"))
    add("backing_passwd", Image().backing(b"/etc/passwd"))
    add("backing_directory", Image().backing(b"."))
    add("backing_fifo", Image().backing(b"fifo"))
    add("backing_missing", Image().backing(b"missing"))
    add("backing_without_format", Image().backing(b"secret", None))
    add("backing_format_unknown", Image().backing(b"secret", b"foo"))
    add("backing_format_is_a_file", Image().backing(b"secret", b"/etc/passwd"))
    add("backing_format_speaks_to_terminal", Image().backing(b"secret", b"\x1b[2J"))
    add("backing_raw_called_qcow2", Image().backing(b"secret", b"qcow2"))
    add("data_file_passwd", Image().data_file(b"/etc/passwd"))
    add("data_file_secret", Image().data_file(b"secret"))
    add("data_file_fifo", Image().data_file(b"fifo"))
    add("data_file_json", Image().data_file(b'json:{"driver":"file","filename":"secret"}'))
    add("data_file_speaks_to_terminal", Image().data_file(b"\x1b[2J\x1b]0;owned\x07"))
    add("data_file_without_name", Image().data_file(None))
    add("data_file_without_bit", Image().data_file(b"secret").u64(72, 0))
    add("data_file_raw_without_data_file", Image().u64(88, 2))


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "hostile")
    header_images()
    snapshot_images()
    bitmap_images()
    overlapping_images()
    table_images()
    compressed_images()
    images_that_name_files()
    for name, data in IMAGES.items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)
    print(f"{len(IMAGES)} images, {sum(map(len, IMAGES.values()))} bytes")


if __name__ == "__main__":
    main()
