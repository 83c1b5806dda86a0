// From text to tree, in two steps. libxml2 reads the text first and throws away what it builds: it decides whether this
// is well-formed XML that we want to look at. Only then is the tree cut from the bytes, by a cutter that can be
// simple because there are no document types, no entities of their own and no errors left.
#include <fmt/format.h>

#include <algorithm>

#include "base/atomic_file.h"
#include "domain/xml.h"
#include "domain/xml_library.h"

namespace varve::xml {

namespace {

struct Verdict {
  bool doctype = false;
  int depth = 0;
  bool too_deep = false;
  int line = 0;
  std::string message;
};

Verdict& verdict_of(void* context) {
  return *static_cast<Verdict*>(static_cast<xmlParserCtxt*>(context)->_private);
}

void on_doctype(void* context, const xmlChar*, const xmlChar*, const xmlChar*) {
  verdict_of(context).doctype = true;
  library().xmlStopParser(static_cast<xmlParserCtxt*>(context));
}

void on_start(void* context, const xmlChar*, const xmlChar*, const xmlChar*, int, const xmlChar**, int, int,
              const xmlChar**) {
  Verdict& verdict = verdict_of(context);
  if (++verdict.depth <= kMaxDepth) return;
  verdict.too_deep = true;
  library().xmlStopParser(static_cast<xmlParserCtxt*>(context));
}

void on_end(void* context, const xmlChar*, const xmlChar*, const xmlChar*) {
  --verdict_of(context).depth;
}

void on_error(void* context, const xmlError& error) {
  Verdict& verdict = verdict_of(context);
  // A prefix that nobody declared is for the reader of the element to judge, as in libvirt.
  if (error.domain == XML_FROM_NAMESPACE || error.level < XML_ERR_ERROR || !verdict.message.empty()) return;
  verdict.line = error.line;
  verdict.message = error.message == nullptr ? "unknown error" : error.message;
  while (!verdict.message.empty() && verdict.message.back() == '\n') verdict.message.pop_back();
}

// libxml2's character decoders do not know of a parser's handlers: what they complain of they print, unless the thread
// has a handler of its own.
class QuietDecoders {
 public:
  QuietDecoders() : handler_(*library().__xmlStructuredError()), context_(*library().__xmlStructuredErrorContext()) {
    library().xmlSetStructuredErrorFunc(nullptr, [](void*, auto*) {});
  }
  QuietDecoders(const QuietDecoders&) = delete;
  QuietDecoders& operator=(const QuietDecoders&) = delete;
  ~QuietDecoders() { library().xmlSetStructuredErrorFunc(context_, handler_); }

 private:
  xmlStructuredErrorFunc handler_;
  void* context_;
};

struct FreeParser {
  void operator()(xmlParserCtxt* parser) const {
    if (parser->myDoc != nullptr) library().xmlFreeDoc(parser->myDoc);
    library().xmlFreeParserCtxt(parser);
  }
};

Error bad_document(ErrorKind kind, const std::string& name, int line, const std::string& why) {
  Error error = make_error(kind, line > 0 ? fmt::format("{}, line {}: {}", name, line, why) : name + ": " + why);
  error.path = name;
  return error;
}

Error too_large(const std::string& name) {
  return bad_document(ErrorKind::kRefused, name, 0,
                      fmt::format("the document is larger than {} MiB", kMaxDocumentSize >> 20));
}

Error out_of_memory(const std::string& name) {
  return bad_document(ErrorKind::kInternal, name, 0, "the XML parser cannot be set up: out of memory");
}

Result<void> judge(std::string_view text, const std::string& name) {
  TRY(load_library());
  const QuietDecoders quiet;
  Verdict verdict;
  xmlSAXHandler handler{};
  handler.initialized = XML_SAX2_MAGIC;
  handler.internalSubset = on_doctype;
  handler.startElementNs = on_start;
  handler.endElementNs = on_end;
  handler.serror = [](void* context, auto* error) { on_error(context, *error); };  // const from libxml2 2.12 on
  const std::unique_ptr<xmlParserCtxt, FreeParser> parser(
      library().xmlCreateMemoryParserCtxt(text.data(), static_cast<int>(text.size())));
  if (!parser) return out_of_memory(name);
  *parser->sax = handler;
  parser->userData = parser.get();
  parser->_private = &verdict;
  library().xmlCtxtUseOptions(parser.get(), XML_PARSE_NONET);
  library().xmlParseDocument(parser.get());

  if (verdict.doctype) {
    return bad_document(ErrorKind::kRefused, name, 0,
                        "the document has a DOCTYPE, and with it perhaps entities that grow without end")
        .with_note("libvirt's documents have none: remove the <!DOCTYPE …> and what is in it");
  }
  if (verdict.too_deep) {
    return bad_document(ErrorKind::kRefused, name, 0, fmt::format("elements are nested deeper than {}", kMaxDepth));
  }
  if (!verdict.message.empty()) {
    return bad_document(ErrorKind::kCorrupt, name, verdict.line, "not well-formed XML: " + verdict.message);
  }
  if (parser->wellFormed == 0) return bad_document(ErrorKind::kCorrupt, name, 0, "not well-formed XML");
  return {};
}

// The encoding that an XML declaration names; empty: none.
std::string_view declared_encoding(std::string_view text) {
  if (!text.starts_with("<?xml")) return {};
  const std::string_view declaration = text.substr(0, text.find("?>"));
  const size_t key = declaration.find("encoding");
  if (key == std::string_view::npos) return {};
  const size_t open = declaration.find_first_of("'\"", key);
  if (open == std::string_view::npos) return {};
  const size_t close = declaration.find(declaration[open], open + 1);
  if (close == std::string_view::npos) return {};
  return declaration.substr(open + 1, close - open - 1);
}

bool is_foreign_encoding(std::string_view text) {
  if (text.starts_with("\xFE\xFF") || text.starts_with("\xFF\xFE")) return true;
  if (text.substr(0, 4).find('\0') != std::string_view::npos) return true;  // UTF-16 or UTF-32 without a mark
  if (text.starts_with("\x4C\x6F\xA7\x94")) return true;                    // EBCDIC
  std::string encoding(declared_encoding(text));
  std::transform(encoding.begin(), encoding.end(), encoding.begin(),
                 [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; });
  return !encoding.empty() && encoding != "UTF-8" && encoding != "UTF8" && encoding != "US-ASCII" &&
         encoding != "ASCII";
}

Result<std::string> to_utf8(std::string_view text, const std::string& name) {
  const QuietDecoders quiet;
  xmlDoc* document = library().xmlReadMemory(text.data(), static_cast<int>(text.size()), name.c_str(), nullptr,
                                             XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
  if (document == nullptr) return bad_document(ErrorKind::kCorrupt, name, 0, "not well-formed XML");
  xmlChar* out = nullptr;
  int size = 0;
  library().xmlDocDumpMemoryEnc(document, &out, &size, "UTF-8");
  library().xmlFreeDoc(document);
  if (out == nullptr) return out_of_memory(name);
  std::string converted(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
  (*library().xmlFree)(out);
  return converted;
}

}  // namespace

// Cuts the tree from text that judge() found well-formed. What it cannot cut although it should be able to is an error
// of ours and said so; it never reads beyond the text.
class Cutter {
 public:
  Cutter(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Result<void> cut(std::string& prolog, Element& root, std::string& epilog) {
    // Before the root: declaration, comments, processing instructions, white space.
    while (at_ < text_.size()) {
      if (text_[at_] != '<') {
        ++at_;
      } else if (looking_at("<!--")) {
        TRY(skip_past("<!--", "-->"));
      } else if (looking_at("<?")) {
        TRY(skip_past("<?", "?>"));
      } else {
        break;
      }
    }
    prolog = text_.substr(0, at_);
    count_lines(prolog);
    TRY(cut_element(root, 0, 0));
    epilog = text_.substr(at_);
    return {};
  }

 private:
  bool looking_at(std::string_view what) const { return text_.substr(at_).starts_with(what); }

  Error lost() const {
    return bad_document(ErrorKind::kInternal, name_, line_, "the XML cannot be read although it is well-formed");
  }

  void count_lines(std::string_view part) { line_ += static_cast<int>(std::count(part.begin(), part.end(), '\n')); }

  // `start` is what we are looking at, and no part of the end: <!-->--> is a comment.
  Result<std::string_view> skip_past(std::string_view start, std::string_view end) {
    const size_t found = text_.find(end, at_ + start.size());
    if (found == std::string_view::npos) return lost();
    const std::string_view part = text_.substr(at_, found + end.size() - at_);
    at_ += part.size();
    return part;
  }

  // find_first_of() and its kin call memchr for every character; these are what a document consists of.
  template <typename Predicate>
  std::string_view take_while(Predicate belongs) {
    size_t end = at_;
    while (end < text_.size() && belongs(text_[end])) ++end;
    const std::string_view part = text_.substr(at_, end - at_);
    at_ = end;
    return part;
  }
  static bool is_white(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
  std::string_view take_white() { return take_while(is_white); }
  std::string_view take_name() {
    return take_while(
        [](char c) { return !is_white(c) && c != '=' && c != '/' && c != '>' && c != '<' && c != '\'' && c != '"'; });
  }

  // The blanks between the start of the line and here; nothing if something else stands there too.
  std::optional<int> columns_before() const {
    size_t start = at_;
    while (start > 0 && (text_[start - 1] == ' ' || text_[start - 1] == '\t')) --start;
    if (start > 0 && text_[start - 1] != '\n') return std::nullopt;
    return static_cast<int>(at_ - start);
  }

  Result<void> cut_element(Element& element, int depth, int parent_indentation) {
    if (depth > kMaxDepth || !looking_at("<")) return lost();
    element.line_ = line_;
    element.indentation_ = columns_before().value_or(parent_indentation);
    ++at_;
    element.name_ = take_name();
    if (element.name_.empty()) return lost();
    while (true) {
      const std::string_view white = take_white();
      count_lines(white);
      if (looking_at("/>")) {
        element.tag_tail_ = white;
        at_ += 2;
        return {};
      }
      if (looking_at(">")) {
        element.tag_tail_ = white;
        ++at_;
        break;
      }
      TRY(cut_attribute(element, white));
    }
    element.self_closing_ = false;
    return cut_content(element, depth);
  }

  Result<void> cut_attribute(Element& element, std::string_view white) {
    Attribute attribute;
    attribute.lead = white;
    attribute.name = take_name();
    attribute.equals = take_while([](char c) { return is_white(c) || c == '='; });
    if (attribute.name.empty() || at_ >= text_.size()) return lost();
    const char quote = text_[at_];
    const size_t end = text_.find(quote, at_ + 1);
    if ((quote != '\'' && quote != '"') || end == std::string_view::npos) return lost();
    attribute.raw = text_.substr(at_, end + 1 - at_);
    at_ = end + 1;
    count_lines(attribute.equals);
    count_lines(attribute.raw);
    element.attributes_.push_back(std::move(attribute));
    return {};
  }

  Result<void> cut_content(Element& element, int depth) {
    while (true) {
      if (at_ >= text_.size()) return lost();
      if (text_[at_] != '<') {
        const size_t end = std::min(text_.find('<', at_), text_.size());
        add(element, NodeKind::kText, text_.substr(at_, end - at_));
        at_ = end;
      } else if (looking_at("</")) {
        at_ += 2;
        if (take_name() != element.name_) return lost();
        element.end_tail_ = take_white();
        count_lines(element.end_tail_);
        if (!looking_at(">")) return lost();
        ++at_;
        return {};
      } else if (looking_at("<!--")) {
        add(element, NodeKind::kComment, TRY(skip_past("<!--", "-->")));
      } else if (looking_at("<![CDATA[")) {
        add(element, NodeKind::kOther, TRY(skip_past("<![CDATA[", "]]>")));
      } else if (looking_at("<?")) {
        add(element, NodeKind::kOther, TRY(skip_past("<?", "?>")));
      } else {
        element.nodes_.push_back(Node{NodeKind::kElement, {}, std::make_unique<Element>()});
        TRY(cut_element(*element.nodes_.back().element, depth + 1, element.indentation_));
      }
    }
  }

  void add(Element& element, NodeKind kind, std::string_view raw) {
    count_lines(raw);
    element.nodes_.push_back(Node{kind, std::string(raw), nullptr});
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
};

Result<Document> Document::parse(std::string_view text, const std::string& name) {
  if (text.size() > kMaxDocumentSize) return too_large(name);
  if (text.empty()) return bad_document(ErrorKind::kCorrupt, name, 0, "the document is empty");
  TRY(judge(text, name));
  std::string converted;
  if (is_foreign_encoding(text)) {
    converted = TRY(to_utf8(text, name));
    text = converted;
    TRY(judge(text, name));
  }
  // libxml2 takes a NUL for the end of its input; whatever follows one would go unread.
  if (text.find('\0') != std::string_view::npos || !is_utf8(text)) {
    return bad_document(ErrorKind::kCorrupt, name, 0, "not well-formed XML: the text is not UTF-8");
  }
  Document document;
  document.name_ = name;
  TRY(Cutter(text, name).cut(document.prolog_, document.root_, document.epilog_));
  return document;
}

Result<Document> Document::load(const std::string& path) {
  const std::string text = TRY(read_file(path, kMaxDocumentSize));
  return parse(text, path);
}

}  // namespace varve::xml
