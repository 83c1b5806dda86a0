#include "libvirt/machines.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

namespace varve::libvirt {

namespace {

// Beside a call that takes long: tells how far its job is, ends the job when somebody asks for that, and thaws the
// guest when its time is over. libvirt's calls may be made from several threads at once; each has its own last error.
class JobWatch {
 public:
  JobWatch(const Library& library, virDomainPtr domain, Watch watch, int thaw_after_seconds = 0)
      : library_(library), domain_(domain), watch_(std::move(watch)), thaw_after_(thaw_after_seconds) {
    thread_ = std::thread([this] { run(); });
  }
  JobWatch(const JobWatch&) = delete;
  JobWatch& operator=(const JobWatch&) = delete;
  ~JobWatch() { finish(); }

  void finish() {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      done_ = true;
    }
    ended_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  // After finish().
  bool was_cancelled() const { return cancelled_; }
  bool was_thawed() const { return thawed_; }

 private:
  void run() {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock<std::mutex> guard(mutex_);
    while (!ended_.wait_for(guard, std::chrono::milliseconds(200), [this] { return done_; })) {
      guard.unlock();
      // What asks for the job waits for it where it may not be asked; the thaw must not.
      if (thaw_after_.count() == 0) tell();
      // One that is frozen is over soon, and to stop it might hold up the thaw.
      if (thaw_after_.count() == 0 && !cancelled_ && watch_.cancelled && watch_.cancelled()) {
        cancelled_ = library_.virDomainAbortJob(domain_) == 0;
      }
      const auto spent = std::chrono::steady_clock::now() - start;
      if (thaw_after_.count() > 0 && !thawed_ && spent > thaw_after_) {
        thawed_ = library_.virDomainFSThaw(domain_, nullptr, 0, 0) > 0;
      }
      guard.lock();
    }
  }

  void tell() const {
    if (!watch_.progress) return;
    virTypedParameterPtr values = nullptr;
    int count = 0;
    int type = 0;
    if (library_.virDomainGetJobStats(domain_, &type, &values, &count, 0) < 0) return;
    unsigned long long done = 0;
    unsigned long long total = 0;
    const bool is_known =
        library_.virTypedParamsGetULLong(values, count, VIR_DOMAIN_JOB_MEMORY_PROCESSED, &done) == 1 &&
        library_.virTypedParamsGetULLong(values, count, VIR_DOMAIN_JOB_MEMORY_TOTAL, &total) == 1;
    library_.virTypedParamsFree(values, count);
    if (is_known && total > 0) watch_.progress(done, total);
  }

  const Library& library_;
  virDomainPtr domain_;
  Watch watch_;
  std::chrono::seconds thaw_after_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool done_ = false;
  bool cancelled_ = false;
  bool thawed_ = false;
  std::thread thread_;
};

enum class Thaw : uint8_t {
  kAnswered,
  kNoAgent,   // it is shut off, or no agent runs in it
  kNoAnswer,  // not yet
};

bool has_agent(const DomainDocument& present) {
  const xml::Element* devices = present.root().child("devices");
  if (devices == nullptr) return false;
  return std::ranges::any_of(devices->children("channel"), [](const xml::Element* channel) {
    const xml::Element* target = channel->child("target");
    return target != nullptr && target->attribute("name") == "org.qemu.guest_agent.0" &&
           target->attribute("state") == "connected";
  });
}

// Through a connection of its own: the one that the freeze was asked through may be broken.
Thaw try_thaw(const std::string& uri, const std::string& name) {
  const auto connection = Connection::open(uri);
  if (!connection || !(*connection)->allow_changes()) return Thaw::kNoAnswer;
  const Library& library = (*connection)->library();
  const auto domain = (*connection)->domain(name);
  if (!domain) return domain.error().kind == ErrorKind::kNotFound ? Thaw::kNoAgent : Thaw::kNoAnswer;
  const auto text = (*connection)->present_definition_of(*domain);
  if (!text) return Thaw::kNoAnswer;
  const auto present = DomainDocument::parse(*text, name);
  if (!present || !has_agent(*present)) return Thaw::kNoAgent;
  library.virDomainAgentSetResponseTimeout(domain->get(), VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_DEFAULT, 0);
  const bool answered = library.virDomainFSThaw(domain->get(), nullptr, 0, 0) >= 0;
  library.virDomainAgentSetResponseTimeout(domain->get(), VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0);  // as it was
  return answered ? Thaw::kAnswered : Thaw::kNoAnswer;
}

// Whether an error with this code leaves open what became of a freeze: the agent was asked and did not answer. What
// libvirtd or the agent has answered is an answer, and then a freeze may be somebody else's.
bool leaves_freeze_open(int code) {
  return code == VIR_ERR_AGENT_UNRESPONSIVE || code == VIR_ERR_AGENT_UNSYNCED || code == VIR_ERR_RPC;
}

Error stopped() {
  return make_error(ErrorKind::kInterrupted, "it was stopped").with_note("nothing was changed");
}

}  // namespace

Result<DomainDocument> LibvirtMachines::present_definition(const std::string& domain) const {
  const DomainHandle found = TRY(connection_.domain(domain));
  return DomainDocument::parse(TRY(connection_.present_definition_of(found)),
                               fmt::format("the definition of '{}'", domain));
}

Result<size_t> LibvirtMachines::checkpoints(const std::string& domain) const {
  const DomainHandle found = TRY(connection_.domain(domain));
  const int count = connection_.library().virDomainListAllCheckpoints(found.get(), nullptr, 0);
  if (count >= 0) return static_cast<size_t>(count);
  Error error = connection_.last_error(fmt::format("the checkpoints of '{}' can't be listed", domain));
  if (error.kind == ErrorKind::kUnsupported) return size_t{0};
  return error;
}

Result<void> LibvirtMachines::create_snapshot(const std::string& domain, const MachineSnapshot& snapshot,
                                              const Watch& watch) {
  TRY(connection_.allow_changes());
  const Library& library = connection_.library();
  const DomainHandle found = TRY(connection_.domain(domain));
  unsigned flags = VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC;
  if (snapshot.disk_only) flags |= VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY;
  if (snapshot.live) flags |= VIR_DOMAIN_SNAPSHOT_CREATE_LIVE;
  if (snapshot.quiesce) {
    flags |= VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE;
    // An agent that does not answer must not hold it up; where that can't be set, libvirt has a limit of its own.
    library.virDomainAgentSetResponseTimeout(found.get(), snapshot.quiesce_seconds, 0);
  }
  JobWatch job(library, found.get(), watch, snapshot.quiesce ? snapshot.quiesce_seconds : 0);
  const SnapshotHandle made(library.virDomainSnapshotCreateXML(found.get(), snapshot.document.c_str(), flags),
                            library.virDomainSnapshotFree);
  std::optional<Error> error;
  bool may_be_frozen = false;
  if (!made) {
    const virErrorPtr said = library.virGetLastError();
    may_be_frozen = said == nullptr || leaves_freeze_open(said->code);
    error = connection_.last_error("libvirtd could not take it");
    may_be_frozen = may_be_frozen || library.virConnectIsAlive(connection_.handle()) != 1;
  }
  job.finish();
  if (snapshot.quiesce) {
    if (error) {
      error->notes.emplace_back(may_be_frozen ? make_sure_of_thaw(domain, snapshot.quiesce_seconds)
                                              : "without --quiesce no guest agent is needed");
    } else if (job.was_thawed()) {
      error =
          make_error(ErrorKind::kIo,
                     fmt::format("it was taken, but the guest's file systems had to be thawed before that, after {} "
                                 "seconds: it is as after a power cut",
                                 snapshot.quiesce_seconds));
    }
    library.virDomainAgentSetResponseTimeout(found.get(), VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0);  // as it was
  }
  if (!error) return {};
  if (!made && job.was_cancelled()) return stopped();
  return std::move(*error);
}

// The agent does one thing after the other. It may have been told to freeze, and do so only after everybody has given
// up; so nothing but its answer to a thaw says that the guest is not frozen.
std::string LibvirtMachines::make_sure_of_thaw(const std::string& domain, int quiesce_seconds) const {
  constexpr std::chrono::seconds kPatience(60);
  const auto deadline = std::chrono::steady_clock::now() + kPatience + std::chrono::seconds(quiesce_seconds);
  while (std::chrono::steady_clock::now() < deadline) {
    switch (try_thaw(connection_.uri(), domain)) {
      case Thaw::kAnswered:
        return "the guest's file systems are not frozen; without --quiesce no guest agent is needed";
      case Thaw::kNoAgent:
        return "no guest agent runs in it; without --quiesce none is needed";
      case Thaw::kNoAnswer:
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
  }
  return fmt::format("the guest agent does not answer, and its file systems may be frozen: `virsh domfsthaw '{}'`",
                     domain);
}

Result<void> LibvirtMachines::revert(const std::string& domain, const std::string& name, AfterRevert after,
                                     const Watch& watch) {
  TRY(connection_.allow_changes());
  const Library& library = connection_.library();
  const DomainHandle found = TRY(connection_.domain(domain));
  const SnapshotHandle snapshot = TRY(connection_.snapshot(found, name));
  unsigned flags = 0;
  if (after == AfterRevert::kRunning) flags |= VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING;
  if (after == AfterRevert::kPaused) flags |= VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED;
  const JobWatch job(library, found.get(), {.progress = watch.progress, .cancelled = {}});
  if (library.virDomainRevertToSnapshot(snapshot.get(), flags) == 0) return {};
  // Risky is that QEMU has to be started anew, and that the present state goes. That is kept, or the user said that it
  // may go; and under a managed save nobody gets here.
  const virErrorPtr said = library.virGetLastError();
  if (said != nullptr && said->code == VIR_ERR_SNAPSHOT_REVERT_RISKY &&
      library.virDomainRevertToSnapshot(snapshot.get(), flags | VIR_DOMAIN_SNAPSHOT_REVERT_FORCE) == 0) {
    return {};
  }
  return connection_.last_error("libvirtd could not go back to it");
}

Result<void> LibvirtMachines::remove(const std::string& domain, const std::string& name, bool children,
                                     const Watch& watch) {
  TRY(connection_.allow_changes());
  const Library& library = connection_.library();
  const DomainHandle found = TRY(connection_.domain(domain));
  const SnapshotHandle snapshot = TRY(connection_.snapshot(found, name));
  // A deletion can't be stopped half-way.
  const JobWatch job(library, found.get(), {.progress = watch.progress, .cancelled = {}});
  const unsigned flags = children ? static_cast<unsigned>(VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN) : 0U;
  if (library.virDomainSnapshotDelete(snapshot.get(), flags) == 0) return {};
  return connection_.last_error("libvirtd could not delete it");
}

}  // namespace varve::libvirt
