#include "interop/host_directory.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

namespace varve::test {

HostDirectory::HostDirectory() : root_(directory_ / "host") {}

ProcessResult HostDirectory::varve(std::vector<std::string> arguments) const {
  arguments.insert(arguments.begin(), {VARVE_COMMAND, "-c", "dir:" + root_});
  return run(arguments);
}

std::string HostDirectory::varve_ok(const std::vector<std::string>& arguments) const {
  const ProcessResult result = varve(arguments);
  EXPECT_EQ(result.exit_code, 0) << testing::PrintToString(arguments) << "\n" << result.out << result.err;
  return result.out;
}

nlohmann::json HostDirectory::varve_json(std::vector<std::string> arguments) const {
  arguments.insert(arguments.begin(), "--json");
  const std::string out = varve_ok(arguments);
  const auto json = nlohmann::json::parse(out, nullptr, false);
  EXPECT_FALSE(json.is_discarded()) << out;
  return json;
}

void HostDirectory::make_domain(const std::string& name, int disks) const {
  std::vector<std::string> arguments = {"vm", "create", name, "--type", "qemu"};
  for (int i = 0; i < disks; ++i) arguments.insert(arguments.end(), {"--disk", "64M"});
  varve_ok(arguments);
}

void HostDirectory::fill(const std::string& file, int byte, int first_mib, int mib) const {
  run_ok({"qemu-io", "-f", "qcow2", "-c", fmt::format("write -P {} {}M {}M", byte, first_mib, mib), image(file)});
}

bool HostDirectory::is_filled(const std::string& file, int byte, int first_mib, int mib) const {
  const ProcessResult result =
      run({"qemu-io", "-f", "qcow2", "-c", fmt::format("read -P {} {}M {}M", byte, first_mib, mib), image(file)});
  EXPECT_EQ(result.err, "");
  return result.exit_code == 0 && result.out.find("verification failed") == std::string::npos;
}

void HostDirectory::expect_clean(const std::string& file) const {
  const ProcessResult result = run({"qemu-img", "check", "-f", "qcow2", image(file)});
  EXPECT_EQ(result.exit_code, 0) << file << "\n" << result.out << result.err;
}

std::vector<std::string> HostDirectory::points(const std::string& file) const {
  const auto info = nlohmann::json::parse(run_ok({"qemu-img", "info", "-f", "qcow2", "--output=json", image(file)}));
  std::vector<std::string> tags;
  for (const auto& snapshot : info.value("snapshots", nlohmann::json::array())) tags.push_back(snapshot["name"]);
  return tags;
}

uint64_t HostDirectory::occupied(const std::string& file) const {
  struct stat status{};
  EXPECT_EQ(::stat(image(file).c_str(), &status), 0) << image(file);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

std::map<std::string, std::string> HostDirectory::contents() const {
  std::map<std::string, std::string> found;
  if (!std::filesystem::exists(root_)) return found;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root_)) {
    const std::string path = entry.path().lexically_relative(root_).string();
    if (!entry.is_regular_file() || path.starts_with("var/lib/varve/lock")) continue;
    found[path] = fmt::format("{:o}:", static_cast<unsigned>(entry.status().permissions())) +
                  read_whole_file(entry.path().string());
  }
  return found;
}

}  // namespace varve::test
