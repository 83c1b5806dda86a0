// `image resize`, `measure` and `bench` beside qemu-img.
#include <fmt/format.h>

#include <random>
#include <regex>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageResizeCommand : public ImageCommandPeer {
 protected:
  // The same size and contents, and nothing wrong. What is allocated may differ: QEMU lets clusters of zeroes go where
  // we keep them, and the other way round.
  void expect_same_disk(const std::string& name) const {
    run_ok({"qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", our_dir() + "/" + name, their_dir() + "/" + name});
    run_ok({"qemu-img", "check", "-f", "qcow2", our_dir() + "/" + name});
    const std::string line = "virtual size";
    const auto size = [&](const std::string& directory) {
      const std::string text = run_ok({"qemu-img", "info", "-f", "qcow2", name}, run_options(directory));
      return text.substr(text.find(line), text.find('\n', text.find(line)) - text.find(line));
    };
    EXPECT_EQ(size(our_dir()), size(their_dir())) << name;
  }
};

TEST_F(ImageResizeCommand, GivesDisksTheSizeAndContentsThatQemuGives) {
  prepare({words("qemu-img create -q -f qcow2 base 10M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 10M", "base"},
           words("qemu-img create -q -f qcow2 -b base -F qcow2 top 5000k"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 8 4900k 100k", "-c", "write -P 9 1M 64k", "top"},
           words("qemu-img create -q -f qcow2 -o cluster_size=4k plain 3M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 8 0 3M", "plain"},
           words("qemu-img create -q -f qcow2 -o extended_l2=on extended 3M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 8 100k 2M", "extended"},
           words("qemu-img create -q -f qcow2 -o compat=0.10 v2 3M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 8 100k 2M", "v2"}});
  for (const char* name : {"top", "plain", "extended", "v2"}) {
    for (const char* size : {"+1M", "6400k", "+512", "20M", "9G"}) {
      expect_same({"resize", "-f", "qcow2", name, size});
      expect_same_disk(name);
    }
    for (const char* size : {"-1G", "7000k", "-512", "1536k"}) {
      expect_same({"resize", "-f", "qcow2", "--shrink", name, size});
      expect_same_disk(name);
    }
    expect_same({"resize", "-q", "-f", "qcow2", "--preallocation=full", name, "2000k"});
    expect_same_disk(name);
  }
}

TEST_F(ImageResizeCommand, GivesNewSpaceItsPlaceInTheFile) {
  for (const char* preallocation : {"metadata", "falloc", "full"}) {
    SCOPED_TRACE(preallocation);
    prepare({words("qemu-img create -q -f qcow2 base 10M"),
             {"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 10M", "base"},
             words("qemu-img create -q -f qcow2 -b base -F qcow2 top 5000k"),
             words("qemu-img create -q -f qcow2 -b base -F qcow2 -o extended_l2=on wide 5000k"),
             words("qemu-img create -q -f qcow2 -o cluster_size=4k plain 3M"),
             words("qemu-img create -q -f qcow2 -o extended_l2=on extended 3M"),
             words("qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=512 v2 3M"),
             words("qemu-img create -q -f qcow2 -o lazy_refcounts=on freed 6M"),
             // Free clusters with something in them, that growing may use again.
             {"qemu-io", "-f", "qcow2", "-c", "write -P 8 0 6M", "freed"},
             words("qemu-img snapshot -c one freed"),
             {"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 6M", "freed"},
             words("qemu-img snapshot -d one freed")});
    for (const char* name : {"top", "wide", "plain", "extended", "v2", "freed"}) {
      SCOPED_TRACE(name);
      for (const char* size : {"8M", "+3000k", "+512"}) {
        expect_same({"resize", "-f", "qcow2", std::string("--preallocation=") + preallocation, name, size});
        // QEMU shows what lay in the clusters that it uses again.
        if (name != std::string("v2") && name != std::string("freed")) expect_same_disk(name);
        run_ok(words(fmt::format("qemu-img check -q {}", name)), run_options(our_dir()));
      }
      run_ok({"qemu-io", "-f", "qcow2", "-c", "read -P 0 8M 3000k", name}, run_options(our_dir()));
      const std::string json =
          run_ok(words(fmt::format("qemu-img map --output=json -f qcow2 {}", name)), run_options(our_dir()));
      const std::string end = json.substr(json.rfind('{'));
      EXPECT_NE(end.find("offset"), std::string::npos) << end;
      const std::string kib = run_ok({"du", "-k", name}, run_options(our_dir()));
      if (preallocation != std::string("metadata")) {
        EXPECT_GE(std::stoull(kib), 5000u);
      }
      run_ok({"qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 9M", "-c", "read -P 5 1M 9M", name},
             run_options(our_dir()));
      run_ok(words(fmt::format("qemu-img check -q {}", name)), run_options(our_dir()));
    }
  }
}

// QEMU shows again what lay there; see docs/decisions/006.
TEST_F(ImageResizeCommand, NewSpaceIsZeroWhereASmallerDiskEndedInsideACluster) {
  prepare(
      {words("qemu-img create -q -f qcow2 image 10M"), {"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 10M", "image"}});
  for (const char* size : {"1500k", "5M"}) {
    const ProcessResult done = ours({"resize", "-f", "qcow2", "--shrink", "image", size});
    EXPECT_EQ(done.exit_code, 0) << done.err;
  }
  run_ok({"qemu-io", "-f", "qcow2", "-c", "read -P 7 0 1500k", "-c", "read -P 0 1500k 3620k", "image"},
         run_options(our_dir()));
  run_ok(words("qemu-img check image"), run_options(our_dir()));
}

TEST_F(ImageResizeCommand, KeepsSnapshotsAsTheyWere) {
  prepare({words("qemu-img create -q -f qcow2 image 10M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 10M", "image"},
           words("qemu-img snapshot -c one image")});
  for (const char* size : {"4M", "2G", "1M", "12M"}) {
    expect_same({"resize", "-f", "qcow2", "--shrink", "image", size});
    expect_same_disk("image");
  }
  for (const std::string& directory : {our_dir(), their_dir()}) {
    run_ok(words("qemu-img snapshot -a one image"), run_options(directory));
    run_ok({"qemu-io", "-f", "qcow2", "-c", "read -P 7 0 10M", "image"}, run_options(directory));
  }
  expect_same_disk("image");
}

TEST_F(ImageResizeCommand, SaysTheSameOfWhatCanNotBe) {
  prepare({words("qemu-img create -q -f qcow2 image 10M"), words("qemu-img create -q -f qcow2 -o compat=0.10 old 10M"),
           words("qemu-img snapshot -c a old"), words("qemu-img create -q raw 10M")});
  for (const char* line :
       {"resize image 1M", "resize image -1M", "resize image 0", "resize image -1G", "resize image +x", "resize image",
        "resize", "resize --preallocation=foo image 20M", "resize --shrink --preallocation=full image 1M",
        "resize absent 1M", "resize image 1000000T", "resize image 10M 20M", "resize old +1M", "resize -f foo image 1M",
        "resize -f raw --preallocation=metadata raw 20M", "resize -f raw raw 1000000T"}) {
    expect_same(line);
  }
  for (const char* line :
       {"resize -f raw raw +1000", "resize -f raw --preallocation=falloc raw 30M", "resize -f raw --shrink raw 1M",
        "resize -f raw --preallocation=full raw 3M", "resize --image-opts driver=raw,file.filename=raw +1M"}) {
    expect_same(line);
    run_ok({"cmp", our_dir() + "/raw", their_dir() + "/raw"});
  }
}

TEST_F(ImageResizeCommand, MeasuresAsQemuDoes) {
  prepare({words("qemu-img create -q -f qcow2 base 64M"),
           {"qemu-io", "-f", "qcow2", "-c", "write 0 1M", "-c", "write 5M 100k", "-c", "write -z 6M 1M", "base"},
           words("qemu-img snapshot -c one base"),
           {"qemu-io", "-f", "qcow2", "-c", "write 30M 1M", "base"},
           words("qemu-img create -q -f qcow2 -b base -F qcow2 top 80M"),
           {"qemu-io", "-f", "qcow2", "-c", "write 70M 512", "-c", "discard 0 64k", "top"},
           words("qemu-img convert -c -O qcow2 top compressed"),
           words("qemu-img create -q -f qcow2 -o preallocation=metadata preallocated 300M"),
           words("qemu-img create -q -f qcow2 -o compat=0.10 v2 3M"),
           words("qemu-img create -q raw 10M"),
           words("qemu-img create -q -f qcow2 marked 10M"),
           words("qemu-img bitmap --add marked b0")});
  for (const char* name : {"base", "top", "compressed", "preallocated", "v2", "raw", "marked"}) {
    for (const char* target :
         {"-O qcow2", "-O raw", "-O qcow2 -o cluster_size=4k", "-O qcow2 -o compat=0.10", "-O qcow2 -o extended_l2=on",
          "-O qcow2 -o preallocation=full", "-O qcow2 -o refcount_bits=64,cluster_size=512", "--output=json -O qcow2",
          "-O qcow2 -o backing_file=base,backing_fmt=qcow2"}) {
      expect_same_view(words(fmt::format("measure {} {}", target, name)));
    }
  }
  for (const char* line : {"measure -O qcow2 -l one base",
                           "measure -O qcow2 -l snapshot.name=one base",
                           "measure -O qcow2 -l two base",
                           "measure -O qcow2 -f raw -l one base",
                           "measure",
                           "measure a b",
                           "measure --size 1G base",
                           "measure --size x",
                           "measure --size 1G",
                           "measure --size 3 -O qcow2 --output=json",
                           "measure --size 8E",
                           "measure -O foo --size 1G",
                           "measure -f raw --size 3",
                           "measure -O qcow2 -o cluster_size=3 --size 1G",
                           "measure -O qcow2 -o compat=1.5 --size 1G",
                           "measure -O qcow2 -o preallocation=foo --size 1G",
                           "measure -O qcow2 -o refcount_bits=3 --size 1G",
                           "measure -O qcow2 -o extended_l2=on,cluster_size=4k --size 1G",
                           "measure -O qcow2 -o foo=1 --size 1G",
                           "measure -O qcow2 -o ,a --size 1M",
                           "measure --output=foo base",
                           "measure -O qcow2 -o cluster_size=4k,refcount_bits=1 --size 10T",
                           "measure -O qcow2 --size 100P",
                           "measure -O qcow2 -o compat=0.10,refcount_bits=1 --size 1G",
                           "measure absent",
                           "measure -O qcow2 -o encrypt.format=luks,encrypt.key-secret=x --size 1G"}) {
    expect_same_view(words(line));
  }
}

TEST_F(ImageResizeCommand, BenchSaysWhatQemuSaysButForTheTime) {
  prepare({words("qemu-img create -q -f qcow2 image 10M")});
  const std::regex seconds("[0-9.]+ seconds");
  for (const char* line : {"bench -c 10 image",
                           "bench -c 100 -w --pattern=5 -q image",
                           "bench -c 20 -d 5 -w --flush-interval=10 image",
                           "bench -c 20 -d 5 -w --no-drain --flush-interval=10 image",
                           "bench -c 5 -o 100 -S 8k -s 2k image",
                           "bench -c 3 -n -t none image",
                           "bench -c 0 image",
                           "bench -c x image",
                           "bench --pattern=256 image",
                           "bench --flush-interval=3 image",
                           "bench -w --flush-interval=3 image",
                           "bench -i foo image",
                           "bench -t foo image",
                           "bench -n image",
                           "bench absent",
                           "bench",
                           "bench -U -w image",
                           "bench -f foo image",
                           "bench -c 1 -s 3G image",
                           "bench -c 99999999999 image"}) {
    const ProcessResult theirs = qemu(words(line));
    const ProcessResult ours_result = ours(words(line));
    EXPECT_EQ(std::regex_replace(ours_result.out, seconds, "- seconds"),
              std::regex_replace(theirs.out, seconds, "- seconds"))
        << line;
    EXPECT_EQ(ours_result.err, theirs.err) << line;
    EXPECT_EQ(ours_result.exit_code, theirs.exit_code) << line;
  }
  run_ok({"qemu-io", "-f", "qcow2", "-c", "read -P 5 80k 320k", "image"}, run_options(our_dir()));
  expect_same_disk("image");
}

}  // namespace
}  // namespace varve::test
