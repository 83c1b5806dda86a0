// Every seed and every finding of the fuzzers, through the functions that found it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "fuzz/document_entry_points.h"
#include "fuzz/entry_points.h"
#include "support/temp_dir.h"

namespace varve::fuzz {
namespace {

std::vector<std::string> files(const char* directory) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(VARVE_CORPUS + std::string("/") + directory))
    if (entry.path().extension() != ".json") out.push_back(entry.path().string());
  std::sort(out.begin(), out.end());
  return out;
}

std::string test_name(const testing::TestParamInfo<std::string>& instance) {
  std::string name = std::filesystem::path(instance.param).filename().string();
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

class ImageCorpus : public testing::TestWithParam<std::string> {};

TEST_P(ImageCorpus, BreaksNoPromise) {
  const std::string bytes = test::read_whole_file(GetParam());
  ASSERT_FALSE(bytes.empty());
  EXPECT_LT(bytes.size(), 72u << 10) << "seeds are small";
  open_image(std::as_bytes(std::span(bytes)));
  live(std::as_bytes(std::span(bytes)));
  check_image(std::as_bytes(std::span(bytes)));
}

INSTANTIATE_TEST_SUITE_P(All, ImageCorpus, testing::ValuesIn(files("qcow2")), test_name);
INSTANTIATE_TEST_SUITE_P(Hostile, ImageCorpus, testing::ValuesIn(files("hostile")), test_name);

class CompressedCorpus : public testing::TestWithParam<std::string> {};

TEST_P(CompressedCorpus, BreaksNoPromise) {
  const std::string bytes = test::read_whole_file(GetParam());
  ASSERT_FALSE(bytes.empty());
  decompress(std::as_bytes(std::span(bytes)));
}

INSTANTIATE_TEST_SUITE_P(All, CompressedCorpus, testing::ValuesIn(files("compressed")), test_name);

class LuksCorpus : public testing::TestWithParam<std::string> {};

TEST_P(LuksCorpus, BreaksNoPromise) {
  const std::string bytes = test::read_whole_file(GetParam());
  ASSERT_FALSE(bytes.empty());
  luks_header(std::as_bytes(std::span(bytes)));
}

INSTANTIATE_TEST_SUITE_P(All, LuksCorpus, testing::ValuesIn(files("luks")), test_name);

class TableCorpus : public testing::TestWithParam<std::string> {};

TEST_P(TableCorpus, BreaksNoPromise) {
  const std::string bytes = test::read_whole_file(GetParam());
  ASSERT_FALSE(bytes.empty());
  snapshot_table(std::as_bytes(std::span(bytes)));
  bitmaps(std::as_bytes(std::span(bytes)));
}

INSTANTIATE_TEST_SUITE_P(Snapshots, TableCorpus, testing::ValuesIn(files("snapshot_table")), test_name);
INSTANTIATE_TEST_SUITE_P(Bitmaps, TableCorpus, testing::ValuesIn(files("bitmaps")), test_name);

// Every document as both kinds: who says that it is the one does not make it so.
class DocumentCorpus : public testing::TestWithParam<std::string> {};

TEST_P(DocumentCorpus, BreaksNoPromise) {
  const std::string text = test::read_whole_file(GetParam());
  ASSERT_FALSE(text.empty());
  domain_xml(text);
  snapshot_xml(text);
}

INSTANTIATE_TEST_SUITE_P(Libvirt, DocumentCorpus, testing::ValuesIn(files("libvirt")), test_name);
INSTANTIATE_TEST_SUITE_P(Domains, DocumentCorpus, testing::ValuesIn(files("domain_xml")), test_name);
INSTANTIATE_TEST_SUITE_P(Snapshots, DocumentCorpus, testing::ValuesIn(files("snapshot_xml")), test_name);

class JournalCorpus : public testing::TestWithParam<std::string> {};

TEST_P(JournalCorpus, BreaksNoPromise) {
  const std::string bytes = test::read_whole_file(GetParam());
  ASSERT_FALSE(bytes.empty());
  journal(std::as_bytes(std::span(bytes)));
}

INSTANTIATE_TEST_SUITE_P(All, JournalCorpus, testing::ValuesIn(files("journal")), test_name);

}  // namespace
}  // namespace varve::fuzz
