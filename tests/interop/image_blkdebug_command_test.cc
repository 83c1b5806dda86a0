// Errors on purpose: QEMU's driver blkdebug in the names of images, and what commands do with disks that fail.
#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "interop/image_command_peer.h"

namespace varve::test {
namespace {

class ImageBlkdebugCommand : public ImageCommandPeer {
 protected:
  void SetUp() override {
    ImageCommandPeer::SetUp();
    put_rules("read", "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\n");
    put_rules("write", "# the disk is full\n\n[inject-error]\nevent = \"write_aio\"\nerrno = \"28\"\n");
    put_rules("open", "[inject-error]\nevent = \"none\"\niotype = \"read\"\nerrno = \"6\"\n");
    put_rules("second",
              "[set-state]\nevent = \"read_aio\"\nstate = \"1\"\nnew_state = \"2\"\n"
              "[inject-error]\nevent = \"read_aio\"\nstate = \"2\"\nerrno = \"5\"\n");
    prepare({words("qemu-img create -q -f qcow2 base 1M"),
             io({"write -P 9 512k 64k"}, "base"),
             words("qemu-img create -q -f qcow2 -b base -F qcow2 over"),
             io({"write -P 3 0 128k"}, "over"),
             words("qemu-img create -q -f qcow2 disk 1M"),
             io({"write -P 3 0 1M"}, "disk"),
             words("qemu-img create -q -f raw flat 1M"),
             {"qemu-io", "-f", "raw", "-c", "write -P 5 0 200k", "flat"}});
  }
  void put_rules(const std::string& name, const std::string& text) { put(name, text); }
  // With blkdebug between the file and its format, and over both.
  static std::string below(const std::string& name, const std::string& options) {
    return fmt::format("driver=qcow2,file.driver=blkdebug,file.image.filename={}{}", name, options);
  }
  static std::string over(const std::string& name, const std::string& options) {
    return fmt::format("driver=blkdebug,image.driver=qcow2,image.file.filename={}{}", name, options);
  }
};

TEST_F(ImageBlkdebugCommand, ShowsNamesThatOpenTheSameAgain) {
  for (const char* name :
       {"blkdebug::over", "blkdebug:read:over", "blkdebug:read:blkdebug::over",
        "blkdebug:read:json:{\"driver\":\"file\",\"filename\":\"over\"}",
        "json:{'driver':'blkdebug','image':{'driver':'qcow2','file':{'driver':'file','filename':'over'}},'align':4096}",
        "json:{'driver':'qcow2','file':{'driver':'blkdebug','image':{'driver':'file','filename':'over'},"
        "'set-state':[{'event':'read_aio','new_state':42}]}}",
        "json:{'driver':'blkdebug','image':{'driver':'file','filename':'over'},'align':4096}",
        "json:{'driver':'blkdebug','image.filename':'over'}",
        "json:{'driver':'blkdebug','config':'read','image.filename':'over'}",
        "json:{'driver':'raw','file.driver':'blkdebug','file.image.filename':'flat','file.align':'4k'}",
        "json:{'driver':'raw','file.driver':'blkdebug','file.config':'read','file.image.filename':'flat'}",
        "json:{'driver':'raw','file.driver':'blkdebug','file.image':{'driver':'raw','file.filename':'flat'}}",
        "json:{'driver':'blkdebug','image':{'driver':'raw','file.filename':'flat'}}",
        "json:{'driver':'blkdebug','image.filename':'flat','inject-error':[{'event':'none','once':true}]}"}) {
    expect_same_view({"info", name});
    expect_same_view({"info", "--output=json", name});
  }
  expect_same_view({"info", "json:{'driver':'blkdebug','image':{'driver':'null-co','size':1048576}}"});
  expect_same_view({"info", "--image-opts", over("over", ",align=4k")});
  expect_same_view({"info", "--image-opts", below("over", ",file.config=read,file.max-transfer=64k")});
}

TEST_F(ImageBlkdebugCommand, SaysWhatIsWrongWithAName) {
  for (const char* name : {"blkdebug:flat", "blkdebug:nothing:flat", "blkdebug::nothing", "json:{'driver':'blkdebug'}",
                           "json:{'driver':'blkdebug','image':'x'}", "blkdebug:open:over"}) {
    expect_same(std::vector<std::string>{"info", name});
  }
  expect_same("info -f qcow2 blkdebug:open:over");
  expect_same("info -f raw blkdebug:open:flat");
  for (const char* options : {"align=3",
                              "align=x",
                              "align=1E",
                              "max-transfer=100,align=512",
                              "opt-write-zero=100,align=512",
                              "max-write-zero=100,align=512",
                              "opt-discard=100,align=512",
                              "max-discard=1000,align=512",
                              "foo=1",
                              "image.foo=3",
                              "inject-error.event=none,inject-error.foo=3",
                              "inject-error.1.event=none",
                              "inject-error.0.event=none,inject-error.2.event=none",
                              "inject-error.0=3",
                              "inject-error.0.event=none,inject-error.x=3",
                              "inject-error.0.foo=3",
                              "inject-error.0.event=foo",
                              "inject-error.0.event=none,inject-error.0.errno=x",
                              "inject-error.0.event=none,inject-error.0.once=x",
                              "inject-error.0.event=none,inject-error.0.iotype=x",
                              "inject-error.0.iotype=read",
                              "set-state.0.event=none,set-state.0.new_state=x",
                              "config=nothing"}) {
    expect_same({"info", "--image-opts", fmt::format("driver=blkdebug,image.filename=flat,{}", options)});
  }
}

TEST_F(ImageBlkdebugCommand, SaysWhatIsWrongWithAFileOfRules) {
  for (const char* rules :
       {"x\n", "event = \"none\"\n", "[foo]\nevent = \"none\"\n", "[inject-error]\nfoo = \"none\"\n",
        "[inject-error]\nevent = \"nope\"\n", "[inject-error]\nevent = none\n", "[inject-error]\nevent=\"none\"\n",
        "[inject-error]\n  event = \"none\" # and so on\n", "[inject-error]\nevent = \"none\"\nerrno = \"5x\"\n",
        "[inject-error]\nevent = \"none\"\nonce = \"maybe\"\n", "[inject-error]\nevent = \"none\"\niotype = \"x\"\n",
        "   \n", "[inject-error]\nevent = \"none\"\nerrno = \"0x5\"\n",
        "[set-state]\nevent = \"none\"\nnew_state = \"9\"\nerrno = \"3\"\n", "[inject-error]\n",
        "[inject-error]\nevent = \"l2_load\"\n\n[set-state]\nevent = \"refblock_alloc\"\nnew_state = \"2\"\n"}) {
    put_rules("rules", rules);
    expect_same("convert -f raw -O raw blkdebug:rules:flat copy");
  }
}

TEST_F(ImageBlkdebugCommand, FailsWhereTheRulesSaySo) {
  for (const char* line :
       {"convert -O raw blkdebug:read:over copy", "convert -f raw -O raw blkdebug:read:flat copy",
        "dd -f raw -O raw bs=64k count=1 if=blkdebug:read:flat of=copy", "compare blkdebug:read:over over",
        "compare over blkdebug:read:over", "compare blkdebug:read:over disk",
        "convert -n -O raw disk blkdebug:write:flat", "bench -w -c 3 -f raw blkdebug:write:flat",
        "commit blkdebug:read:over", "check blkdebug::over", "snapshot -l blkdebug:read:over"}) {
    expect_same(line);
  }
  const std::string unmapped = ",inject-error.0.event=none,inject-error.0.iotype=block-status";
  expect_same({"convert", "-O", "raw", "--image-opts", over("over", unmapped), "copy"});
  expect_same({"compare", "--image-opts", "driver=qcow2,file.filename=over", over("over", unmapped)});
  expect_same({"map", "--image-opts",
               "driver=raw,file.driver=blkdebug,file.image.filename=flat,file.inject-error.0.event=none,"
               "file.inject-error.0.iotype=block-status"});
}

TEST_F(ImageBlkdebugCommand, CopiesNothingOfWhatCanNotBeRead) {
  const std::string rules = ",inject-error.0.event=none,inject-error.0.sector=300";
  expect_same({"convert", "-O", "raw", "--image-opts", over("disk", rules), "copy"});
  expect_same({"convert", "--salvage", "-O", "qcow2", "--image-opts", over("disk", rules), "copy"});
  expect_same_image("copy", "qcow2");
}

TEST_F(ImageBlkdebugCommand, SalvagesWhatCanBeRead) {
  const std::string bad =
      ",inject-error.0.event=none,inject-error.0.iotype=block-status,inject-error.0.sector=100"
      ",inject-error.1.event=none,inject-error.1.iotype=read,inject-error.1.sector=200"
      ",inject-error.2.event=none,inject-error.2.iotype=read,inject-error.2.sector=100"
      ",inject-error.3.event=none,inject-error.3.iotype=block-status,inject-error.3.sector=2047";
  for (const char* options : {"", ",align=4k", ",max-transfer=64k"}) {
    for (const char* target : {"-O raw", "-O qcow2", "-O qcow2 -c -m 1", "-O raw -S 0", "-O qcow2 -m 1", "-O raw -q"}) {
      std::vector<std::string> line = words(fmt::format("convert --salvage {} --image-opts", target));
      line.push_back(over("disk", bad + options));
      line.push_back("copy");
      expect_same(line);
      // Zeroes in the place of 4096 bytes are a hole in our file, and eight short pieces to qemu-img.
      run_ok({"qemu-img", "compare", "-q", "-f", line[3], "-F", line[3], our_dir() + "/copy", their_dir() + "/copy"});
    }
  }
  // Of two sources, each counts from its own beginning.
  expect_same({"convert", "--salvage", "-O", "raw", "--image-opts", "driver=raw,file.filename=flat", over("disk", bad),
               "copy"});
  expect_same_image("copy", "raw");
  expect_same("convert --salvage -f raw -O raw blkdebug:read:flat copy");
  expect_same_image("copy", "raw");
}

TEST_F(ImageBlkdebugCommand, MapsAndMeasuresWhatLiesBelow) {
  for (const std::string& source : {over("over", ""), over("over", ",align=4k"), below("over", ",file.align=4k"),
                                    std::string("driver=raw,file.driver=blkdebug,file.image.filename=flat")}) {
    expect_same_view({"map", "--image-opts", source});
    expect_same_view({"map", "--output=json", "--image-opts", source});
    expect_same_view({"measure", "-O", "qcow2", "--image-opts", source});
  }
}

TEST_F(ImageBlkdebugCommand, ChangesWhatLiesBelow) {
  const std::string limits = ",align=4k,max-transfer=64k,opt-write-zero=64k,max-write-zero=128k,opt-discard=64k";
  expect_same({"convert", "-n", "--target-image-opts", "-O", "qcow2", "flat", over("disk", limits)});
  expect_same({"resize", "--image-opts", over("disk", limits), "2M"});
  expect_same({"snapshot", "-c", "point", "blkdebug::over"});
  expect_same("commit blkdebug::over");
  for (const char* name : {"disk", "over", "base"}) expect_same_image(name, "qcow2");
}

TEST_F(ImageBlkdebugCommand, DoesNotDoWhatBlkdebugCanNot) {
  expect_same("convert -O raw disk blkdebug::new");
  expect_same("create -f raw blkdebug::new 1M");
  expect_same("dd if=flat of=blkdebug::new");
  for (const char* line : {"convert --bitmaps -O qcow2 --image-opts", "convert -l point -O qcow2 --image-opts"}) {
    std::vector<std::string> arguments = words(line);
    arguments.push_back(over("over", ""));
    arguments.push_back("copy");
    expect_same(arguments);
  }
  expect_same({"check", "--image-opts", over("over", "")});
  expect_same({"amend", "-o", "compat=1.1", "--image-opts", over("over", "")});
  const ProcessResult bitmap = ours({"bitmap", "--add", "--image-opts", over("disk", ""), "b"});
  EXPECT_EQ(bitmap.exit_code, 1);
  EXPECT_EQ(bitmap.err,
            "qemu-img: Operation add on bitmap b failed: blkdebug keeps no bitmaps; it can lie below the format\n");
}

// The user's word, and nobody else's: an image that names blkdebug names no file.
TEST_F(ImageBlkdebugCommand, IsNoBackingFile) {
  prepare({words("qemu-img create -q -u -f qcow2 -b blkdebug::base -F qcow2 named 1M")});
  const ProcessResult read = ours(words("convert -O raw named copy"));
  EXPECT_EQ(read.exit_code, 1);
  EXPECT_NE(read.err.find("'blkdebug::base' is not a path"), std::string::npos) << read.err;
  const ProcessResult given = ours({"convert", "-O", "raw", "--image-opts",
                                    "driver=qcow2,file.filename=over,backing.driver=qcow2,backing.file.driver=blkdebug,"
                                    "backing.file.config=read,backing.file.image.filename=base",
                                    "copy"});
  EXPECT_EQ(given.err, "qemu-img: error while reading at byte 524288: Input/output error\n");
}

// A commit that fails leaves the overlay as it was, and says one thing.
TEST_F(ImageBlkdebugCommand, AFailedCommitLosesNothing) {
  const std::string full =
      "driver=qcow2,file.filename=over,backing.driver=qcow2,backing.file.driver=blkdebug,"
      "backing.file.config=write,backing.file.image.filename=base";
  run_ok({"qemu-img", "convert", "-O", "raw", "over", "before"}, run_options(our_dir()));
  const ProcessResult failed = ours({"commit", "--image-opts", full});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_EQ(failed.err, "qemu-img: Block job failed: No space left on device\n");
  run_ok({"qemu-img", "check", "-q", "base"}, run_options(our_dir()));
  run_ok({"qemu-img", "check", "-q", "over"}, run_options(our_dir()));
  run_ok({"qemu-img", "compare", "-F", "raw", "over", "before"}, run_options(our_dir()));
}

}  // namespace
}  // namespace varve::test
