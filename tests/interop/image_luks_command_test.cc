// The format `luks` by itself, and secrets that are encrypted: what QEMU and cryptsetup make is read here, and the
// other way round; and all messages are QEMU's.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "image/open.h"
#include "interop/image_command_peer.h"

namespace varve {
namespace {

using test::ProcessResult;
using test::words;
using testing::HasSubstr;

constexpr const char* kSecret = "secret,id=s,data=swordfish";
constexpr const char* kOptions = "key-secret=s,iter-time=10";

class ImageLuks : public test::ImageCommandPeer {
 protected:
  std::string path(const std::string& name) const { return our_dir() + "/" + name; }
  static std::string opts(const std::string& name) { return "driver=luks,key-secret=s,file.filename=" + name; }

  static std::vector<std::string> create_line(const std::string& name, const std::string& more,
                                              const std::string& size) {
    return {"create", "-q", "-f", "luks", "--object", kSecret, "-o", kOptions + (more.empty() ? more : "," + more),
            name,     size};
  }
  void create_ours(const std::string& name, const std::string& more = "", const std::string& size = "4M") const {
    const ProcessResult made = ours(create_line(name, more, size));
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  // qemu-img measures its own speed in CPU time, and gives up where the kernel's clock of that stood still.
  void create_theirs(const std::string& directory, const std::string& name, const std::string& more = "") const {
    std::vector<std::string> argv = create_line(name, more, "4M");
    argv.insert(argv.begin(), "qemu-img");
    ProcessResult made;
    for (int attempt = 0; attempt < 100 && made.exit_code != 0; ++attempt)
      made = test::run(argv, run_options(directory));
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  // Both directories hold the same image.
  void create_both(const std::string& name) {
    create_theirs(their_dir(), name);
    copy_to_ours();
  }
  void qemu_io(const std::string& name, const std::vector<std::string>& commands) const {
    std::vector<std::string> argv{"qemu-io", "--object", kSecret, "--image-opts", opts(name)};
    for (const std::string& command : commands) {
      argv.emplace_back("-c");
      argv.push_back(command);
    }
    const std::string out = test::run_ok(argv, run_options(our_dir()));
    EXPECT_EQ(out.find("failed"), std::string::npos) << out;
  }
  // The disk as QEMU sees it, and as we do.
  std::string theirs_raw(const std::string& name) const {
    test::run_ok({"qemu-img", "convert", "--object", kSecret, "--image-opts", "-O", "raw", opts(name), "theirs.raw"},
                 run_options(our_dir()));
    return test::read_whole_file(path("theirs.raw"));
  }
  std::string ours_raw(const std::string& name) const {
    const ProcessResult copied =
        ours({"convert", "--object", kSecret, "--image-opts", "-O", "raw", opts(name), "ours.raw"});
    EXPECT_EQ(copied.exit_code, 0) << copied.err;
    return test::read_whole_file(path("ours.raw"));
  }
  static void write(const std::shared_ptr<BlockDevice>& device) {
    const std::vector<std::byte> fives(65536, std::byte{5});
    ASSERT_TRUE(device->write_at(1536, std::span(fives).first(700)));
    ASSERT_TRUE(device->write_at(1536 + 700, std::span(fives).subspan(700)));
    ASSERT_TRUE(device->write_zeroes(110000, 5000, ZeroMode::kMayUnmap));
    ASSERT_TRUE(device->flush());
  }
  void write(const std::string& name) const {
    const auto image = image::open_image(
        path(name), {.format = image::Format::kLuks,
                     .use = image::Use::kWrite,
                     .encryption = {.passphrase = std::make_shared<const crypto::SecretBytes>("swordfish")}});
    ASSERT_TRUE(image) << image.error().message;
    write(image->device());
    std::byte b{};
    EXPECT_FALSE(image->device()->read_at(*image->device()->size(), std::span(&b, 1)));
  }
  // A command line with the secret and the image's options.
  static std::vector<std::string> with_opts(const std::string& line, const std::string& image,
                                            const std::string& rest = "") {
    std::vector<std::string> result = words(line);
    const std::vector<std::string> given{"--object", kSecret, "--image-opts"};
    result.insert(result.begin() + 1, given.begin(), given.end());
    result.push_back(image);
    for (const std::string& word : words(rest)) result.push_back(word);
    return result;
  }
};

TEST_F(ImageLuks, BothReadWhatEitherWrites) {
  for (const char* more : {"", "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv", "hash-alg=sha1,cipher-alg=aes-192",
                           "preallocation=falloc", "preallocation=metadata"}) {
    SCOPED_TRACE(more);
    ASSERT_NO_FATAL_FAILURE(create_ours("ours", more));
    ASSERT_NO_FATAL_FAILURE(create_theirs(our_dir(), "theirs", more));
    for (const char* name : {"ours", "theirs"}) {
      qemu_io(name, {"write -P 7 0 1M", "write -P 9 2000k 300k", "write -z 100k 12k"});
      EXPECT_TRUE(ours_raw(name) == theirs_raw(name)) << name;
      write(name);
      qemu_io(name, {"read -P 7 0 1536", "read -P 5 1536 64k", "read -P 0 110k 2k", "read -P 9 2000k 300k"});
      EXPECT_TRUE(ours_raw(name) == theirs_raw(name)) << name;
    }
  }
}

TEST_F(ImageLuks, ConvertsBothWays) {
  std::mt19937_64 random(11);
  std::string plain(3 << 20, '\0');
  for (char& c : plain) c = static_cast<char>(random());
  plain += std::string(1 << 20, '\0') + std::string(512, 'x');
  put("plain", plain);
  const ProcessResult in =
      ours({"convert", "-f", "raw", "-O", "luks", "--object", kSecret, "-o", kOptions, "plain", "disk"});
  ASSERT_EQ(in.exit_code, 0) << in.err;
  EXPECT_TRUE(theirs_raw("disk") == plain);  // zeroes, too: nothing of the new file reads as zeroes by itself
  EXPECT_TRUE(ours_raw("disk") == plain);
  EXPECT_EQ(test::read_whole_file(path("disk")).find(std::string(64, 'x')), std::string::npos);
  const ProcessResult same =
      ours({"compare", "--object", kSecret, "--image-opts", opts("disk"), "driver=raw,file.filename=plain"});
  EXPECT_EQ(same.out, "Images are identical.\n") << same.err;
  // Into one that is there already.
  const ProcessResult again =
      ours({"convert", "-n", "--object", kSecret, "--target-image-opts", "-f", "raw", "plain", opts("disk")});
  EXPECT_EQ(again.exit_code, 0) << again.err;
  EXPECT_TRUE(theirs_raw("disk") == plain);
}

TEST_F(ImageLuks, ABackingFileMayBeOne) {
  ASSERT_NO_FATAL_FAILURE(create_ours("base"));
  qemu_io("base", {"write -P 3 0 4M"});
  const ProcessResult made = ours(words("create -q -f qcow2 -b base -F luks overlay 5M"));
  ASSERT_EQ(made.exit_code, 0) << made.err;
  const std::string chain =
      "driver=qcow2,file.filename=overlay,backing.key-secret=s,backing.driver=luks,"
      "backing.file.filename=base";
  test::run_ok({"qemu-io", "--object", kSecret, "-c", "write -P 4 1M 70k", "--image-opts", chain},
               run_options(our_dir()));
  for (const char* program : {"ours", "theirs"}) {
    std::vector<std::string> line{"convert", "--object", kSecret, "--image-opts",
                                  "-O",      "raw",      chain,   program + std::string(".raw")};
    if (program == std::string("ours")) {
      const ProcessResult copied = ours(line);
      ASSERT_EQ(copied.exit_code, 0) << copied.err;
    } else {
      line.insert(line.begin(), "qemu-img");
      test::run_ok(line, run_options(our_dir()));
    }
  }
  EXPECT_TRUE(test::read_whole_file(path("ours.raw")) == test::read_whole_file(path("theirs.raw")));
  const ProcessResult refused = ours(words("convert -O raw overlay x"));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("Could not open backing file: Parameter 'key-secret' is required for cipher"));
}

TEST_F(ImageLuks, LooksTheSame) {
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  ASSERT_NO_FATAL_FAILURE(create_theirs(our_dir(), "theirs", "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256"));
  ASSERT_NO_FATAL_FAILURE(create_ours("odd", "", "1000"));
  for (const char* name : {"disk", "theirs", "odd"}) {
    SCOPED_TRACE(name);
    expect_same_view({"info", name});
    expect_same_view({"info", "--output=json", name});
    expect_same_view({"info", "-f", "luks", name});
    expect_same_view(with_opts("map --output=json", opts(name)));
    expect_same_view(with_opts("info", opts(name)));
    expect_same_view(with_opts("info --output=json", opts(name)));
    expect_same_view(with_opts("info", "key-secret=other,file.filename=" + std::string(name)));
    expect_same_view(with_opts("measure", opts(name)));
    expect_same_view(with_opts("measure -O qcow2 --output=json", opts(name)));
    expect_same_view(with_opts("check", opts(name)));
    expect_same_view(with_opts("snapshot -l", opts(name)));
    expect_same_view(with_opts("compare", opts(name), opts(name)));
  }
  // Without the key, and with the wrong one.
  for (const char* line :
       {"check disk", "check -f luks disk", "convert -O raw disk x", "map disk", "measure disk", "compare disk disk",
        "dd if=disk of=x", "resize disk 5M", "amend -o state=active disk", "bench disk", "snapshot -c x disk",
        "bitmap --add disk b", "info -f luks absent", "check absent"}) {
    SCOPED_TRACE(line);
    expect_same_view(words(line));
  }
  for (const char* image : {"driver=luks,file.filename=disk", "driver=luks,key-secret=no,file.filename=disk",
                            "driver=luks,key-secret=s,foo=1,file.filename=disk"}) {
    SCOPED_TRACE(image);
    expect_same_view(with_opts("convert -O raw", image, "x"));
    expect_same_view(with_opts("check", image));
  }
  expect_same_view({"info", "--image-opts", "driver=luks,backing.driver=raw,file.filename=disk"});
  expect_same_view({"convert", "--object", "secret,id=s,data=tuna", "--image-opts", "-O", "raw", opts("disk"), "x"});
  expect_same_view({"check", "--object", "secret,id=s,data=tuna", "--image-opts", opts("disk")});
}

TEST_F(ImageLuks, TellsWhatIsNone) {
  const std::string header("LUKS\xba\xbe\0\1", 8);
  put("short", header);
  put("long", header + std::string(1 << 20, '\0'));
  put("other", std::string("LUKS\xba\xbe\0\2", 8) + std::string(1 << 20, '\0'));
  put("plain", std::string(4096, 'x'));
  put("empty", "");
  ASSERT_NO_FATAL_FAILURE(create_both("cut"));
  for (const std::string& directory : {our_dir(), their_dir()})
    test::run_ok({"truncate", "-s", "1M", "cut"}, run_options(directory));
  for (const char* name : {"short", "long", "other", "plain", "empty", "cut"}) {
    SCOPED_TRACE(name);
    expect_same_view({"info", name});
    expect_same_view({"info", "-f", "luks", name});
    expect_same_view(with_opts("convert -O raw", opts(name), "x"));
  }
}

TEST_F(ImageLuks, CreateSaysWhatQemuSays) {
  for (const char* options :
       {"key-secret=s,iter-time=10", "key-secret=s,iter-time=10,cipher-alg=aes-128,hash-alg=sha512",
        "cipher-alg=aes-256", "key-secret=no", "key-secret=s,cipher-alg=foo",
        "key-secret=s,iter-time=10,cipher-alg=des", "key-secret=s,cipher-mode=foo", "key-secret=s,ivgen-alg=foo",
        "key-secret=s,ivgen-hash-alg=foo", "key-secret=s,hash-alg=foo", "key-secret=s,iter-time=foo",
        "key-secret=s,foo=1", "key-secret=s,preallocation=foo", "key-secret=s,iter-time=10,preallocation=full",
        "key-secret=s,encrypt.format=luks", "help",
        "key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha1"}) {
    SCOPED_TRACE(options);
    expect_same({"create", "-f", "luks", "--object", kSecret, "-o", options, "disk", "1M"});
    expect_same({"convert", "-f", "raw", "-O", "luks", "--object", kSecret, "-o", options, "absent", "disk"});
    expect_same({"measure", "-O", "luks", "--object", kSecret, "-o", options, "--size", "10M"});
  }
  put("raw", std::string(1 << 20, 'x'));
  for (const char* line :
       {"create -f luks new 1M", "create -f luks new", "create -f luks -o help", "create -f luks -b raw -F raw new 1M",
        "create -f luks -F raw new 1M", "convert -f raw -O luks raw new", "convert -f raw -c -O luks raw new",
        "convert -f raw -O luks -B raw -F raw raw new", "measure -O luks --size 1M", "dd -f raw -O luks if=raw of=new",
        "amend -f luks -o help", "amend -f luks -o foo=1 absent"}) {
    SCOPED_TRACE(line);
    expect_same(line);
  }
  // As large as QEMU's, to the byte.
  for (const char* size : {"1000", "4M", "0"}) {
    SCOPED_TRACE(size);
    ASSERT_NO_FATAL_FAILURE(create_ours("disk", "", size));
    expect_same_view({"measure", "-O", "luks", "--object", kSecret, "-o", kOptions, "--size", size});
    const ProcessResult measured = ours({"measure", "-O", "luks", "--object", kSecret, "-o", kOptions, "--size", size});
    EXPECT_THAT(measured.out,
                HasSubstr(fmt::format("required size: {}\n", test::read_whole_file(path("disk")).size())));
  }
}

TEST_F(ImageLuks, GetsOtherSizes) {
  ASSERT_NO_FATAL_FAILURE(create_both("disk"));
  for (const char* line : {"resize --preallocation=metadata", "resize --preallocation=full", "resize"})
    expect_same(with_opts(line, opts("disk"), std::string(line) == "resize" ? "+1M" : "5M"));
  expect_same(with_opts("resize", opts("disk"), "1M"));
  expect_same(with_opts("resize --shrink", opts("disk"), "3M"));
  expect_same(with_opts("resize", opts("disk"), "9000000000000000000"));
  EXPECT_EQ(test::read_whole_file(path("disk")).size(), test::read_whole_file(their_dir() + "/disk").size());
  EXPECT_TRUE(theirs_raw("disk") == ours_raw("disk"));
}

TEST_F(ImageLuks, HasNoPlaceForMore) {
  ASSERT_NO_FATAL_FAILURE(create_both("disk"));
  for (const char* line : {"snapshot -c x", "snapshot -a x", "snapshot -d x", "commit", "rebase -u -b x -F raw", "map",
                           "convert -O raw -l x"}) {
    SCOPED_TRACE(line);
    expect_same(with_opts(line, opts("disk"), std::string(line).starts_with("convert") ? "out" : ""));
  }
}

TEST_F(ImageLuks, KeySlotsAreAmended) {
  ASSERT_NO_FATAL_FAILURE(create_both("disk"));
  const auto amend = [&](const std::string& options, const std::string& key = "s", const std::string& more = "") {
    std::vector<std::string> line{"amend",        "--object", kSecret, "--object", "secret,id=t,data=tuna",
                                  "--image-opts", "-o",       options};
    if (!more.empty()) line.push_back(more);
    line.push_back("driver=luks,file.filename=disk,key-secret=" + key);
    return line;
  };
  for (const char* options :
       {"help", "foo=1", "cipher-alg=aes-128", "size=1", "state=foo", "keyslot=1", "state=active", "state=inactive",
        "state=active,new-secret=no", "state=active,new-secret=t,old-secret=s", "state=active,new-secret=t,keyslot=8",
        "state=active,new-secret=t,keyslot=0", "state=inactive,old-secret=s", "state=inactive,keyslot=0",
        "state=inactive,keyslot=3", "state=inactive,old-secret=t", "state=active,new-secret=t,iter-time=10",
        "state=active,new-secret=t,iter-time=10,keyslot=5"}) {
    SCOPED_TRACE(options);
    expect_same(amend(options));
  }
  expect_same(amend("state=inactive,old-secret=s", "t"));
  expect_same(amend("state=inactive,keyslot=5", "t"));
  expect_same(amend("state=inactive,keyslot=1", "t"));
  for (const std::string& directory : {our_dir(), their_dir()}) {
    const auto opens = [&](const std::string& passphrase) {
      return test::run({"qemu-io", "--object", "secret,id=s,data=" + passphrase, "--image-opts", "-c", "read 0 64k",
                        opts("disk")},
                       run_options(directory))
                 .exit_code == 0;
    };
    EXPECT_TRUE(opens("tuna"));
    EXPECT_FALSE(opens("swordfish"));
  }
  expect_same(amend("state=inactive,keyslot=1", "t", "--force"));
  expect_same(with_opts("convert -O raw", opts("disk"), "x"));
}

TEST_F(ImageLuks, CryptsetupOpensIt) {
  REQUIRES_PROGRAM("cryptsetup");
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  put("passphrase", "swordfish");
  test::run_ok({"cryptsetup", "open", "--test-passphrase", "--key-file", "passphrase", "disk"}, run_options(our_dir()));
  const std::string dump = test::run_ok({"cryptsetup", "luksDump", "disk"}, run_options(our_dir()));
  EXPECT_THAT(dump, HasSubstr("Payload offset:\t4040"));
  // What cryptsetup formats is read here, and written.
  test::run_ok({"truncate", "-s", "6M", "theirs"}, run_options(our_dir()));
  test::run_ok(
      {"cryptsetup", "luksFormat", "--type", "luks1", "-q", "--iter-time", "10", "--key-file", "passphrase", "theirs"},
      run_options(our_dir()));
  expect_same_view({"info", "theirs"});
  EXPECT_TRUE(theirs_raw("theirs") == ours_raw("theirs"));
}

// ---- secrets encrypted with another one

TEST_F(ImageLuks, SecretsMayBeEncryptedThemselves) {
  const std::string key = "secret,id=k,format=base64,data=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
  const std::string iv = "AAAAAAAAAAAAAAAAAAAAAA==";
  const std::string wrapped = "k3nBefZLfyFTjUOuYwSDjg==";  // "abc"
  const auto create = [&](const std::string& key_object, const std::string& object) {
    return std::vector<std::string>{"create",   "-q",   "-f", "luks",   "--object", key_object,
                                    "--object", object, "-o", kOptions, "disk",     "1M"};
  };
  const std::string good = "secret,id=s,keyid=k,format=base64,iv=" + iv + ",data=" + wrapped;
  expect_same(create(key, good));
  test::run_ok({"qemu-io", "--object", "secret,id=s,data=abc", "--image-opts", "-c", "read 0 64k", opts("disk")},
               run_options(our_dir()));
  for (const std::string& object :
       {"secret,id=s,keyid=n,format=base64,iv=" + iv + ",data=" + wrapped,
        "secret,id=s,keyid=k,format=base64,data=" + wrapped,
        "secret,id=s,keyid=k,format=base64,iv=AAAA,data=" + wrapped,
        "secret,id=s,keyid=k,format=base64,iv=x y,data=" + wrapped,
        "secret,id=s,keyid=k,format=base64,iv=" + iv + ",data=AAAA",
        "secret,id=s,keyid=k,format=base64,iv=" + iv + ",data=AAAAAAAAAAAAAAAAAAAAAA==",
        "secret,id=s,keyid=k,format=base64,iv=" + iv + ",data=!", "secret,id=s,keyid=k,iv=" + iv + ",data=" + wrapped,
        "secret,id=s,keyid=k,iv=" + iv, "secret,id=s,iv=" + iv + ",data=abc",
        R"({"qom-type":"secret","id":"s","keyid":"k","iv":")" + iv + R"(","format":"base64","data":")" + wrapped +
            R"("})"}) {
    SCOPED_TRACE(object);
    expect_same(create(key, object));
  }
  expect_same(create("secret,id=k,data=short", good));
}

}  // namespace
}  // namespace varve
