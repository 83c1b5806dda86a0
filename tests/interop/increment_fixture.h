// A machine that was exported whole, for tests of what is exported since.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "interop/host_directory.h"

namespace varve::test {

class IncrementFixture : public testing::Test {
 protected:
  using json = nlohmann::json;
  static constexpr const char* kName = "Büro PC";
  void SetUp() override {
    REQUIRES_PROGRAM("qemu-img");
    REQUIRES_PROGRAM("qemu-io");
    host_.make_domain(kName, 2);
    host_.fill(image(), 1, 0, 24);
    host_.fill(second_image(), 1, 0, 2);
    snapshot("erster Stand");
    export_ok({"full"});
  }
  static std::string image() { return std::string(kName) + ".qcow2"; }
  static std::string second_image() { return std::string(kName) + "-2.qcow2"; }
  void snapshot(const std::string& name) const { host_.varve_ok({"snapshot", "create", kName, name}); }
  std::string backup(const std::string& name) const { return dir_ / "Sicherung ä" + "/" + name; }
  std::string manifest_of(const std::string& name) const { return backup(name) + "/" + kName + ".manifest.json"; }
  // Where an increment has something.
  std::string stored(const std::string& name, const std::string& path) const {
    return backup(name) + "/" + kName + ".increment" + path;
  }
  std::string delta(const std::string& name, const std::string& file) const {
    return stored(name, "/var/lib/libvirt/images/" + file + ".delta");
  }

  ProcessResult try_export(std::vector<std::string> arguments) const {
    arguments[0] = backup(arguments[0]);
    arguments.insert(arguments.begin(), {"vm", "export", kName});
    return host_.varve(arguments);
  }
  json export_ok(std::vector<std::string> arguments) const {
    arguments[0] = backup(arguments[0]);
    arguments.insert(arguments.begin(), {"vm", "export", kName});
    return host_.varve_json(arguments);
  }
  void refused(const std::vector<std::string>& arguments, const std::string& reason, int exit_code = 3) const {
    const bool was_there = std::filesystem::exists(backup(arguments[0]));
    const ProcessResult result = try_export(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.err, testing::HasSubstr(reason));
    EXPECT_EQ(std::filesystem::exists(backup(arguments[0])), was_there);
  }
  static const json& file(const json& result, const std::string& name) {
    for (const json& entry : result["files"]) {
      if (entry["path"].get<std::string>().ends_with("/" + name)) return entry;
    }
    ADD_FAILURE() << name;
    return result;
  }
  // What the machine is made of, by its path.
  static std::map<std::string, std::string> machine(const HostDirectory& host) {
    std::map<std::string, std::string> all;
    for (const auto& [path, contents] : host.contents()) {
      if (path.find("/varve/") == std::string::npos) all[path] = contents;
    }
    return all;
  }
  // The import of that export is the machine as it is now, to the last byte.
  void expect_comes_back(const std::string& name, const std::vector<std::string>& more = {}) const {
    const HostDirectory other;
    std::vector<std::string> arguments = {"vm", "import", backup(name)};
    arguments.insert(arguments.end(), more.begin(), more.end());
    other.varve_ok(arguments);
    expect_same(other);
  }
  void expect_same(const HostDirectory& other) const {
    EXPECT_TRUE(machine(other) == machine(host_));
    EXPECT_EQ(other.varve_json({"verify", kName})["status"], "ok");
    EXPECT_EQ(other.varve_ok({"snapshot", "list", kName, "--tree"}),
              host_.varve_ok({"snapshot", "list", kName, "--tree"}));
    for (const std::string& one : {image(), second_image()}) {
      if (std::filesystem::exists(other.image(one))) other.expect_clean(one);
    }
  }
  void check_sums(const std::string& name) const {
    RunOptions there;
    there.working_directory = backup(name);
    run_ok({"sha256sum", "--strict", "-c", std::string(kName) + ".sha256"}, there);
  }
  void expect_converted(const std::string& name, const std::string& file) const {
    run_ok({"qemu-img", "check", delta(name, file)});
    const std::string out = dir_ / "converted";
    run_ok({"qemu-img", "convert", "-O", "raw", delta(name, file), out});
    std::filesystem::resize_file(out, std::filesystem::file_size(host_.image(file)));
    run_ok({"cmp", out, host_.image(file)});
  }

  HostDirectory host_;
  TempDir dir_;
};

}  // namespace varve::test
