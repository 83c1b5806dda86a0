// Validation against the RELAX NG schemas that libvirt installs. Compiling one takes tens of milliseconds, so a
// SchemaSet is made once and kept. Safe to use from several threads.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace varve {

enum class SchemaKind : uint8_t { kDomain, kDomainSnapshot };

enum class SchemaOutcome : uint8_t {
  kValid,
  kNotInstalled,  // no schema to hold it against: say so once, and go on
};

class SchemaSet {
 public:
  static constexpr const char* kLibvirtDirectory = "/usr/share/libvirt/schemas";
  explicit SchemaSet(std::string directory = kLibvirtDirectory);
  SchemaSet(SchemaSet&&) noexcept;
  ~SchemaSet();

  // A document that breaks the schema is kInvalidArgument; the notes say line by line what is wrong. Text that does not
  // parse fails as xml::Document::parse does. kInternal: the schema itself cannot be compiled.
  Result<SchemaOutcome> validate(SchemaKind kind, std::string_view text, const std::string& document_name);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace varve
