// SPDX-License-Identifier: Apache-2.0
#include "device/hpu.h"

#include <gmock/gmock.h>
#include <torch/version.h>

#include <fstream>
#include <map>

#include "support/temporary_folder.h"

namespace fettle::device {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

using Variables = std::map<std::string, std::string>;

Environment reader(const Variables& variables) {
  return [&variables](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
  };
}

class Hpu : public ::testing::Test {
 protected:
  void write(const fs::path& file, const std::string& text) const {
    fs::create_directories((folder_.path() / file).parent_path());
    std::ofstream(folder_.path() / file) << text;
  }
  /// What the process sees: what it had, and what is set for the bridge.
  [[nodiscard]] Variables environment(Variables own, const Place& place = {}) const {
    Variables all = own;
    for (const HpuVariable& each : hpu_variables(reader(own), place, folder_.path() / "cache")) {
      if (each.overrides || !own.contains(each.name)) all[each.name] = each.value;
    }
    return all;
  }
  [[nodiscard]] HpuFolders folders() const { return {folder_.path() / "torch", folder_.path() / "bridge"}; }

  TemporaryFolder folder_;
};

template <typename Action>
Error error_of(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return {ExitCode::kOk, "no error"};
}

TEST_F(Hpu, RunsTheLazyModeWhateverIsSet) {
  EXPECT_EQ(environment({{"PT_HPU_LAZY_MODE", "0"}})["PT_HPU_LAZY_MODE"], "1");
  EXPECT_EQ(environment({})["PT_HPU_LAZY_MODE"], "1");
}

TEST_F(Hpu, EachOfSeveralProcessesHasItsCard) {
  EXPECT_EQ(environment({}, {.processes = 8, .index = 5})["HLS_MODULE_ID"], "5");
  // Of a part of a machine's cards, as a device plugin gives them.
  EXPECT_EQ(environment({{"HABANA_VISIBLE_MODULES", "2,3,6,7"}}, {.processes = 4, .index = 2})["HLS_MODULE_ID"], "6");
  EXPECT_EQ(environment({{"HLS_MODULE_ID", "1"}}, {.processes = 2, .index = 0})["HLS_MODULE_ID"], "1");
  EXPECT_FALSE(environment({{"HABANA_VISIBLE_MODULES", "3"}}).contains("HLS_MODULE_ID")) << "any that is free";
  const Error error = error_of([&] {
    static_cast<void>(environment({{"HABANA_VISIBLE_MODULES", "0,1"}}, {.processes = 8, .index = 2}));
  });
  EXPECT_EQ(error.code(), ExitCode::kConfig);
  EXPECT_THAT(error.what(), HasSubstr("8 processes on this machine, which has 2"));
}

TEST_F(Hpu, GraphsSurviveARestart) {
  const std::string made = environment({})["PT_HPU_RECIPE_CACHE_CONFIG"];
  EXPECT_EQ(made, (folder_.path() / "cache/hpu-recipes").string() + ",false,8192");
  EXPECT_TRUE(fs::is_directory(folder_.path() / "cache/hpu-recipes"));
  EXPECT_EQ(environment({{"PT_HPU_RECIPE_CACHE_CONFIG", "/data/r,false,9"}})["PT_HPU_RECIPE_CACHE_CONFIG"],
            "/data/r,false,9");
}

TEST_F(Hpu, LogsGoWhereTheyCanBeWritten) {
  EXPECT_NE(environment({{"HABANA_LOGS", "/proc/habana_logs"}})["HABANA_LOGS"], "/proc/habana_logs");
  const std::string usable = folder_.path() / "logs";
  EXPECT_EQ(environment({{"HABANA_LOGS", usable}})["HABANA_LOGS"], usable);
}

TEST_F(Hpu, CountsGraphsByTheirNames) {
  Variables variables;
  EXPECT_EQ(cached_graphs(reader(variables)), -1);
  variables["PT_HPU_RECIPE_CACHE_CONFIG"] = (folder_.path() / "recipes").string() + ",false,100";
  EXPECT_EQ(cached_graphs(reader(variables)), 0);
  write("recipes/17.recipe", "");
  write("recipes/17.metadata", "");
  write("recipes/18.recipe", "");
  EXPECT_EQ(cached_graphs(reader(variables)), 2);
}

TEST_F(Hpu, LooksForTheBridgeBesideTheTorchInUse) {
  EXPECT_TRUE(fs::exists(hpu_folders().torch / "version.py")) << hpu_folders().torch;
  EXPECT_EQ(hpu_folders().bridge.parent_path().parent_path(), hpu_folders().torch.parent_path());
}

TEST_F(Hpu, TakesTheVendorsTorchOfItsOwnVersionAlone) {
  const std::string version = TORCH_VERSION;
  const auto fails = [&] { return std::string(error_of([&] { require_bridge_fits(folders()); }).what()); };
  const auto torch = [&](const std::string& text) { write("torch/version.py", "__version__ = '" + text + "'\n"); };
  write("bridge/required_version.txt", version + "\n");
  torch(version + "+hpu_1.24.0-543.git1234567");
  EXPECT_EQ(fails(), "no error");
  torch(version + "a0+git1234567");
  EXPECT_EQ(fails(), "no error");
  torch(version + "+cpu");
  EXPECT_THAT(fails(), HasSubstr("is not the vendor's build"));
  torch("1.13.1+hpu_1.10");
  EXPECT_THAT(fails(), HasSubstr("holds torch 1.13.1+hpu_1.10"));
  torch(version + "+hpu");
  write("bridge/required_version.txt", "1.13.1\n");
  EXPECT_THAT(fails(), HasSubstr("made for torch 1.13.1"));
}

TEST_F(Hpu, SeesWhatTheMachineShows) {
  EXPECT_FALSE(look_at_machine(folder_.path()).has_driver);
  write("sys/class/accel/accel0/device/vendor", "an accelerator of another vendor\n");
  EXPECT_FALSE(look_at_machine(folder_.path()).has_driver);
  write("sys/class/accel/accel1/device/device_type", "GAUDI2\n");
  write("dev/accel/accel0", "");
  write("dev/accel/accel1", "");
  write("dev/accel/accel_controlD0", "");
  write("proc/meminfo", "MemTotal: 5 kB\nHugePages_Free:      12\n");
  const HpuMachine machine = look_at_machine(folder_.path());
  EXPECT_TRUE(machine.has_driver);
  EXPECT_EQ(machine.cards, 2);
  EXPECT_EQ(machine.type, "GAUDI2");
  EXPECT_EQ(machine.free_hugepages, 12);
  EXPECT_EQ(hpu_memory_bytes(machine.type), 96'000'000'000);
  EXPECT_EQ(hpu_memory_bytes(""), 0);
}

TEST_F(Hpu, EachFailureHasItsOwnMessage) {
  const std::string none = "synStatus=8 [No devices found] Device acquire failed. No devices found.";
  const std::string busy = "synStatus=26 [Generic failure] Device acquire failed.";
  const std::string memory = "synStatus=3 [Out of host memory] Device acquire failed.";
  const std::string mode = "Wrong PT plugin library loaded in the system. Expected LAZY, got EAGER.";
  const HpuMachine with_driver{.has_driver = true, .cards = 8};
  struct Case {
    std::string reason;
    HpuMachine machine;
    ExitCode code;
    const char* what;
    const char* hint;
  };
  const std::vector<Case> cases{{none, {}, ExitCode::kUnavailable, "no Gaudi driver", "habanalabs"},
                                {none, {.has_driver = true}, ExitCode::kUnavailable, "visible", "habana.ai/gaudi"},
                                {busy, with_driver, ExitCode::kUnavailable, "8 are here", "hl-smi"},
                                {memory, with_driver, ExitCode::kUnavailable, "huge pages", "hugepages-2Mi"},
                                {mode, with_driver, ExitCode::kUsage, "mode", "loads"}};
  for (const Case& c : cases) {
    const Error error = explain_acquire_failure(c.reason, c.machine);
    EXPECT_EQ(error.code(), c.code) << c.reason;
    EXPECT_THAT(error.what(), HasSubstr(c.what));
    EXPECT_THAT(error.what(), HasSubstr(c.reason));
    EXPECT_THAT(error.hint(), HasSubstr(c.hint));
  }
}

}  // namespace
}  // namespace fettle::device
