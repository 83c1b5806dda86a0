#include "interop/odd_images.h"

#include <gtest/gtest.h>

#include <ostream>

#include "support/process.h"
#include "support/temp_dir.h"

namespace varve::test {

std::ostream& operator<<(std::ostream& out, const OddImage& odd) {
  return out << odd.name;
}

void scatter(const Workshop& shop) {
  shop.io({"write -P 0x11 0 70000", "write -P 0x22 300k 123k", "write -P 0x33 1023k 1k", "write -z 10k 30k",
           "write -P 0x44 512k 512", "discard 320k 64k"});
}

namespace {

void snapshots_between_writes(const Workshop& shop) {
  scatter(shop);
  shop.img("snapshot -c one disk");
  shop.io({"write -P 0x55 1k 200k"});
  shop.img("snapshot -c two disk");
  shop.io({"write -P 0x66 150k 200k", "write -z -u 400k 100k"});
  shop.img("snapshot -c three disk");
  shop.img("snapshot -d two disk");
}

// The file ends with its last byte that is not zero.
void cut_zeroes_at_the_end(const Workshop& shop) {
  const std::string bytes = read_whole_file(shop / "disk");
  run_ok({"truncate", "-s", std::to_string(bytes.find_last_not_of('\0') + 1), shop / "disk"});
}

}  // namespace

std::vector<OddImage> odd_images() {
  std::vector<OddImage> all;
  const auto add = [&](const char* name, std::function<void(const Workshop&)> make, bool clean_before = true) {
    all.push_back({name, std::move(make), clean_before});
  };
  const auto add_shape = [&](const char* name, const std::string& options) {
    add(name, [options](const Workshop& shop) {
      shop.create(options, "1M");
      snapshots_between_writes(shop);
    });
  };
  add_shape("Clusters512", "cluster_size=512");
  add_shape("Clusters1024V2", "cluster_size=1024,compat=0.10");
  add_shape("Clusters4096", "cluster_size=4096");
  add_shape("Clusters32768", "cluster_size=32k");
  add_shape("Clusters64KiBV2", "compat=0.10");
  add_shape("Clusters2MiB", "cluster_size=2M");
  add_shape("Clusters2MiBV2", "cluster_size=2M,compat=0.10");
  add_shape("RefcountBits4", "refcount_bits=4");
  add_shape("RefcountBits8", "refcount_bits=8,cluster_size=512");
  add_shape("RefcountBits32", "refcount_bits=32,cluster_size=8k");
  add_shape("RefcountBits64", "refcount_bits=64,cluster_size=512");
  add_shape("ExtendedL2", "extended_l2=on");
  add_shape("ExtendedL2SmallClusters", "extended_l2=on,cluster_size=16k");
  add_shape("ExtendedL2LargeClusters", "extended_l2=on,cluster_size=2M");
  add_shape("LazyRefcounts", "lazy_refcounts=on");
  add_shape("ZstdImageWithoutCompressedClusters", "compression_type=zstd");
  add_shape("PreallocatedMetadata", "preallocation=metadata,cluster_size=4k");
  add_shape("PreallocatedFalloc", "preallocation=falloc");
  add_shape("PreallocatedFull", "preallocation=full,cluster_size=512");
  add_shape("PreallocatedExtendedL2", "preallocation=metadata,extended_l2=on");
  add("RefcountBits2", [](const Workshop& shop) {  // a revert counts one reference more before it counts down
    shop.create("refcount_bits=2,cluster_size=4k", "1M");
    scatter(shop);
  });
  add("RefcountBits1", [](const Workshop& shop) {
    shop.create("refcount_bits=1,cluster_size=1k", "1M");
    scatter(shop);
  });
  for (const char* type : {"zlib", "zstd"})
    for (const char* shape : {"", ",cluster_size=512", ",cluster_size=2M", ",extended_l2=on"}) {
      static std::vector<std::string> names;
      names.reserve(16);
      std::string name = std::string("Compressed_") + type + "_" + std::to_string(all.size());
      names.push_back(name);
      const std::string options = std::string("compression_type=") + type + shape;
      add(names.back().c_str(), [options](const Workshop& shop) {
        shop.create("", "3M", "source");
        shop.io({"write -P 0x11 0 1M", "write -P 0x22 1M 1000k"}, "source");
        // Something that does not compress away to nothing.
        run_ok({"dd", "if=" + test::find_program("qemu-img"), "of=" + (shop / "bytes"), "bs=64k", "count=10"});
        run_ok({"qemu-io", "-f", "qcow2", "-c", "write -s " + (shop / "bytes") + " 2000k 640k", shop / "source"});
        shop.img("convert -c -O qcow2 -o " + options + " source disk");
        shop.img("snapshot -c one disk");
        shop.io({"write -P 0x77 100k 100k", "write -P 0x78 2100k 3k"});
        shop.img("snapshot -c two disk");
      });
    }
  add("CompressedV2", [](const Workshop& shop) {
    shop.create("", "1M", "source");
    shop.io({"write -P 0x11 0 900k"}, "source");
    shop.img("convert -c -O qcow2 -o compat=0.10 source disk");
  });
  add("EmptyDisk", [](const Workshop& shop) { shop.create("", "0"); });
  add("EmptyDiskWithASnapshot", [](const Workshop& shop) {
    shop.create("", "0");
    shop.img("snapshot -c empty disk");
    shop.img("resize -q disk 1M");
  });
  add("DiskOfOneSector", [](const Workshop& shop) {
    shop.create("", "512");
    shop.io({"write -P 0x11 0 512"});
    shop.img("snapshot -c one disk");
  });
  add("DiskThatEndsWithinACluster", [](const Workshop& shop) {
    shop.create("", "1050112");
    shop.io({"write -P 0x11 1000k 25k"});
    shop.img("snapshot -c one disk");
    shop.io({"write -P 0x12 1049600 512"});
  });
  add("Grown", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    snapshots_between_writes(shop);
    shop.img("resize -q disk 9M");
    shop.io({"write -P 0x71 5M 1M"});
    shop.img("snapshot -c grown disk");
  });
  add("GrownBeyondItsL1Table", [](const Workshop& shop) {
    shop.create("cluster_size=512", "1M");
    snapshots_between_writes(shop);
    shop.img("resize -q disk 60M");
    shop.io({"write -P 0x71 59M 100k"});
    shop.img("snapshot -c grown disk");
  });
  add("GrownWithPreallocation", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.img("resize -q --preallocation=metadata disk 3M");
  });
  add("Shrunk", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "8M");
    shop.io({"write -P 0x11 0 8M"});
    shop.img("resize -q --shrink disk 1M");
    shop.img("snapshot -c small disk");
  });
  add("SnapshotsOfThreeSizes", [](const Workshop& shop) {
    shop.create("cluster_size=64k", "4M");
    shop.io({"write -P 0x11 0 4M"});
    shop.img("snapshot -c large disk");
    shop.img("resize -q --shrink disk 1M");
    shop.io({"write -P 0x12 512k 512k"});
    shop.img("snapshot -c small disk");
    shop.img("resize -q disk 2M");
    shop.img("snapshot -c middle disk");
  });
  add("MachineStateOfNothing", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.machine("savevm one\nsavevm two", {"-machine", "none"});
    shop.img("snapshot -c three disk");
  });
  add("MachineState", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    scatter(shop);
    shop.machine("savevm one", {"-machine", "q35", "-m", "16"});
    shop.io({"write -P 0x61 0 512k"});
    shop.machine("savevm two\nloadvm one\nsavevm three\ndelvm two", {"-machine", "q35", "-m", "16"});
  });
  add("AmendedToVersion2", [](const Workshop& shop) {
    shop.create("", "1M");
    snapshots_between_writes(shop);
    shop.img("amend -q -o compat=0.10 disk");
  });
  add("AmendedToVersion3AndWideRefcounts", [](const Workshop& shop) {
    shop.create("compat=0.10", "1M");
    snapshots_between_writes(shop);
    shop.img("amend -q -o compat=1.1 disk");
    shop.img("amend -q -o refcount_bits=64 disk");
    shop.img("amend -q -o lazy_refcounts=on disk");
  });
  for (const char* compat : {"1.1", "0.10"})
    add(*compat == '1' ? "OverAShortBackingFile" : "OverAShortBackingFileV2", [compat](const Workshop& shop) {
      run_ok({"truncate", "-s", "400000", shop / "base"});
      run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x99 0 390k", shop / "base"});
      shop.img(std::string("create -q -f qcow2 -b base -F raw -o compat=") + compat + " disk 1M");
      shop.io({"write -P 0x11 100 1000", "write -z 100k 40k", "write -P 0x12 380k 30k"});
      shop.img("snapshot -c one disk");
      shop.io({"write -P 0x13 128k 64k"});
    });
  add("OverALongBackingFile", [](const Workshop& shop) {
    run_ok({"truncate", "-s", "4M", shop / "base"});
    run_ok({"qemu-io", "-f", "raw", "-c", "write -P 0x99 0 4M", shop / "base"});
    shop.img("create -q -f qcow2 -b base -F raw -o extended_l2=on disk 1M");
    shop.io({"write -P 0x11 100 1000", "write -z 100k 40k", "discard 512k 64k"});
    shop.img("snapshot -c one disk");
  });
  add("DirtyBitmaps", [](const Workshop& shop) {
    shop.create("", "8M");
    scatter(shop);
    shop.img("bitmap --add -g 64k disk first");
    shop.img("bitmap --add -g 512 disk second");
    shop.io({"write -P 0x31 1M 1M"});
    shop.img("snapshot -c one disk");
    shop.io({"write -P 0x32 2M 10k"});
    shop.img("bitmap --disable disk second");
  });
  add(
      "BitmapsInUseOfAProgramThatDied",
      [](const Workshop& shop) {
        shop.create("", "8M");
        shop.img("bitmap --add disk first");
        // abort() leaves the bitmap marked "in use" in the file; its contents were in memory.
        (void)run({"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "flush", "-c", "abort", shop / "disk"});
      },
      false);
  add("CutWithinItsL1Table", [](const Workshop& shop) {
    shop.create("", "1M");
    run_ok({"truncate", "-s", std::to_string((3 << 16) + 1), shop / "disk"});
  });
  add("CutWithinAnL2Table", [](const Workshop& shop) {
    shop.create("cluster_size=512", "1M");
    shop.io({"write -P 0x11 0 512", "write -z 512k 1k"});  // a table of its own, no data behind it
    cut_zeroes_at_the_end(shop);
    const std::string bytes = read_whole_file(shop / "disk");
    ASSERT_NE(bytes.size() % 512, 0u);
  });
  for (const char* size : {"512", "4k", "64k"}) {
    add(*size == '5'   ? "CutWithData512"
        : *size == '4' ? "CutWithData4k"
                       : "CutWithData64k",
        [size](const Workshop& shop) {
          shop.create(std::string("cluster_size=") + size, "1M");
          snapshots_between_writes(shop);
          cut_zeroes_at_the_end(shop);
        });
  }
  add("SnapshotNamesOfAllKinds", [](const Workshop& shop) {
    shop.create("", "1M");
    scatter(shop);
    shop.img("snapshot -c 2 disk");  // a name like an id
    shop.img("snapshot -c 2 disk");  // twice, and now an id
    shop.img("snapshot -c 1 disk");
    shop.img("snapshot -c \xc3\xa4\xf0\x9f\x98\x80 disk");
    shop.img("snapshot -c " + std::string(300, 'n') + " disk");
    shop.img("snapshot -c %s%n../../etc disk");
  });
  add("ZeroClustersOfAllKinds", [](const Workshop& shop) {
    shop.create("cluster_size=4k", "1M");
    shop.io({"write -P 0x11 0 64k", "write -z 0 8k", "write -z -u 8k 8k", "discard 16k 8k", "write -z 512k 64k"});
    shop.img("snapshot -c one disk");
    shop.io({"write -z 24k 8k", "write -P 0x12 4k 100", "write -P 0x13 512k 5000", "write -z -u 48k 8k"});
  });
  return all;
}

}  // namespace varve::test
