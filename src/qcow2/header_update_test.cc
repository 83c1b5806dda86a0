#include "qcow2/header_update.h"

#include <gtest/gtest.h>

#include "io/crash_states.h"
#include "qcow2/image.h"
#include "support/image_bytes.h"
#include "support/qcow2_scan.h"

namespace varve::qcow2 {
namespace {

struct HeaderUpdate {
  const char* name;
  std::optional<std::string> before;
  std::optional<std::string> after;
  uint64_t cluster_size = 4096;
  bool old_format = true;  // the old header names a backing format too: its extensions are as long as the new ones
};

std::ostream& operator<<(std::ostream& out, const HeaderUpdate& u) {
  return out << u.name;
}

class HeaderUpdateCrash : public testing::TestWithParam<HeaderUpdate> {};

std::string long_name(char letter) {
  return std::string(900, letter);
}

TEST_P(HeaderUpdateCrash, LeavesTheOldHeaderOrTheNewOne) {
  const HeaderUpdate& p = GetParam();
  auto memory = std::make_unique<MemoryDevice>("disk");
  CreateOptions options{.size = 1 << 20, .cluster_size = p.cluster_size, .backing_file = p.before};
  const auto old_format = p.before && p.old_format ? std::optional<std::string>("raw") : std::nullopt;
  options.backing_format = old_format;
  ASSERT_TRUE(Image::create(*memory, options));
  auto control = std::make_shared<FaultControl>();
  FaultDevice file(std::move(memory), control);
  Header header = *read_header(file);
  header.backing_file = p.after;
  header.backing_format = p.after ? std::optional<std::string>("qcow2") : std::nullopt;
  control->start_over();
  ASSERT_TRUE(replace_header(file, header));

  const Header now = *read_header(file);
  EXPECT_EQ(now.backing_file, p.after);
  EXPECT_EQ(now.backing_format, header.backing_format);
  EXPECT_EQ(now.size, header.size);
  const size_t states = for_each_crash_state(*control, {}, [&](CrashState& state) {
    SCOPED_TRACE(state.description);
    const auto found = read_header(*state.disks[0]);
    EXPECT_TRUE(found) << found.error().message;
    if (!found) return false;
    const bool is_old = found->backing_file == p.before && found->backing_format == old_format;
    const bool is_new = found->backing_file == p.after && found->backing_format == header.backing_format;
    EXPECT_TRUE(is_old || is_new) << found->backing_file.value_or("no name");
    return is_old || is_new;
  });
  EXPECT_GE(states, 2u);
}

INSTANTIATE_TEST_SUITE_P(All, HeaderUpdateCrash,
                         testing::Values(HeaderUpdate{"None", {}, {}}, HeaderUpdate{"NoneToShort", {}, "base"},
                                         HeaderUpdate{"NoneToLong", {}, long_name('n')},
                                         HeaderUpdate{"ShortToNone", "base", {}},
                                         HeaderUpdate{"LongToNone", long_name('o'), {}},
                                         HeaderUpdate{"ShortToShort", "base", "other"},
                                         HeaderUpdate{"ShortToLong", "base", long_name('n')},
                                         HeaderUpdate{"LongToShort", long_name('o'), "base"},
                                         HeaderUpdate{"LongToLong", long_name('o'), long_name('n')},
                                         HeaderUpdate{"OneSector", "base", "other", 512},
                                         HeaderUpdate{"FormatAndShort", "base", "other", 4096, false},
                                         HeaderUpdate{"FormatAndLong", "base", long_name('n'), 4096, false},
                                         HeaderUpdate{"FormatOnly", "base", "base", 4096, false}),
                         [](const auto& instance) { return std::string(instance.param.name); });

TEST(HeaderUpdate, NamesThatAlternateDoNotWander) {
  MemoryDevice file("disk");
  ASSERT_TRUE(Image::create(file, {.size = 1 << 20, .cluster_size = 4096}));
  for (int i = 0; i < 50; ++i) {
    Header header = *read_header(file);
    header.backing_file = long_name(static_cast<char>('a' + i % 26));
    const auto r = replace_header(file, header);
    ASSERT_TRUE(r) << i << ": " << r.error().message;
    EXPECT_EQ(read_header(file)->backing_file, header.backing_file);
  }
}

TEST(HeaderUpdate, KeepsFieldsAndExtensionsThatItDoesNotKnow) {
  MemoryDevice file("disk");
  ASSERT_TRUE(Image::create(file, {.size = 1 << 20, .cluster_size = 4096}));
  Header header = *read_header(file);
  header.unknown_fields.assign(16, std::byte{0x77});
  header.extensions.push_back({0x11223344, {std::byte{1}, std::byte{2}, std::byte{3}}});
  ASSERT_TRUE(replace_header(file, header));
  const Header found = *read_header(file);
  EXPECT_EQ(found.header_length, 128u);
  EXPECT_EQ(found.unknown_fields, header.unknown_fields);
  header = found;
  header.backing_file = "base";
  ASSERT_TRUE(replace_header(file, header));
  EXPECT_EQ(read_header(file)->unknown_fields, found.unknown_fields);
  EXPECT_EQ(read_header(file)->extensions.back().data.size(), 3u);
}

TEST(HeaderUpdate, RefusesWhatDoesNotFitAndChangesNothing) {
  MemoryDevice file("disk");
  ASSERT_TRUE(Image::create(file, {.size = 4096, .cluster_size = 512}));
  const auto before = test::contents(file);
  Header header = *read_header(file);
  header.backing_file = long_name('n');
  EXPECT_FALSE(replace_header(file, header));
  EXPECT_EQ(test::contents(file), before);
}

TEST(HeaderUpdate, AnOpenImageGoesOnWithTheNewHeader) {
  const auto file = std::make_shared<MemoryDevice>("disk");
  ASSERT_TRUE(Image::create(*file, {.size = 1 << 20}));
  const auto image = *Image::open(file, {.writable = true});
  ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(1000, std::byte{7})));
  ASSERT_TRUE(image->update_header([](Header& header) {
    header.backing_file = "base";
    header.backing_format = "raw";
  }));
  EXPECT_EQ(image->header().backing_file, "base");
  ASSERT_TRUE(image->write_at(500000, std::vector<std::byte>(1000, std::byte{8})));
  ASSERT_TRUE(image->flush());
  const auto again = *Image::open(file, {});
  std::byte b{};
  ASSERT_TRUE(again->read_at(999, std::span(&b, 1)));
  EXPECT_EQ(b, std::byte{7});
  ASSERT_TRUE(again->read_at(500999, std::span(&b, 1)));
  EXPECT_EQ(b, std::byte{8});
}

// What is pending may need a larger refcount table, in another place than the header that the caller knew says.
TEST(HeaderUpdate, FollowsTablesThatMoveWhileEverythingIsWritten) {
  const auto file = std::make_shared<MemoryDevice>("disk");
  ASSERT_TRUE(Image::create(*file, {.size = 16 << 20, .cluster_size = 512}));
  {
    const auto image = *Image::open(file, {.writable = true});
    const uint64_t table_before = image->header().refcount_table_offset;
    ASSERT_TRUE(image->write_at(0, std::vector<std::byte>(12 << 20, std::byte{7})));
    ASSERT_TRUE(image->update_header([](Header& header) { header.compatible_features |= kCompatLazyRefcounts; }));
    EXPECT_NE(image->header().refcount_table_offset, table_before);
    EXPECT_TRUE(image->header().lazy_refcounts());
    ASSERT_TRUE(image->write_at(12 << 20, std::vector<std::byte>(1 << 20, std::byte{8})));
  }
  const auto scan = test::scan_qcow2(test::contents(*file));
  EXPECT_TRUE(scan.clean()) << scan.describe();
}

}  // namespace
}  // namespace varve::qcow2
