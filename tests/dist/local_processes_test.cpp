// SPDX-License-Identifier: Apache-2.0
#include "dist/local_processes.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace fettle::dist {
namespace {

/// One that describes machines only.
Launch node(const char* launcher, int64_t world_size = 1, int64_t local_world_size = 1) {
  Launch launch;
  launch.launcher = launcher;
  launch.world_size = world_size;
  launch.local_world_size = local_world_size;
  return launch;
}

/// One that starts every process itself.
Launch process(const char* launcher, int64_t world_size = 1, int64_t local_world_size = 1) {
  Launch launch = node(launcher, world_size, local_world_size);
  launch.is_one_of_machine = true;
  return launch;
}

TEST(StartsLocalProcesses, WhereTheLauncherDescribesMachinesOnly) {
  EXPECT_FALSE(starts_local_processes(node(""), 1));
  EXPECT_TRUE(starts_local_processes(node(""), 8));
  for (const char* launcher : {"Indexed Job", "PyTorchJob", "Trainer (PET_*)", "environment"}) {
    EXPECT_TRUE(starts_local_processes(node(launcher, 2), 8)) << launcher;
  }
  EXPECT_FALSE(starts_local_processes(node("environment", 16, 8), 8)) << "one of them";
  EXPECT_FALSE(starts_local_processes(process("torchrun", 8, 8), 8)) << "torchrun has started as many";
}

TEST(StartsLocalProcesses, RefusesANumberThatIsNotTheLaunchers) {
  for (const Launch& launch :
       {process("torchrun", 4, 4), process("torchrun", 1, 1), process("mpirun", 2, 1), process("Slurm", 2, 2)}) {
    try {
      starts_local_processes(launch, 8);
      ADD_FAILURE() << launch.launcher;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kConfig);
      EXPECT_NE(std::string(error.what()).find(launch.launcher), std::string::npos) << error.what();
    }
  }
}

TEST(FirstLocalProcess, CountsProcessesWhereTheLauncherCountedMachines) {
  Launch launch = node("Indexed Job", 3);
  launch.rank = 2;
  const Launch first = first_local_process(launch, 8);
  EXPECT_EQ(first.rank, 16);
  EXPECT_EQ(first.world_size, 24);
  EXPECT_EQ(first.local_rank, 0);
  EXPECT_EQ(first.local_world_size, 8);
}

}  // namespace
}  // namespace fettle::dist
