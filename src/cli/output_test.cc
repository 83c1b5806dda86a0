#include "cli/output.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "cli/exit_code.h"

namespace varve::cli {
namespace {

TEST(DescribeError, PrintsNotesIndentedBelowTheMessage) {
  Error error = make_error(ErrorKind::kNotFound, "snapshot 'a' of 'centos7' is not there").with_note("it has: b, c");
  EXPECT_EQ(describe(error), "snapshot 'a' of 'centos7' is not there\n  it has: b, c");
}

TEST(DescribeError, SaysWhatHelpsAgainstWhatTheSystemSays) {
  Error error = system_error(ENOSPC, "can't write the journal record");
  error.notes.emplace_back("nothing was changed");
  EXPECT_EQ(describe(error),
            "can't write the journal record: No space left on device\n  nothing was changed\n"
            "  make room on that file system, then run the command again");
  EXPECT_NE(describe(system_error(EROFS, "x")).find("mount -o remount,rw"), std::string::npos);
  EXPECT_NE(describe(system_error(EACCES, "x")).find("root"), std::string::npos);
}

TEST(DescribeError, NamesThePathOnceAndTheOffset) {
  Error error = make_error(ErrorKind::kCorrupt, "the L1 table lies outside the file");
  error.path = "/x/a.qcow2";
  error.offset = 0x30000;
  EXPECT_EQ(describe(error), "the L1 table lies outside the file (/x/a.qcow2, offset 0x30000)");
  error.message = "/x/a.qcow2: the L1 table lies outside the file";
  EXPECT_EQ(describe(error), "/x/a.qcow2: the L1 table lies outside the file (offset 0x30000)");
}

TEST(DescribeError, MakesControlCharactersVisible) {
  EXPECT_EQ(describe(make_error(ErrorKind::kNotFound, "no snapshot 'a\033[2Jé'")), "no snapshot 'a\\x1b[2Jé'");
}

TEST(ExitCodes, TellRefusalsFromFailures) {
  EXPECT_EQ(exit_code_of(ErrorKind::kRefused), ExitCode::kRefused);
  EXPECT_EQ(exit_code_of(ErrorKind::kNotFound), ExitCode::kNotFound);
  EXPECT_EQ(exit_code_of(ErrorKind::kInUse), ExitCode::kInUse);
  EXPECT_EQ(exit_code_of(ErrorKind::kInvalidArgument), ExitCode::kUsage);
  EXPECT_EQ(exit_code_of(ErrorKind::kIo), ExitCode::kFailed);
}

TEST(Visible, ShowsControlsAndMarksThatATerminalObeys) {
  EXPECT_EQ(visible("a\x1b[2Jb"), "a\\x1b[2Jb");
  EXPECT_EQ(visible("\u009b2J"), "\\xc2\\x9b2J");
  EXPECT_EQ(visible("exe.\u202etxt"), "exe.\\xe2\\x80\\xaetxt");
  EXPECT_EQ(visible("Übermaß → ok\n"), "Übermaß → ok\\x0a");
  EXPECT_EQ(visible_lines("a\nb"), "a\nb");
}

}  // namespace
}  // namespace varve::cli
