// The real command, killed (SIGKILL) at random instants, on a file system of its own: whatever it was about, the next
// command finishes or undoes it.
#pragma once

#include <cstdint>
#include <string>

namespace varve::test {

struct KilledCommandFileSystem {
  const char* name;
  const char* mkfs;
  uint64_t bytes;
};
constexpr KilledCommandFileSystem kKilledCommandFileSystems[] = {
    {"Ext4", "mkfs.ext4 -q", 256 << 20}, {"Xfs", "mkfs.xfs -q", 400 << 20}, {"Btrfs", "mkfs.btrfs -q", 400 << 20}};

// `rounds` commands on a domain of two disks and on single images, each killed after a random time, below `directory`.
// After each: what the next command says and leaves is looked at with varve, with the engine, and with qemu-img. A
// failure of the running test says the round and the seed.
void kill_commands(const std::string& directory, unsigned rounds, uint64_t seed);

}  // namespace varve::test
