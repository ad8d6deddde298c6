// SPDX-License-Identifier: Apache-2.0
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <malloc.h>
#include <omp.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <new>
#include <set>
#include <sstream>
#include <utility>

#include "base/error.h"
#include "device/device.h"

namespace fettle::device {
namespace {

/// The first line of a file of the kernel, empty if it cannot be read.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

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

/// Whole CPUs of the control group's quota (cgroup v2 "<microseconds> <period>" or "max <period>"), rounded up.
int64_t quota_cores() {
  std::istringstream limit(first_line("/sys/fs/cgroup/cpu.max"));
  double quota = 0;
  double period = 0;
  if (!(limit >> quota >> period) || quota <= 0 || period <= 0) return INT64_MAX;
  return static_cast<int64_t>(std::ceil(quota / period));
}

/// Whether the launcher gave this process cores of its own (mpirun --bind-to, srun --cpu-bind): fewer than the launcher
/// itself may use.
bool is_bound_by_launcher() {
  cpu_set_t own;
  cpu_set_t parents;
  return ::sched_getaffinity(0, sizeof(own), &own) == 0 &&
         ::sched_getaffinity(::getppid(), sizeof(parents), &parents) == 0 && CPU_COUNT(&own) < CPU_COUNT(&parents);
}

/// A handle to the generator that ATen's random functions use when they are given none.
at::Generator generator() {
  return at::detail::getDefaultCPUGenerator();
}

/// A step frees what the next one needs again. By default glibc hands large blocks back to the kernel, which clears
/// their pages anew at every step: a fifth of the time of full fine-tuning, a twentieth of LoRA's. The peak is the
/// same.
void keep_freed_memory() {
  ::mallopt(M_MMAP_MAX, 0);  // large blocks from the heap too
  ::mallopt(M_TRIM_THRESHOLD, -1);
}

}  // namespace

Processor parse_processor(std::string_view cpuinfo) {
  Processor processor;
  std::istringstream text{std::string(cpuinfo)};
  std::set<std::string> flags;
  for (std::string line; std::getline(text, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 > line.size()) continue;
    if (line.starts_with("model name")) processor.name = line.substr(colon + 2);
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(colon + 2));
    for (std::string word; words >> word;) flags.insert(word);
    break;
  }
  if (flags.contains("avx2")) processor.vector_instructions = "AVX2";
  if (flags.contains("avx512f")) processor.vector_instructions = "AVX-512";
  processor.bf16_instructions = flags.contains("avx512_bf16") || flags.contains("amx_bf16");
  return processor;
}

int64_t usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof(mask), &mask) != 0) return 1;
  std::set<std::string> cores;  // a core is named by the list of its hardware threads
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string siblings =
        first_line(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
  }
  return std::clamp<int64_t>(static_cast<int64_t>(cores.size()), 1, quota_cores());
}

std::string Device::description() const {
  return fmt::format("cpu: {}, {} thread{}, {}, {} bf16 instructions", processor.name, threads, threads == 1 ? "" : "s",
                     processor.vector_instructions, processor.bf16_instructions ? "with" : "without");
}

Device start(const config::DeviceConfig& options, int64_t processes) {
  if (options.device != "auto" && options.device != "cpu") {
    throw Error(ExitCode::kUsage, fmt::format("device: there is no '{}' in this build", options.device),
                "use device=cpu or auto");
  }
  if (options.num_threads < 0) {
    throw Error(ExitCode::kUsage, fmt::format("num_threads is {}", options.num_threads), "use 0 for all cores");
  }
  std::ifstream file("/proc/cpuinfo");
  std::stringstream cpuinfo;
  cpuinfo << file.rdbuf();
  Device device;
  device.processor = parse_processor(cpuinfo.str());
  const int64_t sharers = processes > 1 && is_bound_by_launcher() ? 1 : processes;
  device.threads = options.num_threads > 0 ? options.num_threads : std::max<int64_t>(1, usable_cores() / sharers);
  at::set_num_threads(static_cast<int>(device.threads));
  // oneDNN keeps a compiled kernel for every length of a batch that it meets, by default 1,024 of them: half a gigabyte
  // where batches differ. A step needs some 40.
  ::setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "160", /*overwrite=*/0);
  keep_freed_memory();
  return device;
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
  generator().set_current_seed(value);
}

int64_t machine_memory_bytes() {
  const int64_t machine = kernel_bytes("/proc/meminfo", "MemTotal:");
  int64_t group = 0;
  const bool limited = static_cast<bool>(std::istringstream(first_line("/sys/fs/cgroup/memory.max")) >> group);
  return limited && group > 0 ? std::min(group, machine) : machine;
}

int64_t memory_bytes() {
  return kernel_bytes("/proc/self/status", "VmRSS:");
}

int64_t peak_memory_bytes() {
  return kernel_bytes("/proc/self/status", "VmHWM:");
}

bool is_out_of_memory(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  const auto* general = dynamic_cast<const c10::Error*>(&error);  // what the allocator of the CPU throws
  return general != nullptr &&
         std::string(general->what_without_backtrace()).find("DefaultCPUAllocator") != std::string::npos;
}

double measure_matmul_peak(at::ScalarType type) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kSize = 1024;
  constexpr double kSeconds = 0.2;
  const c10::NoGradGuard no_gradients;
  const at::Tensor left = at::ones({kSize, kSize}, type);
  const at::Tensor right = at::ones({kSize, kSize}, type);
  at::mm(left, right);  // the first product also builds oneDNN's kernel
  double best = 0;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    at::mm(left, right);
    const std::chrono::duration<double> elapsed = Clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / elapsed.count());
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < kSeconds);
  return best;
}

}  // namespace fettle::device
