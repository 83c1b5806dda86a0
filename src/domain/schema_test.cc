#include "domain/schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <thread>

#include "domain/domain_document.h"
#include "domain/snapshot_document.h"

namespace varve {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

#define REQUIRES_SCHEMAS()                                                                      \
  if (::access((std::string(SchemaSet::kLibvirtDirectory) + "/domain.rng").c_str(), R_OK) != 0) \
  GTEST_SKIP() << "needs libvirt's schemas (package libvirt0), which are not installed"

std::string corpus(const std::string& name) {
  std::ifstream in(std::string(VARVE_CORPUS_DIR) + "/libvirt/" + name, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

void expect_valid(SchemaSet& schemas, SchemaKind kind, const std::string& text) {
  const auto outcome = schemas.validate(kind, text, "test.xml");
  ASSERT_TRUE(outcome) << outcome.error().message << "\n"
                       << (outcome.error().notes.empty() ? "" : outcome.error().notes[0]) << "\n"
                       << text;
  EXPECT_EQ(*outcome, SchemaOutcome::kValid);
}

TEST(Schema, WhatLibvirtWroteIsValid) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  for (const char* name : {"definition.xml", "definition_uefi.xml"}) {
    expect_valid(schemas, SchemaKind::kDomain, corpus(name));
  }
  for (const char* name : {"snapshot_offline.xml", "snapshot_offline_child.xml", "snapshot_external.xml"}) {
    expect_valid(schemas, SchemaKind::kDomainSnapshot, corpus(name));
  }
}

TEST(Schema, WhatWeBuildIsValid) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  NewDomain domain;
  domain.name = "a new one";
  domain.uuid = new_uuid();
  domain.disks = {{"/var/lib/libvirt/images/a.qcow2", "qcow2"}, {"/var/lib/libvirt/images/b.img", "raw"}};
  const auto definition = DomainDocument::create(domain);
  ASSERT_TRUE(definition);
  expect_valid(schemas, SchemaKind::kDomain, definition->to_file());

  NewSnapshot spec;
  spec.name = "s";
  spec.description = "what\never";
  spec.parent = "p";
  spec.creation_time = 1700000000;
  spec.notes = {{"safety", "yes"}, {"nvram", "/var/lib/libvirt/qemu/nvram/x"}};
  spec.disks = {{"vdb", SnapshotMode::kExternal, "qcow2", "/b.s", DiskSourceType::kFile}};
  const auto snapshot = SnapshotDocument::create(*definition, spec);
  ASSERT_TRUE(snapshot);
  expect_valid(schemas, SchemaKind::kDomainSnapshot, snapshot->to_file());
  expect_valid(schemas, SchemaKind::kDomainSnapshot, snapshot->to_xml());
}

TEST(Schema, ViolationsAreNamedWithTheirLine) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  std::string text = corpus("definition.xml");
  const size_t at = text.find("<vcpu placement='static'>1</vcpu>");
  ASSERT_NE(at, std::string::npos);
  text.insert(at, "<surprise/>");
  const auto line = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n') + 1;
  const auto outcome = schemas.validate(SchemaKind::kDomain, text, "etc/x.xml");
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::kInvalidArgument);
  EXPECT_EQ(outcome.error().message, "etc/x.xml is not a valid <domain>");
  EXPECT_THAT(outcome.error().notes, Contains(HasSubstr("surprise")));
  EXPECT_THAT(outcome.error().notes, Contains(HasSubstr("line " + std::to_string(line))));
}

TEST(Schema, TheWrongKindIsNotValid) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  EXPECT_FALSE(schemas.validate(SchemaKind::kDomainSnapshot, corpus("definition.xml"), "x"));
  EXPECT_FALSE(schemas.validate(SchemaKind::kDomain, corpus("snapshot_offline.xml"), "x"));
}

TEST(Schema, HostileTextNeverReachesTheSchema) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  const auto bomb = schemas.validate(
      SchemaKind::kDomain, "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>", "bomb.xml");
  ASSERT_FALSE(bomb);
  EXPECT_EQ(bomb.error().kind, ErrorKind::kRefused);
}

TEST(Schema, MissingSchemasAreAnOutcomeOfTheirOwn) {
  SchemaSet schemas("/nonexistent");
  const auto outcome = schemas.validate(SchemaKind::kDomain, "<domain/>", "x");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, SchemaOutcome::kNotInstalled);
}

TEST(Schema, SeveralThreadsCanAsk) {
  REQUIRES_SCHEMAS();
  SchemaSet schemas;
  const std::string text = corpus("definition.xml");
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 5; ++k) expect_valid(schemas, SchemaKind::kDomain, text);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace varve
