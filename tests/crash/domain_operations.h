// A host with one domain, whole operations on it, and all that there is to see of it: what tests need that stop an
// operation somewhere and look whether the old state is left or the new one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "host/host.h"

namespace varve::test {

using Work = std::function<Result<void>(Host&)>;  // plans and runs one operation

struct DomainOperation {
  std::string name;
  Work work;
  std::function<void(const std::string& root)> before = {};  // what has to be there, besides make_domain()'s
  int least_steps = 9;
  int least_old = 3;  // outcomes: so many steps come before the record of the journal
};

// Opens the host at `root`, making it where it is missing, and does the work; `step` is called before each step.
Result<void> run_on(const std::string& root, const StepHook& step, const Work& work);

// The domain "vm" with disks of 4 MiB, two snapshots "a" <- "b", and contents that differ between them.
void make_domain(const std::string& root, int disks);
Work create_domain(const std::string& name, int disks);
std::string image_path(const std::string& root, int disk);  // 0: "vm.qcow2", 1: "vm-2.qcow2", …

// Everything that changes a domain whose snapshots lie inside of its images.
const std::vector<DomainOperation>& domain_operations();

// Every document, and of every image all that a user could tell of it; equal for equal states. A failure of the running
// test where an image has an error or a leak; each image that has not been seen before is put before qemu-img, too.
std::vector<std::string> look_at(const std::string& root);

}  // namespace varve::test
