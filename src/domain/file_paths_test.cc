#include "domain/file_paths.h"

#include <gtest/gtest.h>

namespace varve {
namespace {

constexpr const char* kSnapshot = R"(<domainsnapshot>
  <memory snapshot='external' file='/save/a.mem'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <source file='/images/top.qcow2'/>
    </disk>
  </disks>
  <domain type='kvm'>
    <os>
      <nvram template='/images/base.qcow2'>/nvram/vm_VARS.fd</nvram>
    </os>
    <description>/images/base.qcow2</description>
    <devices>
      <disk type='file' device='disk'>
        <source file="/images/base.qcow2"  index='1'/>
        <backingStore type='file'>
          <source file='/images/base.qcow2'/>
        </backingStore>
      </disk>
      <serial type='file'><source path='/images/base.qcow2'/></serial>
    </devices>
  </domain>
</domainsnapshot>
)";

TEST(FilePaths, AreReplacedWhereverTheyStandAndNowhereElse) {
  auto document = xml::Document::parse(kSnapshot, "test");
  ASSERT_TRUE(document);
  EXPECT_EQ(replace_file_paths(document->root(), {{"/images/base.qcow2", "/mnt/b & c.qcow2"},
                                                  {"/images/top.qcow2", "/mnt/top.qcow2"},
                                                  {"/nvram/vm_VARS.fd", "/mnt/vars.fd"},
                                                  {"/save/a.mem", "/mnt/a.mem"}}),
            5u);
  std::string expected = kSnapshot;
  const auto replace = [&](const std::string& from, const std::string& to) {
    const size_t at = expected.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    expected.replace(at, from.size(), to);
  };
  replace("file='/save/a.mem'", "file='/mnt/a.mem'");
  replace("file='/images/top.qcow2'", "file='/mnt/top.qcow2'");
  replace(">/nvram/vm_VARS.fd<", ">/mnt/vars.fd<");
  replace("file=\"/images/base.qcow2\"", "file=\"/mnt/b &amp; c.qcow2\"");
  replace("file='/images/base.qcow2'", "file='/mnt/b &amp; c.qcow2'");
  EXPECT_EQ(document->to_string(), expected);
}

TEST(FilePaths, WhatDoesNotMoveKeepsItsBytes) {
  auto document = xml::Document::parse(kSnapshot, "test");
  ASSERT_TRUE(document);
  EXPECT_EQ(replace_file_paths(document->root(), {{"/images/base.qcow2", "/images/base.qcow2"}, {"/other", "/x"}}), 0u);
  EXPECT_EQ(document->to_string(), kSnapshot);
}

}  // namespace
}  // namespace varve
