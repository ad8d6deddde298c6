// SPDX-License-Identifier: Apache-2.0
#include "device/device.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <malloc.h>
#include <omp.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <sstream>
#include <string>

#include "base/environment.h"
#include "base/error.h"
#include "device/cuda.h"
#include "device/hpu.h"

namespace fettle::device {
namespace {

/// The value of "<key> <n> kB" in a file of the kernel, in bytes; 0 if there is none.
int64_t kernel_bytes(const char* path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    std::istringstream value(line.substr(key.size()));
    int64_t kibibytes = 0;
    value >> kibibytes;
    return kibibytes * 1024;
  }
  return 0;
}

/// Whether the launcher gave this process cores of its own (mpirun --bind-to, srun --cpu-bind): fewer than the launcher
/// itself may use.
bool is_bound_by_launcher() {
  cpu_set_t own;
  cpu_set_t parents;
  return ::sched_getaffinity(0, sizeof(own), &own) == 0 &&
         ::sched_getaffinity(::getppid(), sizeof(parents), &parents) == 0 && CPU_COUNT(&own) < CPU_COUNT(&parents);
}

/// A step frees what the next one needs again. By default glibc hands large blocks back to the kernel, which clears
/// their pages anew at every step: a fifth of the time of full fine-tuning, a twentieth of LoRA's. The peak is the
/// same.
void keep_freed_memory() {
  ::mallopt(M_MMAP_MAX, 0);  // large blocks from the heap too
  ::mallopt(M_TRIM_THRESHOLD, -1);
}

/// By way of torch's public interface: where an event is recorded, the bridge ends a graph and launches it.
c10::Event record_event(at::Device device) {
  c10::Event event(device.type());
  event.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  return event;
}

/// Statistics of torch's allocator, of all kinds of blocks.
c10::CachingDeviceAllocator::Stat allocated(at::Device device) {
  const auto stats = at::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

/// 0 with torch 2.9, whose allocators do not tell.
template <typename Allocator>
int64_t total_memory(Allocator& allocator, at::DeviceIndex index) {
  if constexpr (requires { allocator.getMemoryInfo(index); }) {
    return static_cast<int64_t>(allocator.getMemoryInfo(index).second);
  } else {
    return 0;
  }
}

}  // namespace

std::string Device::description() const {
  if (!torch_device.is_cpu()) {
    const auto memory = static_cast<double>(memory_capacity_bytes(torch_device));
    return fmt::format("{}{}{}; {}, {} thread{}", torch_device.str(), card.empty() ? "" : ", " + card,
                       memory > 0 ? fmt::format(", {:.1f} GB of memory", memory / 1e9) : "", processor.name, threads,
                       threads == 1 ? "" : "s");
  }
  return fmt::format("cpu: {}, {} thread{}, {}, {} bf16 instructions", processor.name, threads, threads == 1 ? "" : "s",
                     processor.vector_instructions, processor.bf16_instructions ? "with" : "without");
}

Device start(const config::DeviceConfig& options, const Place& place) {
  if (options.num_threads < 0) {
    throw Error(ExitCode::kUsage, fmt::format("num_threads is {}", options.num_threads), "use 0 for all cores");
  }
  std::ifstream file("/proc/cpuinfo");
  std::stringstream cpuinfo;
  cpuinfo << file.rdbuf();
  Device device;
  device.processor = parse_processor(cpuinfo.str());
  const int64_t sharers = place.processes > 1 && is_bound_by_launcher() ? 1 : place.processes;
  device.threads = options.num_threads > 0 ? options.num_threads : std::max<int64_t>(1, usable_cores() / sharers);
  at::set_num_threads(static_cast<int>(device.threads));
  // oneDNN keeps a compiled kernel for every length of a batch that it meets, and torch keeps it too, by default 1,024
  // of them each: half a gigabyte where batches differ. A step needs some 40.
  for (const char* cache : {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}) {
    ::setenv(cache, "96", /*overwrite=*/0);
  }
  keep_freed_memory();
  return device;
}

at::DeviceType wanted(const config::DeviceConfig& options) {
  if (options.device == "cpu") return at::kCPU;
  if (options.device == "cuda") return at::kCUDA;
  if (options.device == "hpu") return at::kHPU;
  if (options.device != "auto") {
    throw Error(ExitCode::kUsage, fmt::format("device: there is no '{}'", options.device),
                "use device=cpu, cuda, hpu or auto");
  }
  if (std::filesystem::exists("/proc/driver/nvidia/version")) return at::kCUDA;
  const HpuMachine machine = look_at_machine();
  return machine.cards > 0 && !machine.type.empty() ? at::kHPU : at::kCPU;
}

void choose_accelerator(Device& device, at::DeviceType type, const Place& place) {
  if (type == at::kHPU) {
    load_hpu(place);
    device.torch_device = at::Device(at::kHPU, 0);  // each process sees one
    device.card = look_at_machine().type;
    return;
  }
  // Batches differ in length: blocks that can grow leave fewer holes.
  ::setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True", /*overwrite=*/0);
  const CudaLibraries cuda = load_cuda();
  // Under a launcher that shows each process its own, their numbers begin anew. Whether two have one is asked later.
  device.torch_device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(place.index % cuda.gpus));
  device.cuda_kernels = cuda.kernels;
}

void work_in_background() {
  constexpr int kNice = 10;                           // a tenth of a core where training needs all
  const auto thread = static_cast<id_t>(::gettid());  // on Linux a thread has a priority of its own
  ::setpriority(PRIO_PROCESS, thread,
                ::getpriority(PRIO_PROCESS, thread) + kNice);  // where it fails, the thread only competes
  at::init_num_threads();
  omp_set_num_threads(1);  // of this thread's parallel regions
}

void seed(uint64_t value) {
  at::Generator cpu = at::detail::getDefaultCPUGenerator();
  cpu.set_current_seed(value);
  for (const at::DeviceType type : {at::kCUDA, at::kHPU}) {
    if (type == at::kCUDA ? !at::globalContext().hasCUDA() : !at::globalContext().hasHPU()) continue;
    at::Generator generator = at::globalContext().defaultGenerator(type);  // of the current device
    generator.set_current_seed(value);
  }
}

int64_t memory_capacity_bytes(at::Device device) {
  if (device.is_hpu()) return hpu_memory_bytes(look_at_machine().type);
  if (!device.is_cpu()) {
    return total_memory(*at::getDeviceAllocator(device.type()), device.index());
  }
  int64_t capacity = kernel_bytes("/proc/meminfo", "MemTotal:");
  for (const char* file : {"memory.max", "memory/memory.limit_in_bytes"}) {  // of a control group, version 2 and 1
    int64_t limit = 0;
    if (std::ifstream(std::string("/sys/fs/cgroup/") + file) >> limit && limit > 0)
      capacity = std::min(capacity, limit);
  }
  return capacity;
}

int64_t memory_bytes(at::Device device) {
  if (device.is_hpu()) return 0;  // the bridge keeps no statistics, and takes all memory at once
  if (!device.is_cpu()) return allocated(device).current;
  return kernel_bytes("/proc/self/status", "VmRSS:");
}

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_hpu()) return 0;
  if (!device.is_cpu()) return allocated(device).peak;
  return kernel_bytes("/proc/self/status", "VmHWM:");
}

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const auto* general = dynamic_cast<const c10::Error*>(&error);
  if (general == nullptr) return false;
  const std::string what = general->what_without_backtrace();
  // The allocators of the CPU and of the Gaudi bridge; synStatus 4: out of device memory.
  return what.find("DefaultCPUAllocator") != std::string::npos || what.find("synStatus=4 ") != std::string::npos ||
         (what.find("Allocation failed for size") != std::string::npos && at::globalContext().hasHPU());
}

bool is_device_failure(const std::exception& error) {
  if (dynamic_cast<const c10::AcceleratorError*>(&error) != nullptr) return true;
  const auto* general = dynamic_cast<const c10::Error*>(&error);  // all that the Gaudi bridge has
  return general != nullptr && std::string(general->what_without_backtrace()).find("synStatus=") != std::string::npos;
}

void synchronize(at::Device device) {
  if (compiles_graphs(device)) {
    record_event(device).synchronize();  // the bridge has neither synchronizeDevice nor synchronizeStream
  } else if (!device.is_cpu()) {
    c10::impl::getDeviceGuardImpl(device.type())->synchronizeDevice(device.index());
  }
}

bool compiles_graphs(at::Device device) {
  return device.is_hpu();
}

void mark_step(at::Device device) {
  if (compiles_graphs(device)) record_event(device);
}

int64_t compiled_graphs(at::Device device) {
  if (!compiles_graphs(device)) return -1;
  return cached_graphs(process_environment);
}

double measure_matmul_peak(at::ScalarType type, at::Device device) {
  using Clock = std::chrono::steady_clock;
  constexpr double kSeconds = 0.2;
  constexpr double kShort = 0.002;  // of a product that starting it may slow down: a larger one says more
  constexpr int64_t kLargest = 4096;
  const c10::NoGradGuard no_gradients;
  int64_t size = 1024;
  // Random numbers: a GPU multiplies equal ones faster than any that occur.
  const at::Tensor block = at::randn({size, size}, at::detail::createCPUGenerator(1)).to(device, type);
  at::Tensor left = block;
  const auto multiply = [&] {
    const auto start = Clock::now();
    const at::Tensor product = at::mm(left, left);  // kept: what nobody holds, a device that compiles graphs leaves out
    synchronize(device);
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  multiply();  // the first product also builds its kernel
  double best = 0;
  const auto begin = Clock::now();
  do {
    const double seconds = multiply();
    best = std::max(best, 2.0 * static_cast<double>(size * size * size) / seconds);
    if (seconds < kShort && size < kLargest) {
      size *= 2;
      left = block.repeat({size / block.size(0), size / block.size(0)});
      multiply();
    }
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < kSeconds);
  return best;
}

}  // namespace fettle::device
