#include "domain/schema.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <vector>

#include "domain/xml.h"
#include "domain/xml_library.h"

namespace varve {

namespace {

constexpr size_t kKinds = 2;
constexpr size_t kMaxProblems = 5;

struct Problem {
  int line = 0;
  std::string message;
};

using xml::library;

template <typename T, void (*xml::Library::*kFree)(T*)>
struct Freeing {
  void operator()(T* pointer) const { (library().*kFree)(pointer); }
};
template <typename T, void (*xml::Library::*kFree)(T*)>
using Owned = std::unique_ptr<T, Freeing<T, kFree>>;
using Schema = Owned<xmlRelaxNG, &xml::Library::xmlRelaxNGFree>;
using SchemaParser = Owned<xmlRelaxNGParserCtxt, &xml::Library::xmlRelaxNGFreeParserCtxt>;
using Validator = Owned<xmlRelaxNGValidCtxt, &xml::Library::xmlRelaxNGFreeValidCtxt>;
using Tree = Owned<xmlDoc, &xml::Library::xmlFreeDoc>;

const char* file_of(SchemaKind kind) {
  return kind == SchemaKind::kDomain ? "domain.rng" : "domainsnapshot.rng";
}

const char* element_of(SchemaKind kind) {
  return kind == SchemaKind::kDomain ? "domain" : "domainsnapshot";
}

void collect(void* context, const xmlError& error) {
  auto& problems = *static_cast<std::vector<Problem>*>(context);
  Problem problem{error.line, error.message == nullptr ? "unknown error" : error.message};
  while (!problem.message.empty() && problem.message.back() == '\n') problem.message.pop_back();
  problems.push_back(std::move(problem));
}

}  // namespace

struct SchemaSet::State {
  std::string directory;
  std::mutex mutex;  // libxml2 compiles parts of a schema while it validates
  std::array<Schema, kKinds> compiled;
};

SchemaSet::SchemaSet(std::string directory) : state_(std::make_unique<State>()) {
  state_->directory = std::move(directory);
}
SchemaSet::SchemaSet(SchemaSet&&) noexcept = default;
SchemaSet::~SchemaSet() = default;

Result<SchemaOutcome> SchemaSet::validate(SchemaKind kind, std::string_view text, const std::string& document_name) {
  // Everything that must not be handed to libxml2's tree builder is refused here.
  TRY(xml::Document::parse(text, document_name));

  const std::lock_guard lock(state_->mutex);
  std::vector<Problem> problems;
  const auto on_error = [](void* context, auto* error) { collect(context, *error); };
  Schema& schema = state_->compiled[static_cast<size_t>(kind)];
  if (!schema) {
    const std::string path = state_->directory + "/" + file_of(kind);
    if (::access(path.c_str(), R_OK) != 0) return SchemaOutcome::kNotInstalled;
    const SchemaParser parser(library().xmlRelaxNGNewParserCtxt(path.c_str()));
    if (parser) {
      library().xmlRelaxNGSetParserStructuredErrors(parser.get(), on_error, &problems);
      schema.reset(library().xmlRelaxNGParse(parser.get()));
    }
    if (!schema) {
      Error error = make_error(ErrorKind::kInternal, fmt::format("the schema {} cannot be used", path));
      error.path = path;
      if (!problems.empty()) error.notes.push_back(problems.front().message);
      return error;
    }
    problems.clear();
  }

  const Tree tree(library().xmlReadMemory(text.data(), static_cast<int>(text.size()), nullptr, nullptr,
                                          XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING));
  const Validator validator(library().xmlRelaxNGNewValidCtxt(schema.get()));
  if (!tree || !validator) {
    return make_error(ErrorKind::kInternal, document_name + ": the document cannot be validated: out of memory");
  }
  library().xmlRelaxNGSetValidStructuredErrors(validator.get(), on_error, &problems);
  const int outcome = library().xmlRelaxNGValidateDoc(validator.get(), tree.get());
  if (outcome == 0) return SchemaOutcome::kValid;

  Error error = make_error(outcome > 0 ? ErrorKind::kInvalidArgument : ErrorKind::kInternal,
                           fmt::format("{} is not a valid <{}>", document_name, element_of(kind)));
  error.path = document_name;
  for (size_t i = 0; i < problems.size() && i < kMaxProblems; ++i) {
    error.notes.push_back(problems[i].line > 0 ? fmt::format("line {}: {}", problems[i].line, problems[i].message)
                                               : problems[i].message);
  }
  if (problems.size() > kMaxProblems) error.notes.push_back(fmt::format("and {} more", problems.size() - kMaxProblems));
  return error;
}

}  // namespace varve
