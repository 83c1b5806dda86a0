// An open qcow2 image: the guest's disk as a BlockDevice, over the BlockDevice that holds the file.
//
// Reads go through the mapping (L1, L2, subclusters, compressed clusters) and fall through to the backing device.
// Writes allocate and copy on write. Order on disk is always: refcounts and data, flush, L2 tables, flush, L1, so that
// a crash leaves leaked clusters at worst. flush() makes all of it durable. Snapshots are changed through
// qcow2/snapshot_transaction.h only.
//
// Threads: metadata under one mutex, data I/O outside it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "crypto/encrypted_device.h"
#include "crypto/luks_volume.h"
#include "io/block_device.h"
#include "qcow2/dirty_bitmaps.h"
#include "qcow2/guest_reader.h"
#include "qcow2/header.h"
#include "qcow2/snapshot_table.h"

namespace varve::qcow2 {

struct CreateOptions {
  uint64_t size = 0;  // virtual size, bytes, a multiple of 512
  uint32_t version = 3;
  uint64_t cluster_size = 65536;
  uint32_t refcount_bits = 16;
  bool lazy_refcounts = false;
  bool extended_l2 = false;
  CompressionType compression_type = CompressionType::kZlib;
  bool preallocate_metadata = false;
  std::optional<std::string> backing_file = std::nullopt;
  std::optional<std::string> backing_format = std::nullopt;
  // The name of an external data file, as the header records it; making that file is the caller's business.
  std::optional<std::string> data_file = std::nullopt;
  // The data file is to read as a raw image of this disk at any time. Metadata is preallocated, so that what is written
  // to it directly is seen here as well.
  bool data_file_raw = false;
  // Encrypts the disk, with LUKS. Metadata that is preallocated shows noise then: the holes of the file, decrypted.
  std::optional<crypto::LuksFormat> encryption = std::nullopt;
  std::shared_ptr<const crypto::SecretBytes> passphrase = nullptr;  // with `encryption`: that of its first key slot
  // The same with QEMU's old AES method (specification, "crypt_method" 1). It keeps nothing about the key in the image.
  bool old_aes_encryption = false;
};

struct OpenOptions {
  // Dirty or corrupt images open for reading only, those with an external data file without `data` for reading of
  // metadata only; asking for write access to them is refused with the remedy. An encrypted image without `encrypted`
  // opens for changes of metadata (snapshots, bitmaps, names); guest data is neither read nor written (kPermission).
  bool writable = false;
  // The device that holds the guest's data clusters at the offsets that the tables say (compressed ones lie in the
  // image file always). By default the image file itself. Another one: the external data file, which has to be writable
  // where the image is.
  std::shared_ptr<BlockDevice> data = nullptr;
  // Of an encrypted image, in the place of `data`: the device that encrypts and has the data file or the image file
  // below it. It holds nothing back: to flush the file is to flush it.
  std::shared_ptr<crypto::EncryptedDevice> encrypted = nullptr;
};

// What deleting would give back, and what a point holds; bytes of the image file (docs/architecture.md, "Space").
struct SnapshotUsage {
  uint64_t referenced_bytes = 0;  // data clusters and L2 tables that the snapshot's tables reach, and its L1
  uint64_t exclusive_bytes = 0;   // of these, held by nothing else
};

// A point of an image: one of its snapshots, or the active disk. Space is counted in bytes of the image file, and
// clusters count whole where they are held, compressed ones by their sectors where they are referenced.
struct PointSpace {
  uint64_t referenced_bytes = 0;            // as SnapshotUsage
  uint64_t exclusive_bytes = 0;             // as SnapshotUsage
  uint64_t table_bytes = 0;                 // of the referenced bytes, L1 and L2 tables
  uint64_t shared_with_previous_bytes = 0;  // of the referenced bytes, what the point before has at the same place
};

// Which points hold what, in the order of the snapshot table, the active disk last.
class PointSpaces {
 public:
  // `held`: bytes by the first and the last point that hold them. Exclusive bytes follow from it.
  PointSpaces(std::vector<PointSpace> points, std::map<std::pair<uint32_t, uint32_t>, uint64_t> held);
  const std::vector<PointSpace>& points() const { return points_; }
  // What no point but those from `first` to `last` holds: what deleting all of these gives back.
  uint64_t exclusive_bytes(size_t first, size_t last) const;

 private:
  std::vector<PointSpace> points_;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> held_;
};

// Where two points of an image differ by their tables: different places, or one of the two has none. What is elsewhere
// may hold the same bytes all the same.
struct PointDifference {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;  // guest offset and length in bytes, sorted, apart
  uint64_t differing_bytes() const;
};

class Image final : public BlockDevice {
 public:
  static Result<std::unique_ptr<Image>> open(std::shared_ptr<BlockDevice> file, OpenOptions options);
  // Writes a new image into `file` (empty, or to be overwritten).
  static Result<void> create(BlockDevice& file, const CreateOptions& options);
  ~Image() override;

  // The device that shows through where nothing is allocated. Without one, zeroes.
  void set_backing(std::shared_ptr<BlockDevice> backing);
  const std::shared_ptr<BlockDevice>& backing() const;

  const Header& header() const;
  const std::vector<Snapshot>& snapshots() const;
  // That it is known what each of them refers to. kCorrupt where it is not (SnapshotFault): nothing may change then
  // that asks who shares a cluster with whom; `refused` says what, for the message.
  Result<void> check_snapshots(const char* refused) const;
  BlockDevice& file();
  // What keeps guest data from being read and written, if anything does: the key or the data file was not given.
  Result<void> check_readable() const;
  // Where the guest's data is: what OpenOptions give, or file().
  BlockDevice& data();
  // Writes everything that is pending, and then the header anew, as `change` makes it from the present one
  // (header_update.h): writing out may have moved a table, so nobody brings a header of an earlier time. kPermission
  // where the image is not open for writing.
  Result<void> update_header(const std::function<void(Header&)>& change);

  // The persistent dirty bitmaps, as in the file; what was recorded since the image was opened is not among it.
  // Writes through this object are recorded in those that record; until the object goes, the file has them as
  // "in use", so that after a crash nobody trusts them.
  Result<std::vector<DirtyBitmap>> bitmaps();
  // Stores these in the place of all bitmaps that there are. A crash leaves the old ones, the new ones, or none that a
  // program would trust. kUnsupported in images of version 2; kPermission where the image is not open for writing.
  Result<void> store_bitmaps(std::span<const DirtyBitmap> bitmaps);

  // A read-only device that shows the disk as it was in snapshots()[index] (its own size, the same backing). Must not
  // outlive the image; valid until the next snapshot commit. kCorrupt where the snapshot has a fault.
  Result<std::unique_ptr<BlockDevice>> open_snapshot(size_t index);
  Result<SnapshotUsage> snapshot_usage(size_t index);
  // One look at every table, however many points have it. Memory: 4 bytes for each cluster of the file that is held, 64
  // MiB for 1 TiB of clusters of 64 KiB, and 40 bytes for each table. kUnsupported for more than 65,534 snapshots.
  Result<PointSpaces> point_spaces();
  // Points are indexes of snapshots(), or their number for the active disk. Only tables that the two do not share are
  // looked at. Up to the larger of the two disks' sizes.
  Result<PointDifference> compare_points(size_t one, size_t other);

  Result<void> read_at(uint64_t offset, std::span<std::byte> buffer) override;
  Result<void> write_at(uint64_t offset, std::span<const std::byte> data) override;
  // Whole clusters, or up to the end of the disk from the beginning of one; compressed where that makes them smaller.
  // Several threads may do so at once: the compressing itself is outside of all locks.
  Result<void> write_compressed(uint64_t offset, std::span<const std::byte> data);
  // kMayUnmap frees clusters; kKeepAllocated keeps them where they are (v3). Whole clusters by their tables, edges by
  // data.
  Result<void> write_in_turn(uint64_t offset, std::span<const std::byte> data,
                             const std::function<void()>& placed) override;
  Result<void> write_zeroes(uint64_t offset, uint64_t length, ZeroMode mode) override;
  Result<void> discard(uint64_t offset, uint64_t length) override;
  Result<void> flush() override;
  void start_write_back(uint64_t offset, uint64_t length) override;
  Result<uint64_t> size() override;
  // The backing file that the header names; neither: none. One sector is written last, so a crash leaves the old name
  // or the new one. What shows through in this object is set_backing()'s matter. kNoSpace where the header has no room.
  Result<void> change_backing_name(const std::optional<std::string>& file, const std::optional<std::string>& format);
  // Lets go of everything that the active disk holds, so that the backing file shows through everywhere; snapshots keep
  // what they have. A crash leaves some of it let go of, and leaks.
  Result<void> make_empty();
  // An external data file gets the new size, too.
  // New space reads as zeroes. A crash leaves the old size or the new one; where there are bitmaps, perhaps without
  // them. kUnsupported for version 2 with snapshots, and for inconsistent bitmaps.
  Result<void> resize(uint64_t new_size) override;
  Result<void> grow_preallocated(uint64_t new_size);  // the same, and every new cluster has its place in the file
  // What the image is, with the same contents; no guest I/O goes on meanwhile. A crash leaves the old format or the new
  // one, and leaks at worst. kUnsupported where the new one has no place for something that the image holds.
  Result<void> upgrade();                                                                      // to version 3
  Result<void> downgrade(const std::function<void(uint64_t done, uint64_t total)>& progress);  // to version 2
  Result<void> change_refcount_bits(uint32_t bits);                                            // version 3
  Result<std::vector<Extent>> extents(uint64_t offset, uint64_t length) override;              // this layer only
  Result<std::vector<PlacedExtent>> placed_extents(uint64_t offset, uint64_t length);          // the same, with places
  // Clusters of [0, file size) that the refcounts say are in use; counting ends at `enough`.
  Result<uint64_t> used_clusters(uint64_t enough);
  DeviceCapabilities capabilities() const override;
  const std::string& name() const override;

 private:
  friend class SnapshotTransaction;
  struct State;
  explicit Image(std::unique_ptr<State> state);
  Result<bool> reads_as_zero(uint64_t offset, uint64_t length);
  Result<void> zero_raw_data_file(uint64_t offset, uint64_t length, ZeroMode mode);
  // Before guest data changes: bitmaps that record take note.
  Result<void> record_write(uint64_t offset, uint64_t length);
  Result<void> start_recording();
  Result<void> resize(uint64_t new_size, bool with_places);
  Result<void> check_resizable(uint64_t new_size) const;
  Result<void> check_downgrade() const;
  Result<void> resize_disk(uint64_t new_size, bool with_places);
  void finish_recording();
  std::unique_ptr<State> state_;
};

}  // namespace varve::qcow2
