// SPDX-License-Identifier: Apache-2.0
#include "device/cuda.h"

#include <ATen/Context.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace fettle::device {
namespace {

constexpr const char* kTorchLibrary = "libtorch_cuda.so";
constexpr const char* kKernelsLibrary = "libfettle_cuda.so";
constexpr const char* kKernelsFunction = "fettle_cuda_kernels";  // ops/cuda/kernels.h

// RTLD_GLOBAL: torch loads more of its own libraries by itself, which look for these symbols.
void* load(const std::filesystem::path& library) {
  void* handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const char* reason = ::dlerror();
    const bool lacks_another = reason != nullptr && std::strstr(reason, "cannot open shared object file") != nullptr;
    if (lacks_another && ::dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) {
      throw Error(ExitCode::kUnavailable, "device: this machine has no NVIDIA driver (libcuda.so.1)",
                  "use device=cpu, or a machine with a GPU (in a container: NVIDIA's runtime)");
    }
    throw Error(ExitCode::kUsage,
                fmt::format("device: {} cannot be loaded: {}", library.string(), reason == nullptr ? "?" : reason),
                "install torch with the CUDA libraries that it needs, or use device=cpu");
  }
  return handle;
}

std::filesystem::path find_kernels(const std::vector<std::filesystem::path>& folders) {
  for (const auto& folder : folders) {
    if (std::filesystem::exists(folder / kKernelsLibrary)) return folder / kKernelsLibrary;
  }
  throw Error(ExitCode::kUsage,
              fmt::format("device: there is no {} in {}: this build is without CUDA kernels", kKernelsLibrary,
                          folders.empty() ? "any folder" : folders.front().string()),
              "build it where nvcc is (tools/setup.sh cuda), or use device=cpu");
}

// The registry is asked and not torch's hooks: those answer the first question for ever, even one before loading.
int64_t count_gpus() {
  const auto type = c10::DeviceType::CUDA;
  return c10::impl::hasDeviceGuardImpl(type) ? c10::impl::getDeviceGuardImpl(type)->deviceCount() : 0;
}

}  // namespace

CudaFolders cuda_folders() {
  CudaFolders folders;
  Dl_info torch{};
  if (::dladdr(reinterpret_cast<const void*>(&at::globalContext), &torch) != 0) {
    folders.torch = std::filesystem::weakly_canonical(torch.dli_fname).parent_path();
  }
  const auto program = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  folders.kernels = {program, program.parent_path() / "lib"};
  return folders;
}

CudaLibraries load_cuda(const CudaFolders& folders) {
  if (const int64_t present = count_gpus(); present > 0) return {nullptr, present};
  const auto torch = folders.torch / kTorchLibrary;
  if (!std::filesystem::exists(torch)) {
    throw Error(ExitCode::kUsage,
                fmt::format("device: there is no {} beside libtorch_cpu.so in {}: this torch is without CUDA",
                            kTorchLibrary, folders.torch.string()),
                "use a torch that is built with CUDA, or device=cpu");
  }
  const auto kernels = find_kernels(folders.kernels);
  load(torch);
  const int64_t gpus = count_gpus();
  if (gpus == 0) {
    throw Error(ExitCode::kUnavailable, "device: no NVIDIA GPU is visible, or there is no driver for this CUDA version",
                "check nvidia-smi and CUDA_VISIBLE_DEVICES (in Kubernetes, nvidia.com/gpu), or use device=cpu");
  }
  if (!at::globalContext().hasCUDA()) {
    throw Error(ExitCode::kInternal, "device: torch was asked for CUDA before its library was loaded");
  }
  using Kernels = const void* (*)();
  auto* function = reinterpret_cast<Kernels>(::dlsym(load(kernels), kKernelsFunction));
  if (function == nullptr) {
    throw Error(ExitCode::kUsage,
                fmt::format("device: {} has no {}: another build's", kernels.string(), kKernelsFunction),
                "install the library of this build");
  }
  return {function(), gpus};
}

}  // namespace fettle::device
