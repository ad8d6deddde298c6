// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;

// Those who wait for each other. The n-th wait of a member is over when all have begun it; what they exchange in it
// stays until the wait after the next.
struct Group {
  uint64_t arrivals = 0;
  std::array<std::array<uint32_t, kWarp>, 2> values{};
};

struct Fiber {
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack != nullptr) munmap(stack, kStackBytes);
  }

  ucontext_t context{};
  void* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  unsigned index = 0;          // in the block
  bool done = true;
  uint64_t block_waits = 0;
  uint64_t warp_waits = 0;
  const Group* waits_for = nullptr;
  uint64_t until = 0;  // so many arrivals

  [[nodiscard]] bool can_go_on() const { return !done && (waits_for == nullptr || waits_for->arrivals >= until); }
};

// The only one: kernels run on the thread that launches them, one at a time.
struct Machine {
  ucontext_t scheduler{};
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* running = nullptr;
  const std::function<void()>* thread = nullptr;
  std::exception_ptr failure;
  Group block;
  std::array<Group, kMostThreads / kWarp> warps;
  unsigned threads = 0;
};
Machine machine;

// AddressSanitizer is told of every change of stacks.
void leave_for([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}
void arrive([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** stack, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, stack, bytes);
#endif
}

void resume(Fiber& fiber) {
  threadIdx = dim3(fiber.index % blockDim.x, fiber.index / blockDim.x);
  machine.running = &fiber;
  leave_for(&machine.scheduler_fake_stack, fiber.stack, kStackBytes);
  swapcontext(&machine.scheduler, &fiber.context);
  arrive(machine.scheduler_fake_stack, nullptr, nullptr);
}

void yield() {
  Fiber& fiber = *machine.running;
  leave_for(&fiber.fake_stack, machine.scheduler_stack, machine.scheduler_stack_bytes);
  swapcontext(&fiber.context, &machine.scheduler);
  arrive(fiber.fake_stack, &machine.scheduler_stack, &machine.scheduler_stack_bytes);  // perhaps another thread's
}

void work() {
  arrive(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_bytes);
  while (true) {
    try {
      (*machine.thread)();
    } catch (...) {
      machine.failure = std::current_exception();
    }
    machine.running->done = true;
    yield();
  }
}

void add_fiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->index = static_cast<unsigned>(machine.fibers.size());
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  fiber->stack = stack;
  getcontext(&fiber->context);
  fiber->context.uc_stack = {.ss_sp = fiber->stack, .ss_flags = 0, .ss_size = kStackBytes};
  makecontext(&fiber->context, work, 0);
  machine.fibers.push_back(std::move(fiber));
}

void wait(Group& group, uint64_t until) {
  machine.running->waits_for = &group;
  machine.running->until = until;
  while (!machine.running->can_go_on()) yield();
}

// Runs the threads of a warp until all have ended or wait for other warps: a warp that runs ahead of the others shows
// what only a barrier may order. Returns whether any ran.
bool run_warp(unsigned warp, unsigned& left) {
  bool ran = false;
  for (bool progress = true; progress; ran = ran || progress) {
    progress = false;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      Fiber& fiber = *machine.fibers[warp * kWarp + (schedule.last_thread_first ? kWarp - 1 - lane : lane)];
      if (!fiber.can_go_on()) continue;
      resume(fiber);
      progress = true;
      left -= fiber.done ? 1 : 0;
      if (machine.failure != nullptr) std::rethrow_exception(std::exchange(machine.failure, nullptr));
    }
  }
  return ran;
}

void run_block() {
  machine.block = {};
  machine.warps = {};
  for (unsigned i = 0; i < machine.threads; ++i) {
    Fiber& fiber = *machine.fibers[i];
    fiber.done = false;
    fiber.block_waits = fiber.warp_waits = 0;
    fiber.waits_for = nullptr;
  }
  unsigned left = machine.threads;
  while (left > 0) {
    bool progress = false;
    for (unsigned i = 0; i < machine.threads; i += kWarp) {
      const unsigned warp = schedule.last_thread_first ? machine.threads / kWarp - 1 - i / kWarp : i / kWarp;
      progress = run_warp(warp, left) || progress;
    }
    if (!progress) {
      throw std::logic_error("CUDA emulation: threads wait for others that have ended or wait elsewhere");
    }
  }
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const unsigned threads = config.blockDim.x * config.blockDim.y * config.blockDim.z;
  const dim3 grid = config.gridDim;
  if (threads == 0 || threads > kMostThreads || threads % kWarp != 0 || config.blockDim.z != 1 || grid.x == 0 ||
      grid.y == 0 || grid.y > 65535 || grid.z != 1) {
    return cudaErrorInvalidConfiguration;
  }
  ++launches;
  last_stream = config.stream;
  while (machine.fibers.size() < threads) add_fiber();
  machine.thread = &thread;
  machine.threads = threads;
  blockDim = config.blockDim;
  gridDim = dim3(std::min(grid.x, schedule.most_blocks), grid.y);
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y);
      try {
        run_block();
      } catch (...) {
        machine.fibers.clear();  // some stand in the middle of the kernel
        throw;
      }
    }
  }
  return cudaSuccess;
}

void wait_for_block() {
  ++machine.block.arrivals;
  wait(machine.block, ++machine.running->block_waits * machine.threads);
}

uint32_t exchange(unsigned lanes, uint32_t value, int lane_mask) {
  if (lanes != UINT32_MAX) throw std::logic_error("CUDA emulation: only whole warps exchange values");
  Group& warp = machine.warps[machine.running->index / kWarp];
  const unsigned lane = machine.running->index % kWarp;
  auto& values = warp.values[machine.running->warp_waits % 2];
  values[lane] = value;
  ++warp.arrivals;
  wait(warp, ++machine.running->warp_waits * kWarp);
  return values[lane ^ static_cast<unsigned>(lane_mask)];
}

}  // namespace cuda_emulation

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
