#include "guestfs/device_names.h"

#include <algorithm>

namespace varve::guestfs {

namespace {

constexpr const char* kDevices = "/dev/";
constexpr const char* kSubvolume = "btrfsvol:";

}  // namespace

std::string appliance_disk(size_t index) {
  std::string letters;
  for (size_t rest = index + 1; rest > 0; rest = (rest - 1) / 26) {
    letters.insert(letters.begin(), static_cast<char>('a' + (rest - 1) % 26));
  }
  return "/dev/sd" + letters;
}

std::string name_for_people(const std::string& mountable, const std::vector<std::string>& targets) {
  if (mountable.starts_with(kSubvolume)) {
    return kSubvolume + name_for_people(mountable.substr(std::string(kSubvolume).size()), targets);
  }
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::string disk = appliance_disk(i);
    if (!mountable.starts_with(disk)) continue;
    const std::string rest = mountable.substr(disk.size());
    // "/dev/sda" begins "/dev/sdab" as well.
    if (rest.empty() || rest.front() == '/' || (rest.front() >= '0' && rest.front() <= '9')) return targets[i] + rest;
  }
  return mountable.starts_with(kDevices) ? mountable.substr(std::string(kDevices).size()) : mountable;
}

}  // namespace varve::guestfs
