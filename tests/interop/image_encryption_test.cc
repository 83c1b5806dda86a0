// Encrypted images, LUKS and QEMU's old AES method, both ways: what QEMU encrypts is read and written here, and the
// other way round.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "crypto/luks_volume.h"
#include "image/open.h"
#include "interop/image_command_peer.h"
#include "qcow2/luks_area.h"
#include "qcow2/snapshot_transaction.h"

namespace varve {
namespace {

using test::ProcessResult;
using test::words;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kSize = 4 << 20;
constexpr const char* kSecret = "secret,id=s,data=swordfish";
constexpr const char* kAes = "encrypt.format=aes,encrypt.key-secret=s";
constexpr const char* kLuks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";

Bytes random_bytes(std::mt19937_64& random, size_t size) {
  Bytes bytes(size);
  for (auto& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

class ImageEncryption : public test::ImageCommandPeer {
 protected:
  std::string path(const std::string& name) const { return our_dir() + "/" + name; }

  // `more` begins with "aes" for QEMU's old method.
  std::string options_of(const std::string& more) const {
    if (more.starts_with("aes")) return kAes + more.substr(3);
    return std::string(kLuks) + (more.empty() ? "" : "," + more);
  }

  void create_ours(const std::string& name, const std::string& more = "", const std::string& size = "4M") const {
    const ProcessResult made =
        ours({"create", "-q", "-f", "qcow2", "--object", kSecret, "-o", options_of(more), name, size});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  // qemu-img measures its own speed in CPU time, and gives up where the kernel's clock of that stood still.
  void create_theirs(const std::string& name, const std::string& more = "") const {
    ProcessResult made;
    for (int attempt = 0; attempt < 100 && made.exit_code != 0; ++attempt) {
      made = test::run(
          {"qemu-img", "create", "-q", "-f", "qcow2", "--object", kSecret, "-o", options_of(more), name, "4M"},
          run_options(our_dir()));
    }
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  static std::string opts(const std::string& name) { return "driver=qcow2,encrypt.key-secret=s,file.filename=" + name; }
  void qemu_io(const std::string& name, const std::vector<std::string>& commands) const {
    std::vector<std::string> argv{"qemu-io", "--object", kSecret, "--image-opts", opts(name)};
    for (const std::string& command : commands) {
      argv.emplace_back("-c");
      argv.push_back(command);
    }
    const std::string out = test::run_ok(argv, run_options(our_dir()));
    EXPECT_EQ(out.find("failed"), std::string::npos) << out;
  }
  // The disk as QEMU sees it.
  std::string theirs_raw(const std::string& name, const std::string& snapshot = "") const {
    std::vector<std::string> argv{"qemu-img", "convert", "--object", kSecret, "--image-opts", "-O", "raw"};
    if (!snapshot.empty()) argv.insert(argv.end(), {"-l", snapshot});
    argv.insert(argv.end(), {opts(name), "raw"});
    test::run_ok(argv, run_options(our_dir()));
    return test::read_whole_file(path("raw"));
  }
  void qemu_check(const std::string& name) const {
    test::run_ok({"qemu-img", "check", "-q", "--object", kSecret, "--image-opts", opts(name)}, run_options(our_dir()));
  }
  Result<image::OpenImage> open(const std::string& name, image::Use use, std::string_view passphrase = "swordfish") {
    return image::open_image(path(name),
                             {.format = image::Format::kQcow2,
                              .use = use,
                              .encryption = {.format = std::nullopt,
                                             .passphrase = std::make_shared<const crypto::SecretBytes>(passphrase)}});
  }
  // Changes the disk, and compares what is there then with what QEMU sees.
  void change(const std::string& name, const std::function<void(image::OpenImage&)>& how) {
    std::string seen;
    {
      auto image = open(name, image::Use::kWrite);
      ASSERT_TRUE(image) << image.error().message;
      how(*image);
      ASSERT_TRUE(image->device()->flush());
      seen = read_all(*image->device());
    }
    EXPECT_TRUE(seen == theirs_raw(name));
  }
  // Guest data is refused, and stays as it is.
  void expect_out_of_reach(const std::string& name) {
    const std::string before = test::read_whole_file(path(name));
    auto file = FileDevice::open(path(name), Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(file);
    {
      auto image = qcow2::Image::open(std::move(*file), {.writable = true});
      ASSERT_TRUE(image) << image.error().message;
      std::byte b{};
      for (const Result<void>& refused :
           {(*image)->read_at(0, std::span(&b, 1)), (*image)->write_at(0, std::span(&b, 1)),
            (*image)->write_zeroes(0, 65536, ZeroMode::kMayUnmap), (*image)->discard(0, 65536),
            (*image)->resize(8 << 20)}) {
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().kind, ErrorKind::kPermission);
        EXPECT_THAT(refused.error().message, HasSubstr("encrypt.key-secret"));
      }
    }
    EXPECT_TRUE(test::read_whole_file(path(name)) == before);
  }
  static std::string read_all(BlockDevice& device) {
    std::string bytes(*device.size(), '\0');
    EXPECT_TRUE(device.read_at(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size()))));
    return bytes;
  }
};

struct Kind {
  bool made_by_us;
  const char* options;
};

class ImageEncryptionKinds : public ImageEncryption, public testing::WithParamInterface<Kind> {};

// Writes of both, at odd places and sizes, one after the other; both see the same disk all the time.
TEST_P(ImageEncryptionKinds, BothReadWhatEitherWrites) {
  const std::string more = GetParam().options;
  ASSERT_NO_FATAL_FAILURE(GetParam().made_by_us ? create_ours("disk", more) : create_theirs("disk", more));
  std::mt19937_64 random(5);
  for (int round = 0; round < 2; ++round) {
    const uint64_t at = random() % (kSize / 512 - 300) * 512;
    const uint64_t length = (1 + random() % 300) * 512;
    const uint64_t zeroes = random() % 60 * 65536;
    qemu_io("disk", {fmt::format("write -P {} {} {}", round + 1, at, length), fmt::format("write -z {} 64k", zeroes)});
    change("disk", [&](image::OpenImage& image) {
      for (int i = 0; i < 8; ++i) {
        const uint64_t offset = random() % (kSize - 200000);
        const uint64_t size = 1 + random() % 200000;
        ASSERT_TRUE(image.device()->write_at(offset, random_bytes(random, size)));
      }
      ASSERT_TRUE(image.device()->write_zeroes(random() % kSize / 2, 100000, ZeroMode::kMayUnmap));
    });
    qemu_check("disk");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, ImageEncryptionKinds,
    testing::Values(Kind{true, ""},
                    Kind{true, "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv"},
                    Kind{true, "encrypt.cipher-alg=aes-192,encrypt.hash-alg=sha512,cluster_size=4k"},
                    Kind{true, "encrypt.cipher-mode=ctr,encrypt.hash-alg=sha1"},
                    Kind{true,
                         "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain,encrypt.hash-alg=ripemd160,compat=0.10"},
                    Kind{true, "extended_l2=on,cluster_size=128k"}, Kind{true, "cluster_size=512"},
                    Kind{true, "cluster_size=2M,refcount_bits=1"}, Kind{false, ""},
                    Kind{false, "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1,extended_l2=on"},
                    Kind{false, "encrypt.cipher-alg=aes-192,compat=0.10"}, Kind{true, "aes"}, Kind{false, "aes"},
                    Kind{true, "aes,compat=0.10,cluster_size=4k"}, Kind{false, "aes,cluster_size=512"},
                    Kind{true, "aes,extended_l2=on"}, Kind{false, "aes,cluster_size=2M"}),
    [](const auto& parameter) { return fmt::format("{}", parameter.index); });

TEST_F(ImageEncryption, SnapshotsKeepWhatTheyHad) {
  for (const char* more : {"", "extended_l2=on", "compat=0.10", "aes", "aes,extended_l2=on"}) {
    SCOPED_TRACE(more);
    ASSERT_NO_FATAL_FAILURE(create_ours("disk", more));
    qemu_io("disk", {"write -P 1 0 1M", "write -P 2 1M 1000k"});
    const std::string first = theirs_raw("disk");
    // Tables only: no key is needed.
    EXPECT_EQ(ours(words("snapshot -c one disk")).exit_code, 0);
    qemu_io("disk", {"write -P 3 512k 1M"});
    change("disk", [&](image::OpenImage& image) {
      ASSERT_TRUE(image.device()->write_at(700001, Bytes(5000, std::byte{9})));
      auto view = image.qcow2()->open_snapshot(0);
      ASSERT_TRUE(view) << view.error().message;
      EXPECT_TRUE(read_all(**view) == first);
    });
    EXPECT_TRUE(theirs_raw("disk", "one") == first);
    EXPECT_EQ(ours(words("snapshot -a one disk")).exit_code, 0);
    EXPECT_TRUE(theirs_raw("disk") == first);
    qemu_check("disk");
  }
}

TEST_F(ImageEncryption, WithoutItsKeyGuestDataIsNeitherReadNorWritten) {
  for (const char* more : {"", "aes"}) {
    SCOPED_TRACE(more);
    ASSERT_NO_FATAL_FAILURE(create_ours("disk", more));
    expect_out_of_reach("disk");
  }
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  const auto wrong = open("disk", image::Use::kRead, "wrong");
  ASSERT_FALSE(wrong);
  EXPECT_THAT(wrong.error().message, HasSubstr("Invalid password, cannot unlock any keyslot"));
}

TEST_F(ImageEncryption, BackingFilesHaveSecretsOfTheirOwn) {
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  qemu_io("disk", {"write -P 7 0 3M"});
  const ProcessResult made = ours({"create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=tuna", "-b", "disk",
                                   "-F", "qcow2", "-o", kLuks, "overlay", "5M"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  const std::string chain =
      "driver=qcow2,encrypt.key-secret=t,file.filename=overlay,backing.encrypt.key-secret=s,backing.driver=qcow2,"
      "backing.file.filename=disk";
  const std::vector<std::string> secrets{"--object", kSecret, "--object", "secret,id=t,data=tuna"};
  std::vector<std::string> io{"qemu-io", "-c", "write -P 8 1000k 100k", "--image-opts", chain};
  io.insert(io.begin() + 1, secrets.begin(), secrets.end());
  test::run_ok(io, run_options(our_dir()));
  std::vector<std::string> convert{"convert", "--image-opts", "-O", "raw", chain, "ours.raw"};
  convert.insert(convert.begin() + 1, secrets.begin(), secrets.end());
  const ProcessResult copied = ours(convert);
  ASSERT_EQ(copied.exit_code, 0) << copied.err;
  convert.back() = "theirs.raw";
  convert.insert(convert.begin(), "qemu-img");
  test::run_ok(convert, run_options(our_dir()));
  EXPECT_TRUE(test::read_whole_file(path("ours.raw")) == test::read_whole_file(path("theirs.raw")));
  // Without the one below.
  const ProcessResult refused = ours({"convert", "--object", "secret,id=t,data=tuna", "--image-opts", "-O", "raw",
                                      "driver=qcow2,encrypt.key-secret=t,file.filename=overlay", "x"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("Could not open backing file: Parameter 'encrypt.key-secret' is required"));
}

TEST_F(ImageEncryption, OtherSizes) {
  for (const char* more : {"cluster_size=64k", "aes"}) {
    SCOPED_TRACE(more);
    ASSERT_NO_FATAL_FAILURE(create_ours("disk", more, "1000k"));
    qemu_io("disk", {"write -P 1 0 1000k"});
    for (const uint64_t size : {uint64_t{3} << 20, uint64_t{512} * 777, uint64_t{2} << 20}) {
      std::string expected;
      change("disk", [&](image::OpenImage& image) {
        expected = read_all(*image.device());
        expected.resize(size, '\0');
        ASSERT_TRUE(image.device()->resize(size));
      });
      EXPECT_TRUE(theirs_raw("disk") == expected);
      qemu_check("disk");
    }
    for (const char* preallocation : {"metadata", "full"}) {
      const std::string before = theirs_raw("disk");
      const std::string size = std::to_string(before.size() + (1 << 20));
      const ProcessResult grown = ours({"resize", "--object", kSecret, "--image-opts",
                                        std::string("--preallocation=") + preallocation, opts("disk"), size});
      ASSERT_EQ(grown.exit_code, 0) << grown.err;
      EXPECT_TRUE(theirs_raw("disk") == before + std::string(1 << 20, '\0'));
    }
  }
}

// Zero clusters over a backing file become clusters of zeroes, encrypted as their places on the disk want it.
TEST_F(ImageEncryption, DowngradesKeepZeroes) {
  put("base", std::string(4 << 20, 'b'));
  for (const char* more : {"", "aes"}) {
    SCOPED_TRACE(more);
    ASSERT_NO_FATAL_FAILURE(
        create_ours("disk", std::string(more) + (*more == '\0' ? "" : ",") + "backing_file=base,backing_fmt=raw"));
    qemu_io("disk", {"write -P 1 0 1M", "write -z 512k 2M"});
    const std::string before = theirs_raw("disk");
    const ProcessResult amended =
        ours({"amend", "--object", kSecret, "--image-opts", "-o", "compat=0.10", opts("disk")});
    ASSERT_EQ(amended.exit_code, 0) << amended.err;
    EXPECT_TRUE(theirs_raw("disk") == before);
    qemu_check("disk");
  }
}

TEST_F(ImageEncryption, PreallocatedClustersShowTheSameNoise) {
  ASSERT_NO_FATAL_FAILURE(create_ours("ours", "preallocation=metadata"));
  ASSERT_NO_FATAL_FAILURE(create_theirs("theirs", "preallocation=metadata"));
  ASSERT_NO_FATAL_FAILURE(create_ours("aes", "aes,preallocation=metadata"));
  for (const char* name : {"ours", "theirs", "aes"}) {
    std::string seen;
    {
      auto image = open(name, image::Use::kRead);
      ASSERT_TRUE(image);
      seen = read_all(*image->device());
    }
    EXPECT_TRUE(seen == theirs_raw(name));
  }
}

TEST_F(ImageEncryption, ACopyIntoPreallocatedClustersHasNoNoise) {
  put("plain", std::string(1 << 20, 'x') + std::string(3 << 20, '\0'));
  const ProcessResult copied = ours({"convert", "-f", "raw", "-O", "qcow2", "--object", kSecret, "-o",
                                     options_of("preallocation=metadata"), "plain", "disk"});
  ASSERT_EQ(copied.exit_code, 0) << copied.err;
  EXPECT_TRUE(theirs_raw("disk") == test::read_whole_file(path("plain")));
}

TEST_F(ImageEncryption, ConvertsBothWays) {
  std::mt19937_64 random(3);
  const Bytes noise = random_bytes(random, 3 << 20);
  put("plain", std::string(reinterpret_cast<const char*>(noise.data()), noise.size()) + std::string(1 << 20, '\0'));
  for (const char* options : {kLuks, kAes, "encryption=on,encrypt.key-secret=s"}) {
    SCOPED_TRACE(options);
    const ProcessResult in =
        ours({"convert", "-f", "raw", "-O", "qcow2", "--object", kSecret, "-o", options, "plain", "disk"});
    ASSERT_EQ(in.exit_code, 0) << in.err;
    EXPECT_TRUE(theirs_raw("disk") == test::read_whole_file(path("plain")));
    qemu_check("disk");
    const ProcessResult out = ours({"convert", "--object", kSecret, "--image-opts", "-O", "raw", opts("disk"), "copy"});
    ASSERT_EQ(out.exit_code, 0) << out.err;
    EXPECT_TRUE(test::read_whole_file(path("copy")) == test::read_whole_file(path("plain")));
    expect_same({"convert", "-c", "-O", "qcow2", "--object", kSecret, "-o", options, "plain", "x"});
  }
}

// Nothing in the image tells which key is the right one; only the first sixteen bytes of a passphrase count.
TEST_F(ImageEncryption, OldAesTakesEveryPassphrase) {
  const std::string secret = "secret,id=s,data=a-passphrase-of-more-than-16-bytes";
  const ProcessResult made = ours({"create", "-q", "-f", "qcow2", "--object", secret, "-o", kAes, "disk", "4M"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  std::string seen;
  {
    auto image = open("disk", image::Use::kWrite, "a-passphrase-of-and something else");
    ASSERT_TRUE(image);
    ASSERT_TRUE(image->device()->write_at(1000, Bytes(100000, std::byte{5})));
    ASSERT_TRUE(image->device()->flush());
    seen = read_all(*image->device());
  }
  test::run_ok({"qemu-img", "convert", "--object", secret, "--image-opts", "-O", "raw", opts("disk"), "raw"},
               run_options(our_dir()));
  EXPECT_TRUE(test::read_whole_file(path("raw")) == seen);
  auto wrong = open("disk", image::Use::kRead, "sword");
  ASSERT_TRUE(wrong);
  EXPECT_FALSE(read_all(*wrong->device()) == seen);
}

TEST_F(ImageEncryption, CreateSaysWhatIsWrongAsQemuDoes) {
  const auto check = [&](const std::string& object, const std::string& options) {
    expect_same({"create", "-f", "qcow2", "--object", object, "-o", options, "disk", "1M"});
  };
  for (const char* options :
       {"encrypt.format=luks",
        "encrypt.format=luks,encrypt.key-secret=",
        "encrypt.format=luks,encrypt.key-secret=no",
        "encrypt.format=foo,encrypt.key-secret=s",
        "encrypt.key-secret=s",
        "encrypt.cipher-alg=aes-256",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=des",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.ivgen-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.ivgen-hash-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.hash-alg=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=foo",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.foo=1",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
        "encrypt.ivgen-hash-alg=sha1",
        "encryption=on",
        "encryption=on,encrypt.key-secret=s",
        "encryption=on,encrypt.key-secret=no",
        "encryption=off,encrypt.key-secret=s",
        "encrypt.format=aes,encrypt.key-secret=s",
        "encrypt.format=qcow,encrypt.key-secret=s",
        "encryption=on,encrypt.format=aes,encrypt.key-secret=s",
        "encryption=off,encrypt.format=aes,encrypt.key-secret=s",
        "encryption=on,encrypt.format=luks,encrypt.key-secret=s",
        "encrypt.format=aes,encrypt.key-secret=s,encrypt.iter-time=10"}) {
    SCOPED_TRACE(options);
    check("secret,id=s,data=x", options);
  }
  put("nul", std::string("a\0b", 3));
  put("bytes", "\xff\xfe");
  for (const char* object : {"secret,id=s", "secret,data=x", "secret,id=s,data=x,file=nul", "secret,id=s,file=absent",
                             "secret,id=s,file=nul", "secret,id=s,file=bytes", "secret,id=s,data=YW Jj,format=base64",
                             "secret,id=s,data=x,format=foo", "secret,id=s,data=x,foo=bar", "secret,id=1s,data=x",
                             "foo,id=s", R"({"qom-type":"secret","id":"s"})"}) {
    SCOPED_TRACE(object);
    check(object, kLuks);
  }
  expect_same({"create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "--object", "secret,id=s,data=y",
               "disk", "1M"});
}

TEST_F(ImageEncryption, MeasuresAsQemuDoes) {
  for (const char* more : {"", ",encrypt.cipher-alg=aes-128", ",encrypt.cipher-mode=cbc,cluster_size=4k",
                           ",encrypt.cipher-alg=foo", ",encrypt.hash-alg=sha512"}) {
    const std::vector<std::string> line{"measure", "-O",  "qcow2", "--object", kSecret, "-o", std::string(kLuks) + more,
                                        "--size",  "100M"};
    expect_same(line);
  }
  expect_same("measure -O qcow2 -o encrypt.format=luks --size 1M");
  expect_same("measure -O qcow2 -o encrypt.format=aes --size 1M");
}

TEST_F(ImageEncryption, GuestDataInADataFileIsEncryptedToo) {
  create_theirs("disk", "data_file=" + path("disk.data"));
  qemu_io("disk", {"write -P 7 0 1M", "write -P 8 2M 3k"});
  const std::string before = test::read_whole_file(path("disk.data"));
  for (const std::vector<std::string>& line : {std::vector<std::string>{"convert", "-O", "raw", "disk", "out"},
                                               {"bench", "-w", "-c", "1", "disk"},
                                               {"compare", "disk", "disk"},
                                               {"resize", "disk", "8M"}}) {
    const ProcessResult refused = ours(line);
    EXPECT_NE(refused.exit_code, 0) << line[0];
    EXPECT_NE(refused.err.find("Parameter 'encrypt.key-secret' is required for cipher"), std::string::npos)
        << refused.err;
  }
  EXPECT_TRUE(test::read_whole_file(path("disk.data")) == before);
  const ProcessResult copied = ours({"convert", "--object", kSecret, "--image-opts", "-O", "raw", opts("disk"), "out"});
  EXPECT_EQ(copied.exit_code, 0) << copied.err;
  EXPECT_TRUE(test::read_whole_file(path("out")) == theirs_raw("disk"));
  const ProcessResult written = ours({"bench", "-w", "-c", "4", "-s", "64k", "--pattern=9", "-o", "1M", "--image-opts",
                                      "--object", kSecret, opts("disk")});
  if (written.exit_code == 0) qemu_io("disk", {"read -P 7 0 1M", "read -P 9 1M 256k", "read -P 8 2M 3k"});
  for (const char* more : {"", "aes,"}) {
    SCOPED_TRACE(more);
    create_ours("mine", more + ("data_file=" + path("mine.data")));
    qemu_io("mine", {"write -P 3 1M 1M", "read -P 3 1M 1M", "write -P 4 3M 5k"});
    change("mine",
           [](image::OpenImage& image) { ASSERT_TRUE(image.device()->write_at(3 << 20, Bytes(1000, std::byte{5}))); });
    qemu_check("mine");
  }
}

// ---- key slots

class KeySlots : public ImageEncryption {
 protected:
  void with_area(const std::function<void(const crypto::LuksArea&)>& use) {
    auto file = FileDevice::open(path("disk"), Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(file);
    const auto header = qcow2::read_header(**file);
    ASSERT_TRUE(header);
    const auto area = qcow2::luks_area(**file, *header);
    ASSERT_TRUE(area) << area.error().message;
    use(*area);
  }
  bool qemu_opens_with(const std::string& passphrase) const {
    return test::run(
               {"qemu-img", "check", "-q", "--object", "secret,id=s,data=" + passphrase, "--image-opts", opts("disk")},
               run_options(our_dir()))
               .exit_code == 0;
  }
};

TEST_F(KeySlots, QemuOpensAndMissesWhatWasAddedAndErased) {
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  with_area([](const crypto::LuksArea& area) {
    const auto added = crypto::add_key_slot(area, crypto::SecretBytes("swordfish"), crypto::SecretBytes("tuna"), 6, 10,
                                            crypto::KeySlotCare::kRefuseLoss);
    EXPECT_TRUE(added) << added.error().message;
  });
  EXPECT_TRUE(qemu_opens_with("tuna"));
  EXPECT_TRUE(qemu_opens_with("swordfish"));
  EXPECT_FALSE(qemu_opens_with("shark"));
  with_area([](const crypto::LuksArea& area) {
    const crypto::SecretBytes old("swordfish");
    EXPECT_TRUE(crypto::erase_key_slots_of(area, old, crypto::KeySlotCare::kRefuseLoss));
  });
  EXPECT_TRUE(qemu_opens_with("tuna"));
  EXPECT_FALSE(qemu_opens_with("swordfish"));
}

TEST_F(KeySlots, CryptsetupReadsTheHeader) {
  REQUIRES_PROGRAM("cryptsetup");
  ASSERT_NO_FATAL_FAILURE(create_ours("disk"));
  with_area([&](const crypto::LuksArea& area) {
    std::string header(area.length + 4096, '\0');
    ASSERT_TRUE(area.device->read_at(
        area.offset, std::as_writable_bytes(std::span(header.data(), static_cast<size_t>(area.length)))));
    put("header", header);
  });
  const std::string dump = test::run_ok({"cryptsetup", "luksDump", "header"}, run_options(our_dir()));
  EXPECT_THAT(dump, HasSubstr("Cipher mode:   \txts-plain64"));
  EXPECT_THAT(dump, HasSubstr("Key Slot 0: ENABLED"));
  put("passphrase", "swordfish");
  test::run_ok({"cryptsetup", "open", "--test-passphrase", "--key-file", "passphrase", "header"},
               run_options(our_dir()));
}

}  // namespace
}  // namespace varve
