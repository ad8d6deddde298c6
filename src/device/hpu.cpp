// SPDX-License-Identifier: Apache-2.0
#include "device/hpu.h"

#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>

#include "base/environment.h"
#include "base/error.h"
#include "base/log.h"

namespace fettle::device {
namespace fs = std::filesystem;
namespace {

constexpr const char* kBridge =
    "libhabana_pytorch_plugin.so";  // the lazy one; with a 2 in its name it is the eager one
constexpr const char* kKernels = "/usr/lib/habanalabs/libtpc_kernels.so";
constexpr const char* kInImage = "use the image that `make image TARGET=hpu` builds, or device=cpu";

std::string first_line(const fs::path& file) {
  std::ifstream text(file);
  std::string line;
  std::getline(text, line);
  return line;
}

/// __version__ of torch's version.py, e.g. 2.10.0+hpu_1.24.0-543.git1234567; empty if there is none.
std::string torch_version(const fs::path& torch) {
  std::ifstream text(torch / "version.py");
  for (std::string line; std::getline(text, line);) {
    if (!line.starts_with("__version__")) continue;
    const size_t begin = line.find_first_of("'\"");
    const size_t end = line.find_last_of("'\"");
    if (begin < end) return line.substr(begin + 1, end - begin - 1);
  }
  return {};
}

std::string major_minor(std::string_view version) {
  const size_t minor = version.find('.');
  return std::string(version.substr(0, version.find('.', minor == std::string_view::npos ? minor : minor + 1)));
}

/// The vendor's build says so in the local part of its version.
bool is_vendors(std::string_view version) {
  const size_t plus = version.find('+');
  const std::string_view local = plus == std::string_view::npos ? std::string_view() : version.substr(plus + 1);
  return local.starts_with("git") || local.starts_with("hpu");
}

/// The numbers of a list like "2,3,6,7". Throws Error{kConfig} for anything else, or a number that is there twice.
std::vector<std::string> modules_of(const std::string& list) {
  std::vector<std::string> modules;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) {
    std::erase(part, ' ');
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::ranges::find(modules, part) != modules.end()) {
      throw Error(ExitCode::kConfig, fmt::format("device: HABANA_VISIBLE_MODULES is '{}'", list),
                  "give different numbers of cards with commas between them, or leave it to the device plugin");
    }
    modules.push_back(part);
  }
  return modules;
}

bool can_write(const fs::path& folder) {
  std::error_code failed;
  fs::create_directories(folder, failed);
  return ::access(folder.c_str(), W_OK) == 0;
}

/// The card of one of several processes; one alone takes any that is free.
std::string module_of(const Environment& environment, const Place& place) {
  const std::vector<std::string> modules = modules_of(environment("HABANA_VISIBLE_MODULES").value_or(""));
  if (modules.empty()) return std::to_string(place.index);
  if (place.index >= std::ssize(modules)) {
    throw Error(ExitCode::kConfig,
                fmt::format("device: {} processes on this machine, which has {} of its Gaudi cards to offer "
                            "(HABANA_VISIBLE_MODULES={})",
                            place.processes, modules.size(), *environment("HABANA_VISIBLE_MODULES")),
                "start one process a card");
  }
  return modules[static_cast<size_t>(place.index)];
}

void* open_library(const std::string& library, int flags) {
  return ::dlopen(library.c_str(), flags);
}

std::string loader_error() {
  const char* reason = ::dlerror();
  return reason == nullptr ? "?" : reason;
}

/// The bridge ends the process where this one is missing.
void require_runtime_library() {
  if (open_library("libSynapse.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  throw Error(ExitCode::kUsage, fmt::format("device: Gaudi's runtime library cannot be loaded: {}", loader_error()),
              fmt::format("/usr/lib/habanalabs has to be in LD_LIBRARY_PATH; {}", kInImage));
}

/// The bridge is made for Python and may not name the library that it needs of it.
bool load_python(const fs::path& bridge) {
  for (const fs::path& part : bridge) {
    const std::string name = part.string();
    if (name.starts_with("python3.") &&
        open_library(fmt::format("lib{}.so.1.0", name), RTLD_NOW | RTLD_GLOBAL) != nullptr)
      return true;
  }
  return false;
}

void load_bridge(const HpuFolders& folders) {
  const fs::path library = folders.bridge / "lib" / kBridge;
  if (!fs::exists(library)) {
    throw Error(ExitCode::kUsage, fmt::format("device: there is no Gaudi bridge: {} is missing", library.string()),
                kInImage);
  }
  require_bridge_fits(folders);
  require_runtime_library();
  // By its full path, once: a second copy would register the same operators again.
  if (open_library(library, RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
  std::string reason = loader_error();
  if (reason.find("undefined symbol: Py") != std::string::npos && load_python(folders.bridge)) {
    if (open_library(library, RTLD_NOW | RTLD_GLOBAL) != nullptr) return;
    reason = loader_error();
  }
  throw Error(ExitCode::kUsage, fmt::format("device: {} cannot be loaded: {}", library.string(), reason), kInImage);
}

/// Compiling anew takes so long that without a home it is the temporary folder.
fs::path graphs_cache() {
  const fs::path folder = cache_folder();
  return folder.empty() ? fs::path("/tmp/.cache/fettle") : folder;
}

}  // namespace

HpuFolders hpu_folders() {
  fs::path bridge;
  Dl_info library{};
  if (const auto given = process_environment("FETTLE_HPU_BRIDGE"); given && !given->empty()) {
    bridge = *given;
  } else if (::dladdr(reinterpret_cast<const void*>(&c10::GetCPUAllocator), &library) != 0) {  // of libc10.so
    const fs::path packages = fs::canonical(library.dli_fname).parent_path().parent_path().parent_path();
    bridge = packages / "habana_frameworks" / "torch";
  }
  return {bridge.parent_path().parent_path() / "torch", bridge};
}

std::vector<HpuVariable> hpu_variables(const Environment& environment, const Place& place, const fs::path& cache) {
  std::vector<HpuVariable> variables{{"PT_HPU_LAZY_MODE", "1", /*overrides=*/true},
                                     {"RDMAV_FORK_SAFE", "1"},
                                     {"ID", environment("RANK").value_or(std::to_string(place.index))}};
  if (place.processes > 1 && !environment("HLS_MODULE_ID")) {
    variables.push_back({"HLS_MODULE_ID", module_of(environment, place)});
  }
  if (fs::exists(kKernels)) variables.push_back({"GC_KERNEL_PATH", kKernels});
  const fs::path recipes = cache / "hpu-recipes";
  if (recipes.string().find(',') == std::string::npos && can_write(recipes)) {  // path, delete at start, MiB
    variables.push_back({"PT_HPU_RECIPE_CACHE_CONFIG", recipes.string() + ",false,8192"});
  }
  const auto logs = environment("HABANA_LOGS");
  if (!logs || !can_write(*logs)) {
    variables.push_back({"HABANA_LOGS", (fs::temp_directory_path() / "habana_logs").string(), /*overrides=*/true});
  }
  return variables;
}

void require_bridge_fits(const HpuFolders& folders) {
  const std::string required = first_line(folders.bridge / "required_version.txt");
  const std::string used = torch_version(folders.torch);
  if (!used.empty() && major_minor(used) != major_minor(TORCH_VERSION)) {
    throw Error(ExitCode::kUsage,
                fmt::format("device: this program is compiled for torch {}, and {} holds torch {}", TORCH_VERSION,
                            folders.torch.string(), used),
                kInImage);
  }
  if (!required.empty() && major_minor(required) != major_minor(TORCH_VERSION)) {
    throw Error(ExitCode::kUsage,
                fmt::format("device: the Gaudi bridge in {} is made for torch {}, not {}", folders.bridge.string(),
                            required, used.empty() ? TORCH_VERSION : used),
                kInImage);
  }
  if (!used.empty() && !is_vendors(used)) {
    throw Error(
        ExitCode::kUsage,
        fmt::format("device: torch {} is not the vendor's build, without which the bridge has no lazy mode", used),
        "build the image from Gaudi's pytorch-installer, not from pytorch-upstream-installer");
  }
}

HpuMachine look_at_machine(const fs::path& root) {
  HpuMachine machine;
  std::error_code none;
  machine.has_driver = fs::exists(root / "sys/module/habanalabs", none);
  // Other vendors' devices are below accel too.
  for (const char* folder : {"sys/class/accel", "sys/class/habanalabs"}) {
    for (const auto& entry : fs::directory_iterator(root / folder, none)) {
      const fs::path device = fs::exists(entry.path() / "device_type", none) ? entry.path() : entry.path() / "device";
      const std::string type = first_line(device / "device_type");
      if (!type.starts_with("GAUDI")) continue;
      machine.has_driver = true;
      machine.type = type;
    }
  }
  for (const auto& entry : fs::directory_iterator(root / "dev/accel", none)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("accel") && !name.starts_with("accel_")) ++machine.cards;
  }
  std::ifstream memory(root / "proc/meminfo");
  for (std::string line; std::getline(memory, line);) {
    if (line.starts_with("HugePages_Free:")) machine.free_hugepages = std::strtoll(line.c_str() + 15, nullptr, 10);
  }
  return machine;
}

Error explain_acquire_failure(const std::string& reason, const HpuMachine& machine) {
  const std::string said = fmt::format("(the bridge says: {})", reason.substr(0, reason.find('\n')));
  const auto says = [&](const char* words) { return reason.find(words) != std::string::npos; };
  if (says("Wrong PT plugin")) {
    return {ExitCode::kUsage, fmt::format("device: the Gaudi bridge runs in another mode than the lazy one {}", said),
            "see that nothing else loads or configures it"};
  }
  if (says("No devices found") && !machine.has_driver) {
    return {ExitCode::kUnavailable, fmt::format("device: this machine has no Gaudi driver {}", said),
            "load the habanalabs kernel module (hl-smi shows the cards), or use device=cpu"};
  }
  if (says("No devices found")) {
    return {ExitCode::kUnavailable, fmt::format("device: no Gaudi card is visible to this process {}", said),
            "in Kubernetes ask for habana.ai/gaudi; with docker use --runtime=habana and HABANA_VISIBLE_DEVICES"};
  }
  if (says("host memory") || says("synStatus=3 ")) {
    return {ExitCode::kUnavailable,
            fmt::format("device: Gaudi's driver gets no memory of the machine; {} huge pages of 2 MiB are free {}",
                        machine.free_hugepages, said),
            "give the pod hugepages-2Mi (about 4400Mi a card), or the machine vm.nr_hugepages"};
  }
  return {ExitCode::kUnavailable,
          fmt::format("device: no Gaudi card can be acquired; {} are here {}", machine.cards, said),
          "see hl-smi: another process may hold it, or it is in reset; each process takes a card of its own"};
}

void load_hpu(const Place& place) {
  for (const HpuVariable& variable : hpu_variables(process_environment, place, graphs_cache())) {
    ::setenv(variable.name.c_str(), variable.value.c_str(), variable.overrides ? 1 : 0);
  }
  // The bridge expects that the folder is there.
  const std::string recipes = process_environment("PT_HPU_RECIPE_CACHE_CONFIG").value_or("");
  if (!can_write(recipes.substr(0, recipes.find(',')))) {
    log::warning("compiled graphs are not kept, so that every start compiles for minutes: {} cannot be used",
                 recipes.empty() ? (graphs_cache() / "hpu-recipes").string() : "PT_HPU_RECIPE_CACHE_CONFIG=" + recipes);
  }
  load_bridge(hpu_folders());
  try {
    c10::impl::VirtualGuardImpl(at::kHPU).getDevice();  // here, where it can be explained, and not at the first tensor
  } catch (const c10::Error& error) {
    throw explain_acquire_failure(error.what_without_backtrace(), look_at_machine());
  } catch (const std::exception& error) {  // it reads more of the environment than is known here
    throw explain_acquire_failure(error.what(), look_at_machine());
  }
}

int64_t hpu_memory_bytes(const std::string& type) {
  constexpr int64_t kGigabyte = 1'000'000'000;
  if (type.starts_with("GAUDI3")) return 128 * kGigabyte;
  if (type.starts_with("GAUDI2")) return 96 * kGigabyte;
  return type.starts_with("GAUDI") ? 32 * kGigabyte : 0;
}

int64_t cached_graphs(const Environment& environment) {
  const std::string config = environment("PT_HPU_RECIPE_CACHE_CONFIG").value_or("");
  const fs::path folder = config.substr(0, config.find(','));
  if (folder.empty()) return -1;
  std::set<std::string> graphs;  // a recipe and what belongs to it share a name
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    graphs.insert(entry.path().filename().string().substr(0, entry.path().filename().string().find('.')));
  }
  return std::ssize(graphs);
}

}  // namespace fettle::device
