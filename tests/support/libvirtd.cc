#include "support/libvirtd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace varve::test {

namespace {

// $1: the tree, $2: a directory for everything else, $3: where the build keeps what libvirtd found out about QEMU. Runs
// as process 1 of its namespace: when its standard input ends, so do it and every daemon and guest in there.
//  - A /dev/kvm that libvirt's user cannot open makes libvirtd throw away its capability cache at every look-up (a
//    define takes a minute), so it gets a node of its own that the group kvm can open. The host's is not touched.
//  - File systems that other tests have mounted are let go of: here they would live on after these unmount them.
//  - Control groups are the host's, and called after a machine's number and name: two libvirtds with a first machine
//    "vm" would take them away from each other. Without any, libvirtd does without.
//  - virtlogd must be there first.
//  - To find out what QEMU can do, libvirtd starts every QEMU that is installed. That takes a second and, once in a
//    long while, for ever (QEMU's monitor waits for a connection that it has already had). Its cache knows by itself
//    whether it is still right; so one libvirtd finds out, and the next ones begin with what it wrote.
//  - Guests become children of process 1 and must be reaped, or libvirtd waits a minute for one that it destroyed to
//    go away: so the shell waits, and a child of its reads.
constexpr const char* kScript = R"(
set -e
root=$1 scratch=$2 known=$3
mount --make-rprivate /
sed 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .*/\1/' /proc/self/mountinfo | grep varve-test- | while read -r mounted; do
  case $root/ in
    "$mounted"/*) ;;
    *) umount --lazy "$mounted" || true ;;
  esac
done
mkdir -p "$root/etc/libvirt" "$root/var/lib/libvirt" "$scratch/run" "$scratch/cache" "$scratch/log/qemu" "$scratch/dev"
if [ -e /dev/kvm ] && getent group kvm >/dev/null; then
  mount -t tmpfs -o mode=755 tmpfs "$scratch/dev"
  if mknod "$scratch/dev/kvm" c 10 232 && chgrp kvm "$scratch/dev/kvm" && chmod 660 "$scratch/dev/kvm"; then
    mount --bind "$scratch/dev/kvm" /dev/kvm
  fi
fi
mkdir -p "$known" "$scratch/cache/qemu/capabilities"
cp "$known"/*.xml "$scratch/cache/qemu/capabilities/" 2>/dev/null || true
if mountpoint -q /sys/fs/cgroup; then umount --recursive --lazy /sys/fs/cgroup; fi
mount --bind "$scratch/run" /run
mount --bind "$root/etc/libvirt" /etc/libvirt
mount --bind "$root/var/lib" /var/lib
mount --bind "$scratch/cache" /var/cache/libvirt
mount --bind "$scratch/log" /var/log/libvirt
virtlogd -d </dev/null
libvirtd -d </dev/null
tries=0
until virsh -c qemu:///system version >/dev/null 2>&1 </dev/null; do
  tries=$((tries + 1))
  if [ $tries -gt 300 ]; then
    echo "libvirtd does not answer"
    cat /var/log/libvirt/*.log
    exit 1
  fi
  sleep 0.1
done
echo "libvirtd is up"
exec 3<&0
(read -r line <&3 || true) &
wait $!
for found in "$scratch"/cache/qemu/capabilities/*.xml; do
  if [ -e "$found" ] && [ ! -e "$known/${found##*/}" ]; then
    new=$(mktemp "$known/XXXXXX")
    cp "$found" "$new"
    mv "$new" "$known/${found##*/}"
  fi
done
)";

}  // namespace

std::string Libvirtd::unavailable() {
  if (::geteuid() != 0) return "needs root, for a private libvirtd";
  for (const char* program : {"libvirtd", "virtlogd", "virsh", "unshare", "nsenter", "qemu-system-x86_64"}) {
    if (find_program(program).empty()) return std::string("needs ") + program + ", which is not installed";
  }
  const ProcessResult probe = run({"unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"});
  if (probe.exit_code != 0) return "needs mount and process namespaces: " + probe.err;
  return {};
}

Libvirtd::Libvirtd(std::string root) : root_(std::move(root)) {
  start();
}

Libvirtd::~Libvirtd() {
  stop();
}

void Libvirtd::start() {
  process_ = std::make_unique<BackgroundProcess>(
      std::vector<std::string>{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                               kScript, "libvirtd", root_, scratch_.path(), VARVE_BUILD_DIR "/libvirt-capabilities"});
  EXPECT_TRUE(process_->wait_for("libvirtd is up", std::chrono::seconds(60))) << process_->output();
}

void Libvirtd::stop() {
  if (!process_) return;
  process_->close_and_wait();
  process_.reset();
}

void Libvirtd::restart() {
  stop();
  start();
}

ProcessResult Libvirtd::run_there(std::vector<std::string> command) const {
  if (!process_) return {127, "", "libvirtd was stopped"};
  return run(command_there(std::move(command)));
}

std::vector<std::string> Libvirtd::command_there(std::vector<std::string> command) const {
  // Its /proc is that of the processes of its namespace: whoever looks for itself there (a sanitizer) must be one.
  const std::string pid = std::to_string(process_->pid());
  std::string first = read_whole_file(fmt::format("/proc/{0}/task/{0}/children", pid));
  first = first.substr(0, first.find(' '));
  command.insert(command.begin(), {"nsenter", "--mount", "--pid", "--target", first});
  return command;
}

bool Libvirtd::enter() const {
  const UniqueFd space(::open(fmt::format("/proc/{}/ns/mnt", process_->pid()).c_str(), O_RDONLY | O_CLOEXEC));
  // A sanitizer may have a thread of its own, which shares the working directory; it stays where it is.
  return space && ::unshare(CLONE_FS) == 0 && ::setns(space.get(), CLONE_NEWNS) == 0;
}

ProcessResult Libvirtd::virsh(const std::vector<std::string>& arguments) const {
  std::vector<std::string> command = {"virsh", "-c", "qemu:///system"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run_there(std::move(command));
}

std::string Libvirtd::virsh_ok(const std::vector<std::string>& arguments) const {
  const ProcessResult result = virsh(arguments);
  EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.out << result.err;
  return result.out;
}

}  // namespace varve::test
