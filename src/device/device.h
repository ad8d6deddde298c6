// SPDX-License-Identifier: Apache-2.0
/// The machine a run computes on: threads, random numbers, memory, and what the processor can do.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace fettle::device {

/// What /proc/cpuinfo says of the processor.
struct Processor {
  std::string name = "unknown processor";
  std::string vector_instructions = "none";  ///< the widest set that matters: AVX-512, AVX2 or none
  bool bf16_instructions = false;            ///< AVX512-BF16 or AMX-BF16: bf16 products run at full speed
};

/// Parses the text of /proc/cpuinfo.
Processor parse_processor(std::string_view cpuinfo);

/// The hardware threads in this process's affinity mask, each list those of one physical core; in the order of their
/// numbers.
std::vector<std::vector<int>> physical_cores();

/// Physical cores in this process's affinity mask, at most the CPU quota of its control group; at least 1. Two hardware
/// threads of a core count once: a matrix product gains nothing from the second.
int64_t usable_cores();

/// Whole CPUs of the quota of a control group, rounded up; INT64_MAX if it has none. `control_group`: where its files
/// are, of version 1 or 2.
int64_t quota_cores(const std::filesystem::path& control_group);

/// Where a process stands among those of its run on this machine.
struct Place {
  int64_t processes = 1;
  int64_t index = 0;
};

/// The device of a run.
struct Device {
  Processor processor;
  int64_t threads = 1;
  at::Device torch_device = at::kCPU;  ///< where tensors are computed with
  std::string card;                    ///< its type, of a Gaudi; empty where that is not known
  const void* cuda_kernels = nullptr;  ///< const ops::cuda::KernelTable* (this room does not know ops)

  /// One line for the log, e.g. "cpu: AMD EPYC, 2 threads, AVX-512, bf16 instructions".
  [[nodiscard]] std::string description() const;
};

/// Sets the process's thread counts from the options; where num_threads is 0, the processes of a run share the
/// machine's cores. Call once, before any tensor work. The device is the CPU until choose_accelerator.
Device start(const config::DeviceConfig& options, const Place& place = {});

/// What the options ask for: cpu, cuda or hpu; auto: cuda where NVIDIA's driver is, else hpu where a Gaudi is visible.
/// Throws Error{kUsage} for one that it does not know.
at::DeviceType wanted(const config::DeviceConfig& options);

/// Loads what the wanted accelerator needs and chooses the one of this process, each its own. Not of a CPU. Throws as
/// load_cuda and load_hpu.
void choose_accelerator(Device& device, at::DeviceType type, const Place& place);

/// The calling thread gives way to the others: lower priority, and its tensor work stays on it alone.
void work_in_background();

/// Seeds the generators that dropout and sampling draw from, of every device in use.
void seed(uint64_t value);

/// Memory of the machine, or of this process's control group if that has less; of an accelerator: its own. 0: not
/// known.
int64_t memory_capacity_bytes(at::Device device = at::kCPU);

/// Resident bytes of this process now, and the most since it started. On an accelerator: what is allocated there; 0
/// where it does not say.
int64_t memory_bytes(at::Device device = at::kCPU);
int64_t peak_memory_bytes(at::Device device = at::kCPU);

/// Waits until all that was asked of an accelerator is done.
void synchronize(at::Device device);

/// Whether a device collects operations into graphs, compiles each new one for seconds to minutes, and runs it at a
/// mark, or when a value is read: shapes and numbers that change are new graphs, and a read in between makes two of
/// one.
bool compiles_graphs(at::Device device);
/// Such a device runs what it has collected; the host goes on. Does nothing elsewhere.
void mark_step(at::Device device);
/// Graphs that such a device has compiled or found compiled, since its cache of them was empty; -1: not known.
int64_t compiled_graphs(at::Device device);

/// Whether an exception means that memory ran out, here or in libtorch.
bool is_out_of_memory(const std::exception& error);
/// Whether it means that an accelerator failed, which another one may not.
bool is_device_failure(const std::exception& error);

/// Floating-point operations per second of one large square matrix product in `type`, the best of a few tries; takes
/// about a fifth of a second. The ceiling that a model's own rate is compared with (MFU).
double measure_matmul_peak(at::ScalarType type, at::Device device = at::kCPU);

}  // namespace fettle::device
