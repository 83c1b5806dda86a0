// XML documents that come back as they went in. libxml2 judges a text (well-formed, no DTD, no network, no entity
// bombs); the tree here is cut from the very bytes that it judged and remembers every one of them: quotes, escapes,
// comments, white space, elements that nobody knows. A document that is written again without a change gives the same
// bytes; a change re-writes the attribute, text or element that it touches, in libvirt's style (single quotes,
// 2-space indentation, & < > ' " escaped), and nothing else.
//
// Text is UTF-8 throughout; a document that declares another encoding is converted when it is read. Values are plain
// data: copying an Element copies everything below it. Not synchronised.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace varve::xml {

inline constexpr size_t kMaxDocumentSize = size_t{16} << 20;
inline constexpr int kMaxDepth = 200;

struct Attribute {
  std::string lead;    // what stands before the name: white space
  std::string name;    // as written, with its prefix
  std::string equals;  // "=", perhaps with white space around it
  std::string raw;     // the value as written, quotes included
};

struct Node;

// One element and everything in it. Names are as written ("qemu:arg"); values are decoded on the way out and escaped on
// the way in.
class Element {
 public:
  explicit Element(std::string name = {});
  Element(const Element& other);
  Element(Element&&) noexcept;
  Element& operator=(const Element& other);
  Element& operator=(Element&&) noexcept;
  ~Element();

  const std::string& name() const { return name_; }
  void set_name(std::string name) { name_ = std::move(name); }
  int line() const { return line_; }                // in the text it was read from; 0 for a new element
  int indentation() const { return indentation_; }  // columns before its start tag

  std::optional<std::string> attribute(std::string_view name) const;
  bool has_attribute(std::string_view name) const;
  const std::vector<Attribute>& attributes() const { return attributes_; }
  void set_attribute(std::string_view name, std::string_view value);  // in place, or at the end
  bool remove_attribute(std::string_view name);                       // false: there was none

  // Child elements: the first of that name (nullptr: none), all of that name, all.
  const Element* child(std::string_view name) const;
  Element* child(std::string_view name);
  std::vector<const Element*> children(std::string_view name) const;
  std::vector<Element*> children(std::string_view name);
  std::vector<const Element*> children() const;
  std::vector<Element*> children();
  // The first element on a path of names: "os/type".
  const Element* find(std::string_view path) const;
  Element* find(std::string_view path);

  // The text directly inside, decoded, comments left out.
  std::string text() const;
  // The text of a child, or nothing if there is no such child.
  std::optional<std::string> child_text(std::string_view path) const;
  void set_text(std::string_view text);  // replaces everything inside

  // New children, indented like their siblings (two spaces more than this element if it has none yet).
  // References to children stay valid while their siblings come and go.
  Element& append(Element child);
  Element& insert_before(const Element& sibling, Element child);
  Element& insert_after(const Element& sibling, Element child);
  Element& prepend(Element child);
  bool remove(const Element& child);  // with its line; false: not a child of this element

  // The bytes of the element, from "<name" to ">".
  std::string to_string() const;
  // The same element as it stands `spaces` further right (negative: left): white space between elements changes,
  // text that says something does not.
  void indent(int spaces);

  const std::vector<Node>& nodes() const { return nodes_; }

 private:
  friend class Cutter;
  void write(std::string& out) const;
  Element& place(size_t index, Element child);
  size_t index_of(const Element& child) const;

  std::string name_;
  std::vector<Attribute> attributes_;
  std::string tag_tail_;      // white space before the end of the start tag
  std::string end_tail_;      // white space inside the end tag
  bool self_closing_ = true;  // how an element with nothing in it is written
  std::vector<Node> nodes_;
  int line_ = 0;
  int indentation_ = 0;  // columns before the start tag on its line
};

enum class NodeKind : uint8_t { kElement, kText, kComment, kOther /* CDATA, processing instruction */ };

struct Node {
  NodeKind kind = NodeKind::kText;
  std::string raw;                   // everything but elements: the exact bytes, delimiters included
  std::unique_ptr<Element> element;  // kElement only
};

class Document {
 public:
  // `name` is what messages call the document, usually its path. Errors (kCorrupt) carry it and "line N" of the first
  // problem; a DOCTYPE is refused (kRefused) whatever is in it; so is a document beyond kMaxDocumentSize or kMaxDepth.
  static Result<Document> parse(std::string_view text, const std::string& name);
  static Result<Document> load(const std::string& path);
  explicit Document(Element root, std::string name = {});

  const std::string& name() const { return name_; }
  const Element& root() const { return root_; }
  Element& root() { return root_; }

  // What stands before the root element: XML declaration, comments, white space, as written.
  const std::string& prolog() const { return prolog_; }
  void set_prolog(std::string prolog) { prolog_ = std::move(prolog); }

  // The whole text; ends with a newline unless the text it was read from did not.
  std::string to_string() const;

 private:
  Document() = default;
  std::string name_;
  std::string prolog_;
  Element root_;
  std::string epilog_ = "\n";
};

// libvirt's escaping, for text and attribute values alike; characters that XML 1.0 cannot hold are left out.
std::string escape(std::string_view text);
// Character references and the five predefined entities.
std::string unescape(std::string_view raw);

// The comment (and the empty line after it) that libvirt puts at the head of its files: `command` is what follows
// "virsh " in it, e.g. "edit centos7" or "snapshot-edit".
std::string libvirt_prolog(std::string_view command);

// A prolog with that comment in it: in the place of the one that is there, else after the XML declaration, if any.
std::string with_libvirt_prolog(std::string_view prolog, std::string_view command);

bool is_utf8(std::string_view text);

}  // namespace varve::xml
