#include "inspect/leftovers.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <memory>
#include <set>

#include "base/atomic_file.h"
#include "domain/names.h"

namespace varve {

namespace {

// Nobody takes that long to write a file of some kilobytes.
constexpr int64_t kSurelyLeftAfterSec = 3600;

// The regular files of a directory (a root path), by name, sorted. A link is none: what removes it by its path would
// remove what it leads to. A directory that does not exist is empty.
Result<std::vector<std::string>> files_in(const Layout& layout, const std::string& directory) {
  std::vector<std::string> names;
  const auto resolved = layout.resolve(directory);
  if (!resolved) {
    if (resolved.error().kind == ErrorKind::kNotFound) return names;
    return resolved.error();
  }
  const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(resolved->c_str()), &::closedir);
  if (!open) return system_error(errno, "reading the directory " + *resolved, *resolved);
  errno = 0;
  while (const dirent* entry = ::readdir(open.get())) {
    const std::string name = entry->d_name;
    struct stat st = {};
    if (::fstatat(::dirfd(open.get()), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode)) {
      names.push_back(name);
    }
    errno = 0;
  }
  if (errno != 0) return system_error(errno, "reading the directory " + *resolved, *resolved);
  std::ranges::sort(names);
  return names;
}

// Varve's own, and what libvirt leaves when it is killed while it replaces NAME.xml.
bool is_half_written(const std::string& name) {
  return is_temporary_file_name(name) || name.ends_with(".xml.new");
}

Finding leftover(const Layout& layout, FindingKind kind, const std::string& domain, const std::string& path,
                 const char* what) {
  Finding finding;
  finding.kind = kind;
  finding.severity = Severity::kNote;
  finding.domain = domain;
  finding.path = path;
  finding.message = fmt::format("{} {}", layout.shown(path), what);
  finding.remedy = "`--repair` removes it";
  finding.is_repairable = true;
  return finding;
}

constexpr const char* kHalfWritten = "was left half written by an interrupted command";

bool is_old(const Layout& layout, const std::string& path) {
  const auto host_path = layout.resolve(path);
  struct stat st = {};
  return host_path && ::stat(host_path->c_str(), &st) == 0 && st.st_mtime + kSurelyLeftAfterSec < ::time(nullptr);
}

Finding host_finding(FindingKind kind, std::string path, std::string message, std::string remedy) {
  Finding finding;
  finding.kind = kind;
  finding.severity = Severity::kError;
  finding.path = std::move(path);
  finding.message = std::move(message);
  finding.remedy = std::move(remedy);
  return finding;
}

}  // namespace

Result<void> find_leftovers_of_domain(const Host& host, const std::string& domain, std::vector<Finding>& findings) {
  const std::string directory = Layout::snapshots_directory(domain);
  if (!host.writer().writes_file(directory + "/")) return {};  // a daemon may be writing it just now
  for (const std::string& name : TRY(files_in(host.layout(), directory))) {
    if (!is_half_written(name)) continue;
    findings.push_back(
        leftover(host.layout(), FindingKind::kTemporaryFile, domain, directory + "/" + name, kHalfWritten));
  }
  return {};
}

Result<void> find_leftovers_of_host(const Host& host, std::vector<Finding>& findings) {
  const Layout& layout = host.layout();
  for (const Error& problem : TRY(host.definitions().list()).problems) {
    findings.push_back(host_finding(FindingKind::kUnreadableDefinition, "", problem.message,
                                    "mend the file, or define the domain again with `varve vm define`"));
  }
  std::set<std::string> defined;
  for (std::string& name : TRY(host.definitions().names())) defined.insert(std::move(name));
  std::set<std::string> needed = defined;
  // A daemon does not load the snapshots of what is not defined; and who may not read its files is told nothing.
  const MetadataFiles files(layout);
  auto domains = files.domains();
  if (!domains && host.machines() == nullptr) return std::move(domains).error();
  for (const std::string& domain : std::move(domains).value_or({})) {
    if (!needed.insert(domain).second) continue;
    const size_t count = TRY(files.names(domain)).size();
    findings.push_back(host_finding(
        FindingKind::kMetadataOfNoDomain, Layout::snapshots_directory(domain),
        fmt::format("there is metadata of {} snapshot{} of '{}', which is not defined", count, count == 1 ? "" : "s",
                    domain),
        fmt::format("`varve vm recover '{}'` defines it again, with its snapshots, from the definition that the newest "
                    "of them holds",
                    domain)));
    findings.back().domain = domain;
  }
  for (const std::string& domain : TRY(host.journal().domains())) {
    needed.insert(domain);
    if (!check_domain_name(domain)) continue;  // told when the host was opened
    const auto lock = DomainLock::try_acquire(layout, domain, DomainLock::Mode::kShared, "verify");
    if (lock && !*lock) continue;  // its command is at work
    const auto record = host.journal().read(domain);
    if (record && !*record) continue;  // it is finished by now
    findings.push_back(host_finding(
        FindingKind::kUnfinishedOperation, Layout::journal_directory() + "/" + domain + ".journal",
        record ? fmt::format("`varve {}` was interrupted and is not finished", (*record)->operation)
               : record.error().message,
        record ? fmt::format("the next command on '{}' finishes it, once nobody has its images in use", domain)
               : "look at the images first (`varve image check`), then move the record away"));
    findings.back().domain = domain;
  }
  for (const std::string& directory : {Layout::definitions_directory(), Layout::journal_directory()}) {
    if (!host.writer().writes_file(directory + "/")) continue;
    for (const std::string& name : TRY(files_in(layout, directory))) {
      const std::string path = directory + "/" + name;
      if (!is_half_written(name) || !is_old(layout, path)) continue;
      findings.push_back(leftover(layout, FindingKind::kTemporaryFile, "", path, kHalfWritten));
    }
  }
  for (const std::string& name : TRY(files_in(layout, Layout::lock_directory()))) {
    if (needed.contains(name) || !check_domain_name(name)) continue;
    findings.push_back(leftover(layout, FindingKind::kUnusedLock, name, Layout::lock_file(name),
                                "is the lock of a domain that is gone"));
  }
  return {};
}

}  // namespace varve
