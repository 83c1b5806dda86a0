// A domain "vm" with disks vda and vdb (vm.qcow2, vm-2.qcow2) on a libvirtd of the test's own, worked on with varve and
// with virsh.
#pragma once

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "interop/host_directory.h"
#include "support/libvirtd.h"

namespace varve::test {

class LibvirtDomain : public testing::Test {
 protected:
  void SetUp() override {
    REQUIRES_LIBVIRTD();
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain("vm");
    libvirtd_ = std::make_unique<Libvirtd>(host_.root());
  }

  ProcessResult varve(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {VARVE_COMMAND, "-c", "qemu:///system"});
    return libvirtd_->run_there(std::move(arguments));
  }
  std::string varve_ok(const std::vector<std::string>& arguments) const {
    const ProcessResult result = varve(arguments);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.out << result.err;
    EXPECT_THAT(result.err, testing::IsEmpty());
    return result.out;
  }
  // Whatever its exit code is.
  nlohmann::json json_of(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "--json");
    return nlohmann::json::parse(varve(arguments).out, nullptr, false);
  }
  nlohmann::json varve_json(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "--json");
    const ProcessResult result = varve(arguments);
    EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.out << result.err;
    return nlohmann::json::parse(result.out, nullptr, false);
  }
  std::string virsh(const std::vector<std::string>& arguments) const { return libvirtd_->virsh_ok(arguments); }
  std::vector<std::string> names(const std::vector<std::string>& arguments) const {
    std::vector<std::string> result;
    std::istringstream lines(virsh(arguments));
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty()) result.push_back(line);
    }
    return result;
  }
  std::vector<std::string> snapshots() const { return names({"snapshot-list", "vm", "--name"}); }
  std::string current() const { return names({"snapshot-current", "vm", "--name"}).at(0); }
  void expect_points(const std::vector<std::string>& expected) const {
    for (const char* file : {"vm.qcow2", "vm-2.qcow2"}) {
      EXPECT_EQ(host_.points(file), expected) << file;
      host_.expect_clean(file);
    }
  }
  void expect_sound() const {
    const nlohmann::json report = varve_json({"verify", "vm"});
    EXPECT_EQ(report["status"], "ok") << report.dump(2);
  }

  HostDirectory host_;
  std::unique_ptr<Libvirtd> libvirtd_;
};

}  // namespace varve::test
