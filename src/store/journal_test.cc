#include "store/journal.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/endian.h"
#include "io/file_device.h"
#include "support/temp_dir.h"

namespace varve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Outcome = Recovery::Outcome;

qcow2::HeaderSector sector_with(uint8_t fill, uint64_t refcount_table_offset) {
  qcow2::HeaderSector sector;
  sector.fill(std::byte{fill});
  store_be(sector.data(), qcow2::kMagic);
  store_be(sector.data() + 48, refcount_table_offset);
  return sector;
}

const qcow2::HeaderSector kBefore = sector_with(1, 0x10000);
const qcow2::HeaderSector kAfter = sector_with(2, 0x90000);

// Two stand-ins for images, of a header sector and a body, and a record that changes both and a document.
class JournalTest : public testing::Test {
 protected:
  JournalTest() {
    record_.domain = "vm";
    record_.operation = "snapshot create vm s";
    record_.snapshot = "s";
    for (const char* name : {"vda", "vdb"}) {
      std::ofstream(host_path(name), std::ios::binary) << std::string(8192, *name);
      write_sector(name, kBefore);
      JournalImage image;
      image.target = name;
      image.path = std::string("/") + name;
      image.before = kBefore;
      image.after = kAfter;
      const auto file = FileDevice::open(host_path(name), Access::kReadWrite, LockRequest::format_writer());
      EXPECT_TRUE(file);
      image.prepared = *sync_and_stamp(**file);
      record_.images.push_back(image);
    }
    record_.changes.push_back({.path = "/etc/libvirt/qemu/vm.xml", .contents = "new"});
  }

  std::string host_path(const std::string& name) const { return dir_ / name; }

  void write_sector(const std::string& name, const qcow2::HeaderSector& sector) {
    std::fstream file(host_path(name), std::ios::binary | std::ios::in | std::ios::out);
    file.write(reinterpret_cast<const char*>(sector.data()), static_cast<std::streamsize>(sector.size()));
  }
  qcow2::HeaderSector sector_of(const std::string& name) const {
    qcow2::HeaderSector sector{};
    std::ifstream(host_path(name), std::ios::binary)
        .read(reinterpret_cast<char*>(sector.data()), static_cast<std::streamsize>(sector.size()));
    return sector;
  }
  // As another program would: the contents may be the same, the time of the last write is not.
  void touch(const std::string& name) {
    const timespec times[2] = {{0, UTIME_OMIT}, {1'700'000'000, 5}};
    ASSERT_EQ(::utimensat(AT_FDCWD, host_path(name).c_str(), times, 0), 0);
  }
  bool document_is_written() const { return test::read_whole_file(dir_ / "etc/libvirt/qemu/vm.xml") == "new"; }

  test::TempDir dir_;
  Layout layout_ = *Layout::open(dir_.path());
  Journal journal_{layout_};
  JournalRecord record_;
};

TEST_F(JournalTest, ATreeWithoutAJournalHasNothingToRecover) {
  EXPECT_THAT(*journal_.domains(), IsEmpty());
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kNothingToDo);
}

TEST_F(JournalTest, ARecordIsThereUntilItIsCleared) {
  ASSERT_TRUE(journal_.write(record_));
  EXPECT_THAT(*journal_.domains(), ElementsAre("vm"));
  EXPECT_EQ(**journal_.read("vm"), record_);
  struct stat status;
  ASSERT_EQ(::stat(journal_.path_of("vm").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0600u);
  ASSERT_TRUE(journal_.clear("vm"));
  EXPECT_THAT(*journal_.domains(), IsEmpty());
}

TEST_F(JournalTest, RecoveryCommitsWhatIsPreparedAndWritesTheDocuments) {
  ASSERT_TRUE(journal_.write(record_));
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kFinished);
  EXPECT_EQ(recovery->message, "an interrupted `varve snapshot create vm s` was finished");
  EXPECT_EQ(sector_of("vda"), kAfter);
  EXPECT_EQ(sector_of("vdb"), kAfter);
  EXPECT_TRUE(document_is_written());
  EXPECT_THAT(*journal_.domains(), IsEmpty());
}

TEST_F(JournalTest, AnImageThatWasWrittenToBeforeAnyCommitUndoesTheOperation) {
  ASSERT_TRUE(journal_.write(record_));
  touch("vdb");
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kUndone);
  EXPECT_THAT(recovery->message, HasSubstr("nothing is changed: disk vdb (/vdb) was written to by another program"));
  EXPECT_EQ(sector_of("vda"), kBefore);
  EXPECT_EQ(sector_of("vdb"), kBefore);
  EXPECT_FALSE(document_is_written());
  EXPECT_THAT(*journal_.domains(), IsEmpty());
}

TEST_F(JournalTest, AnImageThatGrewOrWasReplacedIsNotCommittedEither) {
  ASSERT_TRUE(journal_.write(record_));
  std::filesystem::copy(host_path("vda"), host_path("copy"));
  std::filesystem::rename(host_path("copy"), host_path("vda"));
  const timespec times[2] = {{0, UTIME_OMIT},
                             {record_.images[0].prepared.mtime_sec, record_.images[0].prepared.mtime_nsec}};
  ASSERT_EQ(::utimensat(AT_FDCWD, host_path("vda").c_str(), times, 0), 0);
  EXPECT_EQ(journal_.recover("vm")->outcome, Outcome::kUndone);
  EXPECT_EQ(sector_of("vda"), kBefore);
}

TEST_F(JournalTest, AnImageThatWasWrittenToAfterAnotherWasCommittedIsLeftAloneLoudly) {
  ASSERT_TRUE(journal_.write(record_));
  write_sector("vda", kAfter);
  touch("vdb");
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kPartly);
  EXPECT_THAT(recovery->unchanged, ElementsAre("vdb"));
  EXPECT_THAT(recovery->message, HasSubstr("EXCEPT for: disk vdb (/vdb)"));
  EXPECT_THAT(recovery->notes, ElementsAre(HasSubstr("`varve where 'vm' 's'`")));
  EXPECT_EQ(sector_of("vdb"), kBefore);
  EXPECT_TRUE(document_is_written());
  EXPECT_THAT(*journal_.domains(), IsEmpty());
}

TEST_F(JournalTest, AnImageThatQemuChangedAfterItsCommitCountsAsCommitted) {
  ASSERT_TRUE(journal_.write(record_));
  write_sector("vda", sector_with(3, 0x90000));  // another snapshot since, the refcount table where the commit put it
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kFinished);
  EXPECT_EQ(sector_of("vda"), sector_with(3, 0x90000));
  EXPECT_EQ(sector_of("vdb"), kAfter);
}

TEST_F(JournalTest, AMissingImageUndoesAnOperationThatHasCommittedNothing) {
  ASSERT_TRUE(journal_.write(record_));
  std::filesystem::remove(host_path("vda"));
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kUndone);
  EXPECT_THAT(recovery->message, HasSubstr("disk vda (/vda) is gone"));
}

TEST_F(JournalTest, AnImageInUseKeepsTheRecordAndChangesNothing) {
  ASSERT_TRUE(journal_.write(record_));
  {
    const auto user = FileDevice::open(host_path("vdb"), Access::kReadWrite, LockRequest::format_writer());
    ASSERT_TRUE(user);
    const auto recovery = journal_.recover("vm");
    ASSERT_FALSE(recovery);
    EXPECT_EQ(recovery.error().kind, ErrorKind::kInUse);
    EXPECT_THAT(recovery.error().message, HasSubstr("can't be finished"));
    EXPECT_EQ(sector_of("vda"), kBefore);
    EXPECT_FALSE(document_is_written());
  }
  EXPECT_EQ(journal_.recover("vm")->outcome, Outcome::kFinished);
}

TEST_F(JournalTest, ATornTemporaryRecordIsRemoved) {
  ASSERT_TRUE(layout_.make_directories(Layout::journal_directory()));
  dir_.write("var/lib/varve/journal/vm.journal.new", "VARVEJNL");
  EXPECT_THAT(*journal_.domains(), ElementsAre("vm"));
  EXPECT_EQ(journal_.recover("vm")->outcome, Outcome::kNothingToDo);
  EXPECT_THAT(*journal_.domains(), IsEmpty());
}

TEST_F(JournalTest, ARecordThatCannotBeUnderstoodIsNamedAndKept) {
  ASSERT_TRUE(layout_.make_directories(Layout::journal_directory()));
  const std::string path = dir_.write("var/lib/varve/journal/vm.journal", "VARVEJNL and then some rubbish");
  const auto recovery = journal_.recover("vm");
  ASSERT_FALSE(recovery);
  EXPECT_THAT(recovery.error().message, HasSubstr("/var/lib/varve/journal/vm.journal"));
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(JournalTest, ARecordOfAnotherDomainUnderThisNameIsRefused) {
  ASSERT_TRUE(journal_.write(record_));
  std::filesystem::rename(journal_.path_of("vm"), journal_.path_of("other"));
  const auto recovery = journal_.recover("other");
  ASSERT_FALSE(recovery);
  EXPECT_EQ(recovery.error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(recovery.error().message, HasSubstr("'vm'"));
}

TEST_F(JournalTest, ImagesAreRemovedOnlyWhenNobodyHasThemOpen) {
  JournalRecord record;
  record.domain = "vm";
  record.operation = "vm undefine vm --storage";
  record.removed_images = {"/vda", "/not-there"};
  ASSERT_TRUE(journal_.write(record));
  {
    const auto user = FileDevice::open(host_path("vda"), Access::kReadOnly, LockRequest::format_reader());
    ASSERT_TRUE(user);
    const auto recovery = journal_.recover("vm");
    ASSERT_FALSE(recovery);
    EXPECT_EQ(recovery.error().kind, ErrorKind::kInUse);
  }
  EXPECT_EQ(journal_.recover("vm")->outcome, Outcome::kFinished);
  EXPECT_FALSE(std::filesystem::exists(host_path("vda")));
  EXPECT_TRUE(std::filesystem::exists(host_path("vdb")));
}

TEST_F(JournalTest, OnlyEmptyDirectoriesAreRemoved) {
  std::filesystem::create_directory(dir_ / "full");
  dir_.write("full/file", "x");
  std::filesystem::create_directory(dir_ / "empty");
  JournalRecord record;
  record.domain = "vm";
  record.removed_directories = {"/full", "/empty", "/not-there"};
  ASSERT_TRUE(journal_.apply_changes(record));
  EXPECT_TRUE(std::filesystem::exists(dir_ / "full/file"));
  EXPECT_FALSE(std::filesystem::exists(dir_ / "empty"));
}

TEST_F(JournalTest, AnUndoRecordIsReportedAsUndone) {
  JournalRecord record;
  record.purpose = RecordPurpose::kUndo;
  record.domain = "vm";
  record.operation = "vm create vm";
  record.removed_images = {"/vda"};
  ASSERT_TRUE(journal_.write(record));
  const auto recovery = journal_.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kUndone);
  EXPECT_EQ(recovery->message, "an interrupted `varve vm create vm` was undone");
  EXPECT_FALSE(std::filesystem::exists(host_path("vda")));
}

// A daemon that does not take what it is given.
class RefusingWriter final : public DocumentWriter {
 public:
  explicit RefusingWriter(Layout layout) : files_(std::move(layout)) {}
  Result<void> write(const FileChange& change) override {
    if (change.path.ends_with("vm.xml")) return make_error(kind, "it does not like it");
    return files_.write(change);
  }
  bool writes_file(const std::string&) const override { return true; }
  ErrorKind kind = ErrorKind::kRefused;

 private:
  FileWriter files_;
};

TEST_F(JournalTest, ADocumentThatIsRefusedHoldsUpNothingElse) {
  const auto writer = std::make_shared<RefusingWriter>(layout_);
  Journal journal(layout_, {}, writer);
  record_.changes.push_back({.path = "/other", .contents = "written"});
  ASSERT_TRUE(journal.write(record_));
  const auto recovery = journal.recover("vm");
  ASSERT_TRUE(recovery) << recovery.error().message;
  EXPECT_EQ(recovery->outcome, Outcome::kFinished);
  EXPECT_THAT(recovery->notes, ElementsAre(testing::HasSubstr("it does not like it")));
  EXPECT_EQ(sector_of("vda"), kAfter);
  EXPECT_EQ(test::read_whole_file(dir_ / "other"), "written");
  EXPECT_THAT(*journal.domains(), IsEmpty());
}

TEST_F(JournalTest, ADocumentThatCouldNotBeHandedOverIsHandedOverLater) {
  const auto writer = std::make_shared<RefusingWriter>(layout_);
  writer->kind = ErrorKind::kIo;  // the connection was lost
  Journal journal(layout_, {}, writer);
  ASSERT_TRUE(journal.write(record_));
  EXPECT_FALSE(journal.recover("vm"));
  EXPECT_THAT(*journal.domains(), ElementsAre("vm"));
  ASSERT_TRUE(journal_.recover("vm"));
  EXPECT_TRUE(document_is_written());
}

}  // namespace
}  // namespace varve
