#include "domain/xml.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

namespace varve::xml {
namespace {

using ::testing::HasSubstr;

std::string read_all(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

Document parsed(const std::string& text) {
  auto document = Document::parse(text, "test.xml");
  EXPECT_TRUE(document) << document.error().message;
  return document ? *document : Document(Element("failed"));
}

TEST(Xml, WhatLibvirtWroteComesBackByteForByte) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(VARVE_CORPUS_DIR "/libvirt")) {
    const std::string text = read_all(entry.path());
    ASSERT_FALSE(text.empty()) << entry.path();
    EXPECT_EQ(parsed(text).to_string(), text) << entry.path();
    ++files;
  }
  EXPECT_GE(files, 9U);
}

TEST(Xml, WhatAHandWroteComesBackByteForByte) {
  const std::string text =
      "<?xml version=\"1.0\"?>\r\n<!-- mine -->\n<?keep this?>\n"
      "<a  one = \"1'\"\n\ttwo='&#x41;&quot;'  ><b ></b ><c/>\n text &amp; <![CDATA[<raw>&amp;]]><!-- - "
      "-->\t</a\n>\n\n<!-- end -->";
  EXPECT_EQ(parsed(text).to_string(), text);
}

TEST(Xml, ACommentMayBeginWithWhatLooksLikeItsEnd) {
  for (const char* text : {"<!-->a--><b/>", "<b><!-->--></b>", "<b><!--->c--></b>"}) {
    const auto document = Document::parse(text, "test");
    ASSERT_TRUE(document) << text;
    EXPECT_EQ(document->to_string(), text);
  }
}

TEST(Xml, ValuesAreDecoded) {
  const Document document =
      parsed("<a x='&lt;&#65;&#x1F600;\n\t&apos;\"' y=\"'\">one&#10;two\r\nthree<!-- no --><![CDATA[<&amp;>]]></a>");
  EXPECT_EQ(document.root().attribute("x"), "<A\xF0\x9F\x98\x80  '\"");
  EXPECT_EQ(document.root().attribute("y"), "'");
  EXPECT_EQ(document.root().attribute("z"), std::nullopt);
  EXPECT_EQ(document.root().text(), "one\ntwo\nthree<&amp;>");
}

TEST(Xml, ValuesAreEscapedAsLibvirtDoes) {
  Element element("name");
  element.set_text("my vm's \"\xC3\xBC\" & <co>\x01");
  EXPECT_EQ(element.to_string(), "<name>my vm&apos;s &quot;\xC3\xBC&quot; &amp; &lt;co&gt;</name>");
}

TEST(Xml, AttributesSurviveBeingWrittenAndReadAgain) {
  const std::string value = "a\nb\tc\rd 'e' \"f\" <g> & h";
  Element element("a");
  element.set_attribute("x", value);
  EXPECT_EQ(parsed(element.to_string()).root().attribute("x"), value);
}

TEST(Xml, AChangeTouchesNothingElse) {
  Document document = parsed("<a>\n  <b  x=\"1\"   y='2'/>\n\t<c>old</c> <!-- stays -->\n</a>\n");
  document.root().child("b")->set_attribute("x", "new");
  document.root().child("b")->set_attribute("z", "3");
  document.root().child("c")->set_text("new");
  EXPECT_EQ(document.to_string(), "<a>\n  <b  x=\"new\"   y='2' z='3'/>\n\t<c>new</c> <!-- stays -->\n</a>\n");
}

TEST(Xml, NewElementsAreIndentedLikeTheirSiblings) {
  Document document = parsed("<a>\n    <b/>\n    <d/>\n</a>\n");
  Element& root = document.root();
  root.insert_before(*root.child("d"), Element("c")).append(Element("inner"));
  root.append(Element("e"));
  root.prepend(Element("first"));
  root.insert_after(*root.child("b"), Element("b2"));
  EXPECT_EQ(document.to_string(),
            "<a>\n    <first/>\n    <b/>\n    <b2/>\n    <c>\n      <inner/>\n    </c>\n    <d/>\n    <e/>\n</a>\n");
}

TEST(Xml, ChildrenOnOneLineStayOnOneLine) {
  Document document = parsed("<a><b/></a>");
  document.root().append(Element("c"));
  EXPECT_EQ(document.to_string(), "<a><b/><c/></a>");
}

TEST(Xml, RemovingTakesTheLineAlong) {
  Document document = parsed("<a>\n  <b/>\n  <c>\n    <d/>\n  </c>\n</a>\n");
  Element& root = document.root();
  EXPECT_TRUE(root.remove(*root.child("b")));
  EXPECT_EQ(document.to_string(), "<a>\n  <c>\n    <d/>\n  </c>\n</a>\n");
  EXPECT_TRUE(root.child("c")->remove(*root.find("c/d")));
  EXPECT_EQ(document.to_string(), "<a>\n  <c/>\n</a>\n");
  const Element stranger("x");
  EXPECT_FALSE(root.remove(stranger));
}

TEST(Xml, IndentingMovesLinesAndLeavesTextAlone) {
  Document document =
      parsed("<a>\n  <b>\n    <c/>\n  </b>\n  <text>one\n  two</text>\n  <mixed>x\n  <y/></mixed>\n</a>\n");
  document.root().indent(2);
  EXPECT_EQ(document.root().to_string(),
            "<a>\n    <b>\n      <c/>\n    </b>\n    <text>one\n  two</text>\n    <mixed>x\n  <y/></mixed>\n  </a>");
  document.root().indent(-2);
  EXPECT_EQ(document.root().to_string(),
            "<a>\n  <b>\n    <c/>\n  </b>\n  <text>one\n  two</text>\n  <mixed>x\n  <y/></mixed>\n</a>");
}

TEST(Xml, ACopyIsAnotherTree) {
  Document document = parsed("<a><b x='1'/></a>");
  Element copy = document.root();
  copy.child("b")->set_attribute("x", "2");
  EXPECT_EQ(document.to_string(), "<a><b x='1'/></a>");
  EXPECT_EQ(copy.to_string(), "<a><b x='2'/></a>");
}

TEST(Xml, ElementsKnowTheirLine) {
  const Document document = parsed("<!-- one\ntwo -->\n<a\n x='1'>\n<b/>text\n<c/></a>");
  EXPECT_EQ(document.root().line(), 3);
  EXPECT_EQ(document.root().child("b")->line(), 5);
  EXPECT_EQ(document.root().child("c")->line(), 6);
}

struct BadDocument {
  const char* what;
  std::string text;
  ErrorKind kind;
  const char* says;
};

class XmlRefuses : public ::testing::TestWithParam<BadDocument> {};

TEST_P(XmlRefuses, WithAReason) {
  const auto document = Document::parse(GetParam().text, "dir/bad.xml");
  ASSERT_FALSE(document);
  EXPECT_EQ(document.error().kind, GetParam().kind) << document.error().message;
  EXPECT_THAT(document.error().message, HasSubstr("dir/bad.xml"));
  EXPECT_THAT(document.error().message, HasSubstr(GetParam().says));
  EXPECT_EQ(document.error().path, "dir/bad.xml");
}

std::string nested(int depth) {
  std::string text;
  for (int i = 0; i < depth; ++i) text += "<a>";
  for (int i = 0; i < depth; ++i) text += "</a>";
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    Documents, XmlRefuses,
    ::testing::Values(
        BadDocument{"Empty", "", ErrorKind::kCorrupt, "empty"},
        BadDocument{"Text", "hello", ErrorKind::kCorrupt, "line 1"},
        BadDocument{"OpenTag", "<a>\n<b>\n</a>", ErrorKind::kCorrupt, "line 3"},
        BadDocument{"Truncated", "<a>\n<b/>\n", ErrorKind::kCorrupt, "not well-formed"},
        BadDocument{"TwoRoots", "<a/><b/>", ErrorKind::kCorrupt, "not well-formed"},
        BadDocument{"DoubleAttribute", "<a x='1' x='2'/>", ErrorKind::kCorrupt, "x"},
        BadDocument{"UnknownEntity", "<a>&nbsp;</a>", ErrorKind::kCorrupt, "nbsp"},
        BadDocument{"ControlCharacter", "<a>\x01</a>", ErrorKind::kCorrupt, "not well-formed"},
        BadDocument{"NotUtf8", "<a>\xFF\xC0</a>", ErrorKind::kCorrupt, "not well-formed"},
        BadDocument{"Nul", std::string("<a/>\0<b/>", 9), ErrorKind::kCorrupt, "not well-formed"},
        BadDocument{
            "Billion",
            "<?xml version='1.0'?>\n<!DOCTYPE lolz [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b "
            "'&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;'>]><domain>&c;</domain>",
            ErrorKind::kRefused, "DOCTYPE"},
        BadDocument{"ExternalEntity",
                    "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>",
                    ErrorKind::kRefused, "DOCTYPE"},
        BadDocument{"ExternalDtd", "<!DOCTYPE d SYSTEM 'http://192.0.2.1/x.dtd'><domain/>", ErrorKind::kRefused,
                    "DOCTYPE"},
        BadDocument{"Depth", nested(kMaxDepth + 1), ErrorKind::kRefused, "nested deeper"},
        BadDocument{"VeryDeep", nested(100000), ErrorKind::kRefused, "nested deeper"},
        BadDocument{"Size", "<a>" + std::string(kMaxDocumentSize, ' ') + "</a>", ErrorKind::kRefused, "16 MiB"}),
    [](const auto& test) { return std::string(test.param.what); });

// libxml2 and the cutter must agree about what a document is: whatever the one lets through, the other brings back.
TEST(Xml, DamagedDocumentsAreRefusedOrComeBackByteForByte) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::vector<std::string> originals = {
      "<?xml version='1.0'?><!--a--><a b='1' c=\"2\"><![CDATA[x]]><?p i?>&lt;&#65;<d/></a >\n<!--e-->"};
  for (const auto& entry : std::filesystem::directory_iterator(VARVE_CORPUS_DIR "/libvirt")) {
    originals.push_back(read_all(entry.path()));
  }
  static constexpr std::string_view kPieces[] = {
      "<",    ">", "/",         "\"",  "'",  "=",  "&", "&amp;", "<!--", "-->", "<?", "?>",           "<a>",
      "</a>", " ", "<![CDATA[", "]]>", "\n", "--", ":", "\x01",  "\xC3", "<!",  "]",  "\xEF\xBB\xBF", "\r"};
  size_t survived = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string text = originals[i % 2 == 0 ? 0 : random() % originals.size()];
    for (auto n = 1 + random() % 3; n > 0; --n) {
      const size_t at = random() % (text.size() + 1);
      const std::string_view piece = kPieces[random() % std::size(kPieces)];
      switch (random() % 3) {
        case 0:
          text.insert(at, piece);
          break;
        case 1:
          text.erase(at, random() % 8);
          break;
        default:
          text.replace(at, std::min(piece.size(), text.size() - at), piece);
      }
    }
    const auto document = Document::parse(text, "damaged");
    if (document) {
      ++survived;
      ASSERT_EQ(document->to_string(), text);
    } else {
      ASSERT_NE(document.error().kind, ErrorKind::kInternal) << document.error().message << "\n" << text;
    }
  }
  EXPECT_GT(survived, 100U);
}

TEST(Xml, DepthUpToTheLimitIsRead) {
  EXPECT_EQ(parsed(nested(kMaxDepth)).to_string(), nested(kMaxDepth));
}

TEST(Xml, ALargeLineIsReadInLinearTime) {
  std::string text = "<a>";
  while (text.size() < (size_t{4} << 20)) text += "<b/>";
  text += "</a>";
  EXPECT_EQ(parsed(text).to_string().size(), text.size());
}

TEST(Xml, OtherEncodingsBecomeUtf8) {
  const Document latin = parsed("<?xml version='1.0' encoding='ISO-8859-1'?>\n<a>\xFC</a>\n");
  EXPECT_EQ(latin.root().text(), "\xC3\xBC");
  EXPECT_THAT(latin.to_string(), HasSubstr("UTF-8"));
  std::string utf16 = "\xFF\xFE";
  for (const char c : std::string("<a>x</a>")) {
    utf16 += c;
    utf16 += '\0';
  }
  EXPECT_EQ(parsed(utf16).root().text(), "x");
}

TEST(Xml, ADoctypeInAnotherEncodingIsRefusedToo) {
  std::string utf16 = "\xFF\xFE";
  for (const char c : std::string("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>")) {
    utf16 += c;
    utf16 += '\0';
  }
  const auto document = Document::parse(utf16, "x");
  ASSERT_FALSE(document);
  EXPECT_EQ(document.error().kind, ErrorKind::kRefused);
}

TEST(Xml, LoadingNamesTheFile) {
  const auto missing = Document::load("/nonexistent/x.xml");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr("/nonexistent/x.xml"));
  const auto directory = Document::load("/tmp");
  ASSERT_FALSE(directory);
  EXPECT_THAT(directory.error().message, HasSubstr("not a regular file"));
}

TEST(Xml, LoadingAFifoDoesNotHang) {
  const std::string path = testing::TempDir() + "/varve_xml_test_fifo." + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const auto document = Document::load(path);
  ::unlink(path.c_str());
  ASSERT_FALSE(document);
  EXPECT_THAT(document.error().message, HasSubstr("not a regular file"));
}

TEST(Xml, TheCommentOfLibvirtIsReplacedInPlace) {
  const std::string old = libvirt_prolog("edit old");
  EXPECT_EQ(with_libvirt_prolog(old, "edit new"), libvirt_prolog("edit new"));
  EXPECT_EQ(with_libvirt_prolog(old, "edit old"), old);
  EXPECT_EQ(with_libvirt_prolog("", "edit x"), libvirt_prolog("edit x"));
  EXPECT_EQ(with_libvirt_prolog("<?xml version='1.0'?>\n<!-- mine -->\n", "edit x"),
            "<?xml version='1.0'?>\n" + libvirt_prolog("edit x") + "<!-- mine -->\n");
  EXPECT_EQ(with_libvirt_prolog("<!-- a -->\n" + old + "<!-- b -->\n", "edit x"),
            "<!-- a -->\n" + libvirt_prolog("edit x") + "<!-- b -->\n");
}

TEST(Xml, AByteOrderMarkStaysFirst) {
  EXPECT_EQ(with_libvirt_prolog("\xEF\xBB\xBF", "edit x"), "\xEF\xBB\xBF" + libvirt_prolog("edit x"));
  EXPECT_EQ(with_libvirt_prolog("\xEF\xBB\xBF<?xml version='1.0'?>\n", "edit x"),
            "\xEF\xBB\xBF<?xml version='1.0'?>\n" + libvirt_prolog("edit x"));
}

TEST(Xml, NothingIsPrintedAboutABadEncoding) {
  testing::internal::CaptureStderr();
  EXPECT_FALSE(Document::parse("<?xml version='1.0' encoding='ISO-2022-JP'?><a>\x80\xFF</a>", "x.xml"));
  EXPECT_FALSE(Document::parse(std::string_view("\0\0\0<\0\0\0a\xFF\xFF\xFF\xFF", 12), "x.xml"));
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace varve::xml
