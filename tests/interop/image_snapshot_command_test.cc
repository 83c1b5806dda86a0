// `image snapshot`: QEMU's table, QEMU's way to find names, and images that QEMU goes on with.
#include <fmt/format.h>

#include <regex>

#include "interop/image_command_peer.h"
#include "io/file_device.h"

namespace varve::test {
namespace {

class ImageSnapshotCommand : public ImageCommandPeer {
 protected:
  // The table without dates, which differ by when the two programs ran.
  static std::string without_dates(const std::string& table) {
    return std::regex_replace(table, std::regex("[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}"), "DATE");
  }
  void expect_same_table(const std::string& name) const {
    EXPECT_EQ(without_dates(ours({"snapshot", "-l", name}).out), without_dates(qemu({"snapshot", "-l", name}).out));
  }
  void expect_clean(const std::string& name) const {
    run_ok({"qemu-img", "check", "-q", "-f", "qcow2", name}, run_options(our_dir()));
  }
  void write(const std::string& command, const std::string& name) const {
    for (const std::string& directory : {their_dir(), our_dir()}) {
      run_ok({"qemu-io", "-f", "qcow2", "-c", command, name}, run_options(directory));
    }
  }
};

TEST_F(ImageSnapshotCommand, FindsNamesAndIdsAsQemuDoes) {
  prepare({words("qemu-img create -q -f qcow2 disk 4M")});
  // Names that look like ids: id 1 is named "3", id 2 "one", id 3 "1", id 4 "3".
  int pattern = 1;
  for (const char* name : {"3", "one", "1", "3", "7"}) {
    write(fmt::format("write -P {} 0 1M", pattern++), "disk");
    expect_same({"snapshot", "-c", name, "disk"});
  }
  expect_same_table("disk");
  for (const char* word : {"1", "3", "one", "7", "5", "4", "2"}) {
    expect_same({"snapshot", "-a", word, "disk"});
    expect_same_image("disk", "qcow2");
  }
  for (const char* word : {"2", "1", "1", "3", "3", "4", "one", "nope", "7"}) {
    expect_same({"snapshot", "-d", word, "disk"});
    expect_same_table("disk");
    expect_same_image("disk", "qcow2");
  }
}

TEST_F(ImageSnapshotCommand, LivesOnInQemu) {
  prepare({words("qemu-img create -q -f qcow2 -o cluster_size=4k disk 4M")});
  write("write -P 1 0 4M", "disk");
  expect_same({"snapshot", "-c", "full", "disk"});
  write("write -P 2 1M 1M", "disk");
  expect_same({"snapshot", "-q", "-c", "changed", "disk"});
  write("discard 0 1M", "disk");
  expect_clean("disk");
  run_ok({"qemu-img", "snapshot", "-a", "full", "disk"}, run_options(our_dir()));  // ours, reverted by QEMU
  expect_same({"snapshot", "-a", "changed", "disk"});
  run_ok({"qemu-img", "snapshot", "-a", "changed", "disk"}, run_options(their_dir()));
  expect_same_image("disk", "qcow2");
  run_ok({"qemu-img", "snapshot", "-d", "full", "disk"}, run_options(our_dir()));
  run_ok({"qemu-img", "snapshot", "-d", "full", "disk"}, run_options(their_dir()));
  expect_same({"snapshot", "-d", "changed", "disk"});
  expect_same_image("disk", "qcow2");
}

TEST_F(ImageSnapshotCommand, TakesNamesOfAnyKind) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  for (const std::string& name : {std::string(), std::string(60, 'x'), std::string(300, 'y'), std::string("Ä\tÖ\x01"),
                                  std::string("-l"), std::string("a--a"), std::string(" ")}) {
    expect_same({"snapshot", "-c", name, "disk"});
  }
  expect_same_table("disk");
  expect_same({"snapshot", "-a", std::string(300, 'y'), "disk"});
  expect_same({"snapshot", "-a", std::string(255, 'y'), "disk"});
  expect_same({"snapshot", "-d", "", "disk"});
  expect_same_image("disk", "qcow2");
}

// For QEMU a name ends with its first NUL byte.
TEST_F(ImageSnapshotCommand, EndsNamesWhereQemuEndsThem) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"), words("qemu-img snapshot -c abcdef disk"),
           words("qemu-img snapshot -c nothing disk")});
  const auto file = FileDevice::open(our_dir() + "/disk", Access::kReadWrite, LockRequest::none());
  ASSERT_TRUE(file);
  std::string bytes(static_cast<size_t>(*(*file)->size()), '\0');
  ASSERT_TRUE((*file)->read_at(0, std::as_writable_bytes(std::span(bytes))));
  const auto put_nul = [&](const std::string& name, size_t at) {
    const size_t found = bytes.rfind(name);
    ASSERT_NE(found, std::string::npos);
    const std::byte nul{0};
    ASSERT_TRUE((*file)->write_at(found + at, std::span(&nul, 1)));
  };
  put_nul("abcdef", 3);
  put_nul("nothing", 0);
  expect_same_view(words("snapshot -l disk"));
  expect_same_view(words("info disk"));
  expect_same_view(words("info --output=json disk"));
}

TEST_F(ImageSnapshotCommand, StopsWhereRefcountsEnd) {
  for (const int bits : {1, 2}) {
    prepare({words(fmt::format("qemu-img create -q -f qcow2 -o refcount_bits={} disk 1M", bits)),
             io({"write 0 512"}, "disk")});
    for (const char* name : {"one", "two", "three", "four"}) expect_same({"snapshot", "-c", name, "disk"});
    expect_same_table("disk");
    expect_clean("disk");
  }
  EXPECT_NE(varve({"image", "snapshot", "-c", "five", "disk"}).err.find("can't be referenced more than 3 times"),
            std::string::npos);
}

TEST_F(ImageSnapshotCommand, RestoresTheSizeOfTheDisk) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 3 0 1M", "disk"},
           words("qemu-img snapshot -c small disk"),
           words("qemu-img resize -q disk 3M"),
           {"qemu-io", "-f", "qcow2", "-c", "write -P 4 2M 1M", "disk"},
           words("qemu-img snapshot -c large disk")});
  for (const char* name : {"small", "large", "small"}) {
    expect_same({"snapshot", "-a", name, "disk"});
    expect_same_image("disk", "qcow2");
  }
}

TEST_F(ImageSnapshotCommand, UsesTheSameWordsAboutTheCommandLine) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M")});
  for (const char* line :
       {"snapshot", "snapshot disk", "snapshot -l", "snapshot -l disk disk", "snapshot -l nope", "snapshot -c a nope",
        "snapshot -l -c a disk", "snapshot -c a -c b disk", "snapshot -c", "snapshot --foo disk", "snapshot -l disk",
        "snapshot -a nope disk", "snapshot -d nope disk", "snapshot -U -c a disk", "snapshot -U -a a disk",
        "snapshot -U -l disk", "snapshot -q -l disk", "snapshot --force-share -l disk"}) {
    expect_same(line);
  }
}

TEST_F(ImageSnapshotCommand, RefusesRawImages) {
  prepare({words("qemu-img create -q -f raw disk 1M")});
  expect_same("snapshot -l disk");
  for (const char* action : {"-c", "-a", "-d"}) {
    const ProcessResult theirs = qemu({"snapshot", action, "x", "disk"});
    const ProcessResult result = ours({"snapshot", action, "x", "disk"});
    EXPECT_EQ(result.exit_code, theirs.exit_code);
    // QEMU warns of guessed formats before that.
    EXPECT_TRUE(theirs.err.ends_with(result.err)) << theirs.err << result.err;
  }
  const ProcessResult named = varve(words("image snapshot -f raw -c x disk"));
  EXPECT_EQ(named.exit_code, 1);
  EXPECT_NE(named.err.find("varve image convert -O qcow2"), std::string::npos) << named.err;
}

TEST_F(ImageSnapshotCommand, RefusesImagesInUse) {
  prepare({words("qemu-img create -q -f qcow2 disk 5M"), words("qemu-img snapshot -c one disk")});
  BackgroundProcess holder({"qemu-io", "-f", "qcow2", our_dir() + "/disk"});
  holder.write("length\n");
  ASSERT_TRUE(holder.wait_for("MiB")) << holder.output();
  for (const char* line : {"snapshot -l disk", "snapshot -c two disk", "snapshot -a one disk", "snapshot -d one disk",
                           "snapshot -U -l disk"}) {
    expect_same_view(words(line));
  }
  const ProcessResult named = varve(words("image snapshot -c two disk"));
  EXPECT_NE(named.err.find("qemu-io"), std::string::npos) << named.err;  // who holds it
}

TEST_F(ImageSnapshotCommand, RefusesCorruptImagesWithTheRemedy) {
  prepare({words("qemu-img create -q -f qcow2 disk 1M"),
           words("qemu-img snapshot -c one disk"),
           {"qemu-io", "-f", "raw", "-c", "write -P 2 79 1", "disk"}});
  const std::string before = read_whole_file(our_dir() + "/disk");
  for (const char* action : {"-c", "-a", "-d"}) {
    const ProcessResult result = ours({"snapshot", action, "one", "disk"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_TRUE(result.err.starts_with("qemu-img: Could not open 'disk': ")) << result.err;
    EXPECT_NE(varve({"image", "snapshot", action, "one", "disk"}).err.find("check -r all"), std::string::npos);
  }
  EXPECT_EQ(read_whole_file(our_dir() + "/disk"), before);
}

// A running machine's image may be dirty; it is the machine's to clean.
TEST_F(ImageSnapshotCommand, LeavesADirtyImageInUseAlone) {
  prepare({words("qemu-img create -q -f qcow2 -o lazy_refcounts=on disk 1M")});
  const auto abandoned = run({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "-c", "flush", "-c", "abort", "disk"},
                             run_options(their_dir()));
  ASSERT_NE(abandoned.exit_code, 0);
  copy_to_ours();
  const std::string before = read_whole_file(our_dir() + "/disk");
  std::vector<std::unique_ptr<FileDevice>> users;
  for (const std::string& directory : {their_dir(), our_dir()}) {
    auto user = FileDevice::open(directory + "/disk", Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(user) << user.error().message;
    users.push_back(std::move(*user));
  }
  expect_same("snapshot -c two disk");
  EXPECT_TRUE(read_whole_file(our_dir() + "/disk") == before);
}

TEST_F(ImageSnapshotCommand, RepairsDirtyImagesFirst) {
  prepare({words("qemu-img create -q -f qcow2 -o lazy_refcounts=on disk 1M"), words("qemu-img snapshot -c one disk")});
  for (const std::string& directory : {their_dir(), our_dir()}) {
    const ProcessResult broken =
        run({"qemu-io", "-f", "qcow2", "-c", "write -P 7 0 200k", "-c", "flush", "-c", "abort", "disk"},
            run_options(directory));
    ASSERT_NE(broken.exit_code, 0);
  }
  expect_same_view({"snapshot", "-l", "disk"});
  expect_same({"snapshot", "-c", "two", "disk"});
  run_ok(words("qemu-img check -q disk"), run_options(our_dir()));
  run_ok({"qemu-io", "-f", "qcow2", "-c", "read -P 7 0 200k", "disk"}, run_options(our_dir()));
}

}  // namespace
}  // namespace varve::test
