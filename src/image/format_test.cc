#include "image/format.h"

#include <gtest/gtest.h>

#include "io/memory_device.h"

namespace varve::image {
namespace {

Result<Format> probe(std::string_view contents) {
  MemoryDevice device("disk", 0);
  if (!contents.empty()) CHECK(device.write_at(0, std::as_bytes(std::span(contents))));
  return probe_format(device);
}

TEST(ProbeFormat, KnowsQcow2ByMagicAndVersion) {
  EXPECT_EQ(*probe(std::string_view("QFI\xfb\0\0\0\x02", 8)), Format::kQcow2);
  EXPECT_EQ(*probe(std::string_view("QFI\xfb\0\0\0\x03", 8)), Format::kQcow2);
  EXPECT_EQ(*probe(std::string_view("QFI\xfb\0\0\0\x63", 8)), Format::kQcow2);  // too new: opening it says so
}

TEST(ProbeFormat, KnowsLuksOfVersion1) {
  EXPECT_EQ(*probe(std::string_view("LUKS\xba\xbe\0\1", 8)), Format::kLuks);
  EXPECT_EQ(*probe(std::string_view("LUKS\xba\xbe\0\2", 8)), Format::kRaw);  // as with QEMU
}

TEST(ProbeFormat, TakesEverythingElseForRaw) {
  EXPECT_EQ(*probe(""), Format::kRaw);
  EXPECT_EQ(*probe("QFI"), Format::kRaw);
  EXPECT_EQ(*probe(std::string(4096, '\0')), Format::kRaw);
}

TEST(ProbeFormat, DoesNotTakeForeignFormatsForRaw) {
  for (const std::string_view magic :
       {std::string_view("KDMV"), std::string_view("vhdxfile"), std::string_view("QED\0", 4), std::string_view("COWD"),
        std::string_view("conectix"), std::string_view("QFI\xfb\0\0\0\x01", 8)}) {
    const Result<Format> format = probe(magic);
    ASSERT_FALSE(format) << magic;
    EXPECT_EQ(format.error().kind, ErrorKind::kUnsupported);
    EXPECT_NE(format.error().message.find("'disk' looks like a"), std::string::npos) << format.error().message;
  }
}

TEST(FormatNames, AreThoseOfQemu) {
  EXPECT_EQ(format_of_name("raw"), Format::kRaw);
  EXPECT_EQ(format_of_name("qcow2"), Format::kQcow2);
  EXPECT_EQ(format_of_name("luks"), Format::kLuks);
  EXPECT_STREQ(name_of(Format::kLuks), "luks");
  EXPECT_EQ(format_of_name("qcow"), std::nullopt);
  EXPECT_EQ(format_of_name(""), std::nullopt);
  EXPECT_STREQ(name_of(Format::kQcow2), "qcow2");
}

}  // namespace
}  // namespace varve::image
