// The image that a command line names: a path, `json:{…}`, `blkdebug:RULES:IMAGE`, or with --image-opts a list
// driver=…,file.filename=…; and the objects (secrets) that it may refer to. All verbs of `varve image` read theirs
// here.
//
// The user's own words are trusted as the user is. What images name (backing files, data files) does not come here.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/image_arguments.h"
#include "cli/node_name.h"
#include "cli/source_option.h"
#include "crypto/secret_bytes.h"
#include "image/open.h"

namespace varve::cli {

struct ImageSource {
  std::string name;  // as given: what messages call the image
  std::string path;
  std::optional<image::Format> format;
  std::optional<std::string> data_file;          // data-file.filename
  std::optional<std::string> key_secret;         // encrypt.key-secret, or key-secret of luks: the id of an object
  std::optional<std::string> encryption_format;  // encrypt.format
  std::optional<uint64_t> null_size;             // driver=null-co: no path, but a disk of zeroes of so many bytes
  bool bypass_cache = false;                     // cache.direct
  image::DebugFilters filters;
  std::optional<NodeName> file_node;  // of the file with its filters, where it is not plainly `path`
  std::optional<NodeName> disk_node;  // of the whole, where filters lie over its format
  std::vector<ImageSource> below;     // backing.…, backing.backing.…; a path may be missing there
};

// --object: secrets by their id.
class ImageObjects {
 public:
  // "secret,id=ID,data=…" or "secret,id=ID,file=PATH", both with format=raw|base64 and perhaps encrypted:
  // keyid=ID,iv=BASE64, with the secret of that id, which was added before; or the same as a JSON object.
  Result<void> add(const std::string& text);
  // The secret as a passphrase: kNotFound where there is none of this id, kInvalidArgument where it is no text.
  Result<std::shared_ptr<const crypto::SecretBytes>> passphrase(const std::string& id) const;

 private:
  Result<std::shared_ptr<const crypto::SecretBytes>> find(const std::string& id) const;  // kNotFound
  Result<crypto::SecretBytes> unwrap(const std::string& key_id, const std::optional<std::string>& vector,
                                     crypto::SecretBytes wrapped, bool is_base64) const;

  std::map<std::string, std::shared_ptr<const crypto::SecretBytes>> secrets_;
};

// How a verb is to find its image: options that most of them have.
struct SourceArguments {
  std::optional<std::string> format = std::nullopt;               // -f
  bool image_opts = false;                                        // --image-opts
  bool share = false;                                             // -U
  bool bypass_cache = false;                                      // a cache mode that says so (cli/cache_mode.h)
  DryRun dry_run = {};                                            // images are opened to rehearse what would be written
  ImageObjects objects = {};                                      // --object
  std::function<void(const std::string&)> diagnostics = nullptr;  // prints what QEMU says while it opens an image
  bool as_qemu_img = false;                                       // called by that name: errors are in QEMU's words
};

// Takes those options, and -h, out of `parsed`. What it returns ends the verb: everything is printed.
std::optional<ImageExit> take_source_arguments(const ImageCall& call, ParsedImageArguments& parsed,
                                               SourceArguments& source);

// How QEMU calls the image once it is open in this format.
NodeName node_of(const ImageSource& source, image::Format format);

// What the source says of encryption, its own and that of what is below it; with the passphrases, unless only metadata
// is to be looked at (options.use).
Result<void> apply_encryption(const ImageSource& source, const ImageObjects& objects, image::OpenOptions& options);

// The messages are the whole reason: "Could not open 'a': Unknown driver 'b'".
Result<ImageSource> find_source(const std::string& word, const SourceArguments& arguments);

// Finds and opens; `options` without a format. An image that is to be written to and was not closed cleanly is repaired
// first (cli/dirty_image.h).
Result<image::OpenImage> open_source(const std::string& word, const SourceArguments& arguments,
                                     image::OpenOptions options);

// "a=b,c=d,,e" as pairs in order; ",," is a comma. A word without "=" is `implied` for the first one.
Result<SourceOptions> parse_key_values(const std::string& text, const std::string& implied);

}  // namespace varve::cli
