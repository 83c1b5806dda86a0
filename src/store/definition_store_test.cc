#include "store/definition_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "support/temp_dir.h"

namespace varve {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DefinitionStoreTest : public ::testing::Test {
 protected:
  static DomainDocument domain(const std::string& name) {
    NewDomain spec;
    spec.name = name;
    spec.uuid = new_uuid();
    return *DomainDocument::create(spec);
  }
  void put(const std::string& file, const std::string& contents) {
    std::filesystem::create_directories(directory_);
    dir_.write("etc/libvirt/qemu/" + file, contents);
  }
  test::TempDir dir_;
  std::string directory_ = dir_ / "etc/libvirt/qemu";
  DefinitionFiles store_{*Layout::open(dir_.path())};
};

TEST_F(DefinitionStoreTest, AnEmptyRootHasNoDomains) {
  EXPECT_THAT(*store_.names(), IsEmpty());
  EXPECT_THAT(store_.list()->domains, IsEmpty());
  EXPECT_FALSE(*store_.exists("x"));
  const auto missing = store_.load("x");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(missing.error().notes, Contains("there are none"));
}

TEST_F(DefinitionStoreTest, WhatIsSavedIsFoundAgain) {
  for (const char* name : {"b", "a b", "M\xC3\xBC", "c"}) ASSERT_TRUE(store_.save(domain(name))) << name;
  EXPECT_THAT(*store_.names(), ElementsAre("M\xC3\xBC", "a b", "b", "c"));
  EXPECT_EQ(store_.load("a b")->name(), "a b");
  EXPECT_TRUE(*store_.exists("c"));
  ASSERT_TRUE(store_.remove("c"));
  EXPECT_FALSE(*store_.exists("c"));
  const auto missing = store_.load("c");
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().notes, Contains("there are: M\xC3\xBC, a b, b"));
}

TEST_F(DefinitionStoreTest, TheFileIsAsLibvirtWritesIt) {
  ASSERT_TRUE(store_.save(domain("vm")));
  const std::string path = directory_ + "/vm.xml";
  EXPECT_THAT(test::read_whole_file(path), ::testing::StartsWith("<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE."));
  EXPECT_THAT(test::read_whole_file(path), HasSubstr("\n  virsh edit vm\nor other application"));
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777U, 0600U);
  const std::string before = test::read_whole_file(path);
  ASSERT_TRUE(store_.save(*store_.load("vm")));
  EXPECT_EQ(test::read_whole_file(path), before);
}

TEST_F(DefinitionStoreTest, ChangesAreHandedOutForTheJournal) {
  const DomainDocument vm = domain("vm");
  EXPECT_EQ(store_.saving(vm), (FileChange{"/etc/libvirt/qemu/vm.xml", vm.to_file(), 0600}));
  EXPECT_EQ(store_.removing("vm"), (FileChange{"/etc/libvirt/qemu/vm.xml", std::nullopt, 0600}));
  EXPECT_FALSE(std::filesystem::exists(directory_));
}

TEST_F(DefinitionStoreTest, OtherThingsInTheDirectoryAreNoDomains) {
  ASSERT_TRUE(store_.save(domain("vm")));
  std::filesystem::create_directories(directory_ + "/networks");
  std::filesystem::create_directories(directory_ + "/autostart");
  std::filesystem::create_directories(directory_ + "/odd.xml");
  put("networks/default.xml", "<network/>");
  put("vm.xml.new", "half");
  put(".varve-0123456789abcdef.tmp", "half");
  ASSERT_EQ(::symlink("../vm.xml", (directory_ + "/autostart/vm.xml").c_str()), 0);
  EXPECT_THAT(*store_.names(), ElementsAre("vm"));
}

TEST_F(DefinitionStoreTest, ABadFileIsReportedAndLeftAlone) {
  ASSERT_TRUE(store_.save(domain("good")));
  put("bad.xml", "<domain><name>bad</name>");
  put("empty.xml", "");
  put("other.xml", "<domain><name>another</name></domain>");
  put("bomb.xml", "<!DOCTYPE d [<!ENTITY a 'a'>]><domain><name>bomb</name></domain>");
  ASSERT_EQ(::symlink("/nowhere", (directory_ + "/dangling.xml").c_str()), 0);
  const auto listing = store_.list();
  ASSERT_TRUE(listing);
  ASSERT_EQ(listing->domains.size(), 1U);
  EXPECT_EQ(listing->domains[0].name(), "good");
  std::vector<std::string> problems;
  for (const Error& error : listing->problems) problems.push_back(error.message);
  EXPECT_THAT(problems, ElementsAre(HasSubstr("bad.xml"), HasSubstr("DOCTYPE"), HasSubstr("dangling.xml"),
                                    HasSubstr("empty.xml"), HasSubstr("another name, 'another'")));
  EXPECT_EQ(test::read_whole_file(directory_ + "/bad.xml"), "<domain><name>bad</name>");
  EXPECT_EQ(store_.load("other").error().kind, ErrorKind::kCorrupt);
}

TEST_F(DefinitionStoreTest, NamesThatAreNoFileNamesAreRefused) {
  for (const std::string name : {"", "..", "../x", "/etc/passwd", "networks/default"}) {
    EXPECT_EQ(store_.load(name).error().kind, ErrorKind::kInvalidArgument) << name;
    EXPECT_FALSE(*store_.exists(name));
  }
  EXPECT_EQ(store_.load(std::string(300, 'n')).error().kind, ErrorKind::kInvalidArgument);
}

}  // namespace
}  // namespace varve
