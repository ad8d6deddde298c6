// SPDX-License-Identifier: Apache-2.0
#include "device/device.h"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/rand.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <thread>

#include "base/error.h"
#include "support/temporary_folder.h"

namespace fettle::device {
namespace {

TEST(Processor, ReadsNameAndInstructions) {
  const Processor processor =
      parse_processor("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\n");
  EXPECT_EQ(processor.name, "Some CPU");
  EXPECT_EQ(processor.vector_instructions, "AVX-512");
  EXPECT_TRUE(processor.bf16_instructions);
}

TEST(Processor, WithoutFlagsHasNothing) {
  const Processor processor = parse_processor("Features : fp asimd\nflags:\n");
  EXPECT_EQ(processor.vector_instructions, "none");
  EXPECT_FALSE(processor.bf16_instructions);
}

TEST(QuotaCores, AreThoseOfBothVersionsOfControlGroups) {
  const auto cores = [](const std::vector<std::pair<const char*, const char*>>& files) {
    const TemporaryFolder folder;
    for (const auto& [name, content] : files) folder.write(name, content);
    return quota_cores(folder.path());
  };
  EXPECT_EQ(cores({{"cpu.max", "250000 100000\n"}}), 3);
  EXPECT_EQ(cores({{"cpu.max", "max 100000\n"}}), INT64_MAX);
  EXPECT_EQ(cores({{"cpu/cpu.cfs_quota_us", "50000\n"}, {"cpu/cpu.cfs_period_us", "100000\n"}}), 1);
  EXPECT_EQ(cores({{"cpu/cpu.cfs_quota_us", "-1\n"}, {"cpu/cpu.cfs_period_us", "100000\n"}}), INT64_MAX);
  EXPECT_EQ(cores({}), INT64_MAX);
}

TEST(Device, UsesNoMoreCoresThanTheAffinityMask) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(usable_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  EXPECT_GE(usable_cores(), 1);
  EXPECT_LE(usable_cores(), CPU_COUNT(&before));
}

TEST(Device, StartSetsThreads) {
  config::DeviceConfig options;
  options.num_threads = 1;
  EXPECT_EQ(start(options).threads, 1);
  EXPECT_EQ(at::get_num_threads(), 1);
}

TEST(Device, RefusesAnUnknownDevice) {
  config::DeviceConfig options;
  options.device = "tpu";
  try {
    wanted(options);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
  }
}

TEST(WorkInBackground, GivesWayInItsOwnThreadOnly) {
  const int threads = at::get_num_threads();
  const int priority = ::getpriority(PRIO_PROCESS, 0);
  std::thread([priority] {
    work_in_background();
    EXPECT_EQ(at::get_num_threads(), 1);
    EXPECT_GT(::getpriority(PRIO_PROCESS, static_cast<id_t>(::gettid())), priority);
  }).join();
  EXPECT_EQ(at::get_num_threads(), threads);
  EXPECT_EQ(::getpriority(PRIO_PROCESS, 0), priority);
}

TEST(Random, SeedDecidesTheNumbers) {
  seed(7);
  const at::Tensor expected = at::rand({5});
  EXPECT_FALSE(at::equal(at::rand({5}), expected));
  seed(7);
  EXPECT_TRUE(at::equal(at::rand({5}), expected));
}

TEST(Memory, PeakIsAtLeastTheCurrent) {
  EXPECT_GT(memory_bytes(), 1 << 20);
  EXPECT_GE(peak_memory_bytes(), memory_bytes());
  EXPECT_GT(memory_capacity_bytes(), memory_bytes());
}

TEST(Matmul, PeakIsMeasured) {
  EXPECT_GT(measure_matmul_peak(at::kFloat), 1e8);
}

}  // namespace
}  // namespace fettle::device
