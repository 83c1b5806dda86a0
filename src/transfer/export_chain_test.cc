#include "transfer/export_chain.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "support/process.h"
#include "support/temp_dir.h"
#include "transfer/checksum.h"
#include "transfer/delta.h"
#include "transfer/export_directory.h"
#include "transfer/increment_check.h"

namespace varve {
namespace {

using testing::HasSubstr;

constexpr const char* kDisk = "/d/disk ä";

// A pile of exports with one file in each: "0" is whole, "1" stands on it, and so on.
class ExportChainTest : public testing::Test {
 protected:
  Layout directory(const std::string& name) const {
    std::filesystem::create_directories(root_ / name);
    return *Layout::open(root_ / name);
  }
  static Manifest manifest_with(ManifestFile file) {
    return {.domain = "vm", .uuid = "u", .created_sec = 7, .files = {std::move(file)}};
  }
  static ManifestFile described(const std::string& contents) {
    return {.path = kDisk, .role = FileRole::kImage, .size_bytes = contents.size(), .sha256 = *checksum_of(contents)};
  }
  void make_full(const std::string& name, const std::string& contents) {
    const Layout layout = directory(name);
    std::filesystem::create_directories(root_ / name + "/d");
    root_.write(name + kDisk, contents);
    ASSERT_TRUE(save_manifest(layout, manifest_with(described(contents))));
  }
  void stack(const std::string& name, const std::string& below, const std::string& contents) {
    const auto base = ExportChain::open(directory(below), "vm");
    ASSERT_TRUE(base) << base.error().message;
    ExportLevel level{.layout = directory(name), .manifest = manifest_with(described(contents))};
    level.manifest.base =
        ManifestBase{.directory = "../" + below, .manifest_sha256 = base->manifest_sha256(), .snapshot = "s"};
    ManifestFile& file = level.manifest.files[0];
    file.storage = Storage::kDelta;
    const std::shared_ptr<ExportedFile> earlier = *base->open_file(kDisk);
    DeltaFile delta(level.layout, stored_path(level.manifest, file), contents.size(),
                    ExportChain::on(level, *base).backing_of(kDisk), earlier);
    const auto source = FileDevice::open(root_.write("new", contents), Access::kReadOnly, LockRequest::none());
    uint64_t differing = 0;
    const auto compared = compare_files(**source, *earlier,
                                        [&](uint64_t offset, std::span<const std::byte> bytes) {
                                          differing += bytes.size();
                                          return delta.write(offset, bytes);
                                        },
                                        {});
    ASSERT_TRUE(compared) << compared.error().message;
    EXPECT_EQ(compared->sha256, file.sha256);
    EXPECT_EQ(compared->earlier_sha256, base->manifest().files[0].sha256);
    if (differing == 0 && earlier->size().value_or(0) == contents.size()) {
      file.storage = Storage::kUnchanged;
    } else {
      if (!delta.is_there()) {
        ASSERT_TRUE(delta.create());
      }
      const auto written = delta.finish();
      ASSERT_TRUE(written) << written.error().message;
      file.delta_bytes = written->bytes;
      file.delta_sha256 = written->sha256;
      EXPECT_LE(written->bytes, differing + 6 * kDeltaCluster);
    }
    ASSERT_TRUE(save_manifest(level.layout, level.manifest));
  }
  std::string read(const std::string& name) {
    const auto chain = ExportChain::open(directory(name), "vm");
    if (!chain) return chain.error().message;
    const auto file = chain->open_file(kDisk);
    if (!file) return file.error().message;
    std::string contents((*file)->size().value_or(0), '?');
    const auto done = (*file)->read_at(0, std::as_writable_bytes(std::span(contents)));
    if (!done) return done.error().message;
    // What is said to be zeroes is.
    const std::vector<Extent> extents = (*file)->extents(0, contents.size()).value_or({});
    EXPECT_FALSE(extents.empty());
    for (const Extent& extent : extents) {
      if (extent.kind == ExtentKind::kData) continue;
      const std::string_view part = std::string_view(contents).substr(extent.offset, extent.length);
      EXPECT_EQ(part.find_first_not_of('\0'), std::string_view::npos);
    }
    return contents;
  }
  // Without Varve.
  std::string converted(const std::string& name, size_t size) {
    const std::string delta = root_ / name + "/vm.increment" + kDisk + ".delta";
    if (!std::filesystem::exists(delta)) return read(name);
    test::run_ok({"qemu-img", "check", "-q", delta});
    test::run_ok({"qemu-img", "convert", "-O", "raw", delta, root_ / "out"});
    std::filesystem::resize_file(root_ / "out", size);
    return test::read_whole_file(root_ / "out");
  }

  test::TempDir root_{test::TempDir::kInMemory};
};

TEST_F(ExportChainTest, APileOfDeltasIsEveryOneOfItsFiles) {
  REQUIRES_PROGRAM("qemu-img");
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 4 && !HasFailure(); ++round) {
    std::filesystem::remove_all(root_ / "0");
    std::string contents(1 + random() % (5 << 20), '\0');
    std::vector<std::string> all;
    for (int level = 0; level < 5 && !HasFailure(); ++level) {
      SCOPED_TRACE(testing::Message() << "round " << round << " level " << level << " of " << contents.size());
      std::filesystem::remove_all(root_ / std::to_string(level));
      if (level == 0) {
        make_full("0", contents);
      } else {
        stack(std::to_string(level), std::to_string(level - 1), contents);
      }
      EXPECT_TRUE(read(std::to_string(level)) == contents);
      EXPECT_TRUE(converted(std::to_string(level), contents.size()) == contents);
      all.push_back(contents);
      const auto changes = random() % 5;
      for (size_t i = 0; i < changes; ++i) {
        const size_t at = random() % contents.size();
        const size_t length = std::min<size_t>(random() % 300000, contents.size() - at);
        contents.replace(at, length, std::string(length, random() % 3 == 0 ? '\0' : static_cast<char>(random())));
      }
      if (random() % 2 == 0) contents.resize(1 + random() % (6 << 20));  // shorter, or longer by zeroes
    }
    for (size_t level = 0; level < all.size(); ++level) EXPECT_TRUE(read(std::to_string(level)) == all[level]);
  }
}

TEST_F(ExportChainTest, WhatLiesBehindTheEndOfAShorterFileDoesNotComeBack) {
  make_full("0", std::string(200000, 'x'));
  stack("1", "0", std::string(100001, 'x'));
  stack("2", "1", std::string(100001, 'x') + std::string(99999, '\0'));
  EXPECT_TRUE(read("1") == std::string(100001, 'x'));
  EXPECT_TRUE(read("2") == std::string(100001, 'x') + std::string(99999, '\0'));
  EXPECT_TRUE(converted("2", 200000) == read("2"));
}

TEST_F(ExportChainTest, ABaseThatWasMadeAnewIsNotTheBase) {
  make_full("0", std::string(3 << 20, 'x'));
  stack("1", "0", std::string(3 << 20, 'y'));
  make_full("0", std::string(3 << 20, 'z'));
  EXPECT_THAT(read("1"), HasSubstr("is not the one that"));
}

TEST_F(ExportChainTest, APileHasAnEnd) {
  Manifest manifest = manifest_with(described("x"));
  std::filesystem::create_directories(root_ / "0/d");
  root_.write(std::string("0") + kDisk, "x");
  std::string sha256;
  for (size_t level = 0; level <= kMaxIncrements + 1; ++level) {
    const Layout layout = directory(std::to_string(level));
    if (level > 0) {
      manifest.base =
          ManifestBase{.directory = fmt::format("../{}", level - 1), .manifest_sha256 = sha256, .snapshot = "s"};
      manifest.files[0].storage = Storage::kUnchanged;
    }
    ASSERT_TRUE(save_manifest(layout, manifest));
    ASSERT_TRUE(load_manifest(layout, "vm", &sha256));
  }
  EXPECT_EQ(read(std::to_string(kMaxIncrements)), "x");
  EXPECT_THAT(read(std::to_string(kMaxIncrements + 1)), HasSubstr("stand on one another"));
}

TEST_F(ExportChainTest, WhatWasWrittenIsOpenedAgain) {
  make_full("0", std::string(3 << 20, 'x'));
  stack("1", "0", std::string(3 << 20, 'y'));
  const Manifest made = ExportChain::open(directory("1"), "vm")->manifest();
  EXPECT_TRUE(check_can_be_imported(directory("1"), made));
  const auto refused = [&](const Manifest& manifest, const std::string& reason) {
    const auto checked = check_can_be_imported(directory("1"), manifest);
    ASSERT_FALSE(checked);
    EXPECT_THAT(checked.error().message, HasSubstr("could not be imported again"));
    EXPECT_THAT(checked.error().message, HasSubstr(reason));
  };
  Manifest other = made;
  other.files[0].sha256[0] ^= 1;
  refused(other, "does not read back as it was written");
  other = made;
  other.base->directory = "../\xe4";
  EXPECT_FALSE(save_manifest(directory("1"), other));
  std::filesystem::resize_file(root_ / "1/vm.increment" + kDisk + ".delta", 400000);
  refused(made, "has 400000 bytes");
  std::filesystem::rename(root_ / "0", root_ / "2");
  refused(made, "stands on an earlier one");
}

TEST_F(ExportChainTest, QemuFollowsThePileToItsEnd) {
  REQUIRES_PROGRAM("qemu-img");
  // As long as in a tree of libvirt's.
  const auto name = [](size_t level) { return fmt::format("{}{}", std::string(70, 'n'), level); };
  std::string contents(2 << 20, 'x');
  make_full(name(0), contents);
  for (size_t level = 1; level <= kMaxIncrements; ++level) {
    contents[level << 16 >> 1] = 'y';
    contents[0] = static_cast<char>(level);
    stack(name(level), name(level - 1), contents);
  }
  const auto chain = ExportChain::open(directory(name(kMaxIncrements)), "vm");
  ASSERT_TRUE(chain);
  EXPECT_GT(chain->path_in_qemu(chain->layout().root(), kDisk).size(), 2000U);
  EXPECT_TRUE(converted(name(kMaxIncrements), contents.size()) == contents);
  EXPECT_EQ(std::filesystem::canonical(chain->path_in_qemu(chain->layout().root(), kDisk)), root_ / name(0) + kDisk);
}

TEST_F(ExportChainTest, ManifestsThatContradictEachOtherAreRefused) {
  make_full("0", std::string(3 << 20, 'x'));
  stack("1", "0", std::string(3 << 20, 'y'));
  const auto chain = ExportChain::open(directory("1"), "vm");
  ASSERT_TRUE(chain);
  const Manifest good = chain->manifest();
  const auto refused = [&](const std::string& reason, const std::function<void(Manifest&)>& change) {
    Manifest bad = good;
    change(bad);
    ASSERT_TRUE(save_manifest(directory("1"), bad));
    EXPECT_THAT(read("1"), HasSubstr(reason));
  };
  refused("stands on itself", [](Manifest& m) { m.base->directory = "../1"; });
  refused("cannot be used", [](Manifest& m) { m.base->directory = "../2"; });
  refused("another machine", [](Manifest& m) { m.uuid = "other"; });
  refused("that has no /d/more", [](Manifest& m) { m.files[0].path = "/d/more"; });
  refused("is another one there", [](Manifest& m) { m.files[0].storage = Storage::kUnchanged; });
  refused("and the manifest says", [](Manifest& m) { m.files[0].delta_bytes += 65536; });
  refused("its disk has", [](Manifest& m) { m.files[0].size_bytes += 512; });
  refused("is missing", [](Manifest& m) { m.files[0].storage = Storage::kWhole; });
  refused("no part of a machine", [](Manifest& m) {
    m.files.push_back({.path = "/var/lib/varve/journal/vm", .role = FileRole::kBoot, .size_bytes = 1, .sha256 = {}});
    m.files.back().sha256 = m.files[0].sha256;
  });
  std::filesystem::create_directory_symlink(root_ / "0", root_ / "link");
  refused("is reached through a link", [](Manifest& m) { m.base->directory = "../link"; });
  ASSERT_TRUE(save_manifest(directory("1"), good));
  EXPECT_TRUE(read("1") == std::string(3 << 20, 'y'));
}

TEST_F(ExportChainTest, ADeltaIsWhatTheManifestSays) {
  REQUIRES_PROGRAM("qemu-img");
  make_full("0", std::string(3 << 20, 'x'));
  stack("1", "0", std::string(3 << 20, 'y'));
  const std::string delta = root_ / "1/vm.increment" + kDisk + ".delta";
  const std::string name = "../../../0/d/disk ä";
  const auto refused = [&](const std::string& reason, const std::vector<std::string>& options) {
    std::filesystem::remove(delta);
    std::vector<std::string> create = {"qemu-img", "create", "-q", "-f", "qcow2", "-u"};
    create.insert(create.end(), options.begin(), options.end());
    create.insert(create.end(), {delta, "3M"});
    test::run_ok(create);
    auto chain = ExportChain::open(directory("1"), "vm");
    ASSERT_TRUE(chain);
    Manifest manifest = chain->manifest();
    manifest.files[0].delta_bytes = std::filesystem::file_size(delta);
    ASSERT_TRUE(save_manifest(directory("1"), manifest));
    EXPECT_THAT(read("1"), HasSubstr(reason));
  };
  refused("by the manifest it should on", {"-F", "raw", "-b", "/etc/passwd"});
  refused("by the manifest it should on", {"-F", "qcow2", "-b", name});
  refused("by the manifest it should on", {});
  refused("another kind than varve writes", {"-F", "raw", "-b", name, "-o", "cluster_size=512"});
  refused("another kind than varve writes", {"-F", "raw", "-b", name, "-o", "extended_l2=on"});
  refused("another kind than varve writes", {"-F", "raw", "-b", name, "-o", "compression_type=zstd"});
  refused("another kind than varve writes", {"-F", "raw", "-b", name, "-o", "compat=0.10"});
  refused("has its data in another file", {"-o", "data_file=" + (root_ / "stolen")});
  refused("it is encrypted", {"--object", "secret,id=s,data=x", "-F", "raw", "-b", name, "-o",
                              "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"});
  std::filesystem::rename(delta, root_ / "1/vm.increment/d/other");
  std::filesystem::create_symlink("other", delta);
  EXPECT_THAT(read("1"), HasSubstr("through a symbolic link"));
}

}  // namespace
}  // namespace varve
