#include "domain/xml.h"

#include <algorithm>

namespace varve::xml {

namespace {

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

bool is_line_break(const Node& node) {
  return node.kind == NodeKind::kText && is_blank(node.raw) && node.raw.find('\n') != std::string::npos;
}

std::string line_break(int indentation) {
  return "\n" + std::string(static_cast<size_t>(std::max(indentation, 0)), ' ');
}

Node text_node(std::string raw) {
  return Node{NodeKind::kText, std::move(raw), nullptr};
}

// Moves what stands after the last newline of a white-space text; a tab counts as one column.
void shift_line(std::string& raw, int spaces) {
  const size_t start = raw.rfind('\n');
  if (start == std::string::npos) return;
  if (spaces > 0) {
    raw.insert(start + 1, static_cast<size_t>(spaces), ' ');
  } else {
    raw.erase(start + 1, static_cast<size_t>(-spaces));
  }
}

// What a value reads as: white space of an attribute is one kind of blank, line ends of text are "\n".
std::string normalized(std::string_view raw, bool attribute) {
  std::string out;
  out.reserve(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    char c = raw[i];
    if (c == '\r') {
      if (i + 1 < raw.size() && raw[i + 1] == '\n') continue;
      c = '\n';
    }
    out.push_back(attribute && (c == '\n' || c == '\t') ? ' ' : c);
  }
  return out;
}

std::string_view without_quotes(std::string_view raw) {
  return raw.size() < 2 ? raw : raw.substr(1, raw.size() - 2);
}

// White space in an attribute must be written as references, or reading it back makes blanks of it.
std::string escape_attribute(std::string_view value) {
  std::string out;
  for (const char c : escape(value)) {
    if (c == '\n') {
      out += "&#10;";
    } else if (c == '\t') {
      out += "&#9;";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

}  // namespace

Element::Element(std::string name) : name_(std::move(name)) {}
Element::Element(Element&&) noexcept = default;
Element& Element::operator=(Element&&) noexcept = default;
Element::~Element() = default;

Element::Element(const Element& other)
    : name_(other.name_),
      attributes_(other.attributes_),
      tag_tail_(other.tag_tail_),
      end_tail_(other.end_tail_),
      self_closing_(other.self_closing_),
      line_(other.line_),
      indentation_(other.indentation_) {
  nodes_.reserve(other.nodes_.size());
  for (const Node& node : other.nodes_) {
    nodes_.push_back(Node{node.kind, node.raw, node.element ? std::make_unique<Element>(*node.element) : nullptr});
  }
}

Element& Element::operator=(const Element& other) {
  if (this != &other) *this = Element(other);
  return *this;
}

std::optional<std::string> Element::attribute(std::string_view name) const {
  for (const Attribute& a : attributes_) {
    if (a.name == name) return unescape(normalized(without_quotes(a.raw), true));
  }
  return std::nullopt;
}

bool Element::has_attribute(std::string_view name) const {
  return std::any_of(attributes_.begin(), attributes_.end(), [&](const Attribute& a) { return a.name == name; });
}

void Element::set_attribute(std::string_view name, std::string_view value) {
  // A new attribute is quoted as its neighbour: libvirt's own have single quotes, what it carries along has double
  // ones.
  const auto quote_of = [](const Attribute& a) { return a.raw.empty() ? '\'' : a.raw.front(); };
  const auto quoted = [&](char quote) { return quote + escape_attribute(value) + quote; };
  for (Attribute& a : attributes_) {
    if (a.name != name) continue;
    a.raw = quoted(quote_of(a));
    return;
  }
  const char quote = attributes_.empty() ? '\'' : quote_of(attributes_.back());
  attributes_.push_back(Attribute{" ", std::string(name), "=", quoted(quote)});
}

bool Element::remove_attribute(std::string_view name) {
  return std::erase_if(attributes_, [&](const Attribute& a) { return a.name == name; }) > 0;
}

const Element* Element::child(std::string_view name) const {
  for (const Node& node : nodes_) {
    if (node.element && node.element->name_ == name) return node.element.get();
  }
  return nullptr;
}

Element* Element::child(std::string_view name) {
  return const_cast<Element*>(static_cast<const Element*>(this)->child(name));
}

std::vector<const Element*> Element::children(std::string_view name) const {
  std::vector<const Element*> found;
  for (const Node& node : nodes_) {
    if (node.element && node.element->name_ == name) found.push_back(node.element.get());
  }
  return found;
}

std::vector<Element*> Element::children(std::string_view name) {
  std::vector<Element*> found;
  for (Node& node : nodes_) {
    if (node.element && node.element->name_ == name) found.push_back(node.element.get());
  }
  return found;
}

std::vector<const Element*> Element::children() const {
  std::vector<const Element*> found;
  for (const Node& node : nodes_) {
    if (node.element) found.push_back(node.element.get());
  }
  return found;
}

std::vector<Element*> Element::children() {
  std::vector<Element*> found;
  for (Node& node : nodes_) {
    if (node.element) found.push_back(node.element.get());
  }
  return found;
}

const Element* Element::find(std::string_view path) const {
  const Element* at = this;
  while (at != nullptr && !path.empty()) {
    const size_t slash = path.find('/');
    at = at->child(path.substr(0, slash));
    path = slash == std::string_view::npos ? std::string_view{} : path.substr(slash + 1);
  }
  return at;
}

Element* Element::find(std::string_view path) {
  return const_cast<Element*>(static_cast<const Element*>(this)->find(path));
}

std::string Element::text() const {
  static constexpr std::string_view kCdataStart = "<![CDATA[";
  static constexpr std::string_view kCdataEnd = "]]>";
  std::string out;
  for (const Node& node : nodes_) {
    if (node.kind == NodeKind::kText) {
      out += unescape(normalized(node.raw, false));
    } else if (node.kind == NodeKind::kOther && node.raw.starts_with(kCdataStart)) {
      std::string_view raw = node.raw;
      raw.remove_prefix(kCdataStart.size());
      raw.remove_suffix(kCdataEnd.size());
      out += normalized(raw, false);
    }
  }
  return out;
}

std::optional<std::string> Element::child_text(std::string_view path) const {
  const Element* found = find(path);
  if (found == nullptr) return std::nullopt;
  return found->text();
}

void Element::set_text(std::string_view text) {
  nodes_.clear();
  self_closing_ = true;
  if (!text.empty()) nodes_.push_back(text_node(escape(text)));
}

Element& Element::append(Element child) {
  size_t index = nodes_.size();
  if (index > 0 && is_line_break(nodes_.back())) --index;  // the line of the end tag
  return place(index, std::move(child));
}

Element& Element::prepend(Element child) {
  return place(0, std::move(child));
}

Element& Element::insert_before(const Element& sibling, Element child) {
  size_t index = index_of(sibling);
  if (index > 0 && is_line_break(nodes_[index - 1])) --index;
  return place(index, std::move(child));
}

Element& Element::insert_after(const Element& sibling, Element child) {
  return place(index_of(sibling) + 1, std::move(child));
}

size_t Element::index_of(const Element& child) const {
  const auto at = std::find_if(nodes_.begin(), nodes_.end(), [&](const Node& n) { return n.element.get() == &child; });
  CHECK(at != nodes_.end());
  return static_cast<size_t>(at - nodes_.begin());
}

// Puts a line break and the child at `index`. Where the children stand on one line, so does the new one.
Element& Element::place(size_t index, Element child) {
  const Element* sibling = nullptr;
  bool on_lines = true;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.kind == NodeKind::kText && !is_blank(node.raw)) on_lines = false;
    if (node.element && sibling == nullptr) {
      sibling = node.element.get();
      if (i == 0 || !is_line_break(nodes_[i - 1])) on_lines = false;
    }
  }
  const int indentation = sibling != nullptr ? sibling->indentation_ : indentation_ + 2;
  child.indent(indentation - child.indentation_);

  std::vector<Node> added;
  if (on_lines) added.push_back(text_node(line_break(indentation)));
  added.push_back(Node{NodeKind::kElement, {}, std::make_unique<Element>(std::move(child))});
  Element& placed = *added.back().element;
  nodes_.insert(nodes_.begin() + static_cast<std::ptrdiff_t>(index), std::make_move_iterator(added.begin()),
                std::make_move_iterator(added.end()));
  if (on_lines && !is_line_break(nodes_.back())) nodes_.push_back(text_node(line_break(indentation_)));
  return placed;
}

bool Element::remove(const Element& child) {
  const auto at = std::find_if(nodes_.begin(), nodes_.end(), [&](const Node& n) { return n.element.get() == &child; });
  if (at == nodes_.end()) return false;
  auto first = at;
  if (first != nodes_.begin() && is_line_break(*(first - 1))) --first;
  nodes_.erase(first, at + 1);
  if (nodes_.size() == 1 && is_line_break(nodes_.front())) {
    nodes_.clear();
    self_closing_ = true;
  }
  return true;
}

void Element::write(std::string& out) const {
  out += '<';
  out += name_;
  for (const Attribute& a : attributes_) {
    out += a.lead;
    out += a.name;
    out += a.equals;
    out += a.raw;
  }
  out += tag_tail_;
  if (nodes_.empty() && self_closing_) {
    out += "/>";
    return;
  }
  out += '>';
  for (const Node& node : nodes_) {
    if (node.element) {
      node.element->write(out);
    } else {
      out += node.raw;
    }
  }
  out += "</";
  out += name_;
  out += end_tail_;
  out += '>';
}

std::string Element::to_string() const {
  std::string out;
  write(out);
  return out;
}

void Element::indent(int spaces) {
  if (spaces == 0) return;
  indentation_ = std::max(0, indentation_ + spaces);
  bool structured = false;
  for (const Node& node : nodes_) {
    if (node.kind == NodeKind::kText && !is_blank(node.raw)) return;  // mixed content: every blank may say something
    if (node.kind != NodeKind::kText) structured = true;
  }
  if (!structured) return;
  for (Node& node : nodes_) {
    if (node.element) {
      node.element->indent(spaces);
    } else if (node.kind == NodeKind::kText) {
      shift_line(node.raw, spaces);
    }
  }
}

Document::Document(Element root, std::string name) : name_(std::move(name)), root_(std::move(root)) {
  root_.indent(-root_.indentation());
}

std::string Document::to_string() const {
  return prolog_ + root_.to_string() + epilog_;
}

}  // namespace varve::xml
