// The characters of XML text: escapes as libvirt writes them, references as XML defines them, UTF-8.
#include <array>
#include <charconv>
#include <cstdint>

#include "domain/xml.h"

namespace varve::xml {

namespace {

void append_utf8(std::string& out, uint32_t code) {
  const auto byte = [&](uint32_t value) { out.push_back(static_cast<char>(value)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6);
    byte(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12);
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  } else {
    byte(0xF0 | code >> 18);
    byte(0x80 | (code >> 12 & 0x3F));
    byte(0x80 | (code >> 6 & 0x3F));
    byte(0x80 | (code & 0x3F));
  }
}

// The text of one reference, without "&" and ";". False: not one that a document without a DTD can have.
bool append_reference(std::string& out, std::string_view name) {
  static constexpr std::array<std::pair<std::string_view, char>, 5> kPredefined = {
      {{"lt", '<'}, {"gt", '>'}, {"amp", '&'}, {"quot", '"'}, {"apos", '\''}}};
  for (const auto& [entity, character] : kPredefined) {
    if (name == entity) {
      out.push_back(character);
      return true;
    }
  }
  if (!name.starts_with('#')) return false;
  name.remove_prefix(1);
  int base = 10;
  if (name.starts_with('x')) {
    base = 16;
    name.remove_prefix(1);
  }
  uint32_t code = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), code, base);
  if (error != std::errc{} || end != name.data() + name.size() || code > 0x10FFFF) return false;
  append_utf8(out, code);
  return true;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&apos;";
        break;
      case '\r':
        out += "&#13;";
        break;  // a bare one would be read back as a newline
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out.push_back(c);
    }
  }
  return out;
}

std::string unescape(std::string_view raw) {
  std::string out;
  out.reserve(raw.size());
  while (!raw.empty()) {
    const size_t start = raw.find('&');
    out += raw.substr(0, start);
    if (start == std::string_view::npos) break;
    raw.remove_prefix(start);
    const size_t end = raw.find(';');
    if (end == std::string_view::npos || !append_reference(out, raw.substr(1, end - 1))) {
      out.push_back('&');
      raw.remove_prefix(1);
    } else {
      raw.remove_prefix(end + 1);
    }
  }
  return out;
}

std::string libvirt_prolog(std::string_view command) {
  std::string out =
      "<!--\n"
      "WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE\n"
      "OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:\n"
      "  virsh ";
  out += command;
  out +=
      "\n"
      "or other application using the libvirt API.\n"
      "-->\n"
      "\n";
  return out;
}

std::string with_libvirt_prolog(std::string_view prolog, std::string_view command) {
  static constexpr std::string_view kStart = "<!--\nWARNING: THIS IS AN AUTO-GENERATED FILE.";
  static constexpr std::string_view kEnd = "-->";
  static constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  size_t start = prolog.find(kStart);
  size_t end = start;
  if (start != std::string_view::npos) {
    end = prolog.find(kEnd, start) + kEnd.size();
    for (int newlines = 0; newlines < 2 && end < prolog.size() && prolog[end] == '\n'; ++newlines) ++end;
  } else {
    // A byte order mark and an XML declaration stand first or nowhere.
    const size_t mark = prolog.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
    start = mark;
    if (prolog.substr(mark).starts_with("<?xml")) {
      start = prolog.find("?>") + 2;
      if (start < prolog.size() && prolog[start] == '\n') ++start;
    }
    end = start;
  }
  std::string out(prolog.substr(0, start));
  if (!out.empty() && out != kByteOrderMark && out.back() != '\n') out += '\n';
  out += libvirt_prolog(command);
  out += prolog.substr(end);
  return out;
}

bool is_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto first = static_cast<unsigned char>(text[i]);
    if (first < 0x80) {
      ++i;
      continue;
    }
    const int length = first >> 5 == 0x6 ? 2 : first >> 4 == 0xE ? 3 : first >> 3 == 0x1E ? 4 : 0;
    if (length == 0 || text.size() - i < static_cast<size_t>(length)) return false;
    uint32_t code = first & (0x7Fu >> length);
    for (int k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + static_cast<size_t>(k)]);
      if (next >> 6 != 0x2) return false;
      code = code << 6 | (next & 0x3Fu);
    }
    static constexpr uint32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kLeast[length] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return false;
    i += static_cast<size_t>(length);
  }
  return true;
}

}  // namespace varve::xml
