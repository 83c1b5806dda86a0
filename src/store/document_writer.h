// Who makes file changes true: this process, or a daemon that has the documents and is asked to write them. Definitions
// and snapshot metadata are named by their root paths in libvirt's layout either way, so that a record of the journal
// can be carried out by whoever has the documents by then.
#pragma once

#include <string>

#include "base/result.h"
#include "store/file_change.h"
#include "store/layout.h"

namespace varve {

class DocumentWriter {
 public:
  virtual ~DocumentWriter() = default;

  // Durable when it returns. Can be repeated: removing what is not there succeeds. kRefused: whoever has the documents
  // does not take this one, and would not if it were asked again.
  virtual Result<void> write(const FileChange& change) = 0;
  // Whether this process writes the file there itself, and so needs access and space for it.
  virtual bool writes_file(const std::string& root_path) const = 0;
};

class FileWriter final : public DocumentWriter {
 public:
  explicit FileWriter(Layout layout) : layout_(std::move(layout)) {}
  Result<void> write(const FileChange& change) override { return apply(layout_, change); }
  bool writes_file(const std::string&) const override { return true; }

 private:
  Layout layout_;
};

}  // namespace varve
