// SPDX-License-Identifier: Apache-2.0
#include "dist/launch.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace fettle::dist {
namespace {

using Variables = std::map<std::string, std::string>;

/// The output of env(1): NAME=value, one a line. Later lines win.
Variables parse(std::string_view text) {
  Variables variables;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const size_t equals = line.find('=');
    if (equals != std::string_view::npos) variables[std::string(line.substr(0, equals))] = line.substr(equals + 1);
  }
  return variables;
}

Environment environment(Variables variables) {
  return [variables = std::move(variables)](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end()) return std::nullopt;
    return found->second;
  };
}

Launch launch_of(std::string_view text) {
  return read_launch(environment(parse(text)));
}

/// "torchrun: 3 of 4, here 1 of 2, store at node-0:29500", and " by the agent under <prefix>" if rank 0 does not serve
/// it.
std::string described(const Launch& launch) {
  std::string text = launch.launcher.empty() ? "alone" : launch.launcher;
  text += fmt::format(": {} of {}, here {} of {}", launch.rank, launch.world_size, launch.local_rank,
                      launch.local_world_size);
  text += fmt::format(", store at {}:{}", launch.master_address, launch.master_port);
  if (!launch.hosts_store) text += fmt::format(" by the agent under '{}'", launch.store_prefix);
  return text;
}

std::string described(std::string_view text) {
  return described(launch_of(text));
}

constexpr std::string_view kAlone = "alone: 0 of 1, here 0 of 1, store at :29500";

/// That `text` is refused by a message of one line with each of `parts`.
void expect_refused(std::string_view text, const std::vector<std::string>& parts) {
  try {
    ADD_FAILURE() << "accepted: " << described(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kConfig);
    EXPECT_FALSE(error.hint().empty());
    const std::string message = std::string(error.what()) + "; " + error.hint();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

// Two agents of two workers each: torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=node-0.
constexpr std::string_view kTorchrun = R"(GROUP_RANK=1
GROUP_WORLD_SIZE=2
LOCAL_RANK=1
LOCAL_WORLD_SIZE=2
MASTER_ADDR=node-0
MASTER_PORT=33707
OMP_NUM_THREADS=1
RANK=3
ROLE_NAME=default
ROLE_RANK=3
ROLE_WORLD_SIZE=4
TORCHELASTIC_MAX_RESTARTS=0
TORCHELASTIC_RESTART_COUNT=0
TORCHELASTIC_RUN_ID=82cc045e-a1d1-42cf-959f-0abe79084961
TORCHELASTIC_USE_AGENT_STORE=True
WORLD_SIZE=4
)";

constexpr std::string_view kOneAgent = "\nLOCAL_WORLD_SIZE=4\nLOCAL_RANK=3\n";

// mpirun -np 4 --host node1:2,node2:2 -x MASTER_ADDR=node1 of Open MPI 5.
constexpr std::string_view kOpenMpi = R"(OMPI_COMMAND=fettle
OMPI_COMM_WORLD_LOCAL_RANK=1
OMPI_COMM_WORLD_LOCAL_SIZE=2
OMPI_COMM_WORLD_NODE_RANK=1
OMPI_COMM_WORLD_RANK=3
OMPI_COMM_WORLD_SIZE=4
OMPI_UNIVERSE_SIZE=4
OMPI_WORLD_LOCAL_SIZE=2
OMPI_WORLD_SIZE=4
PMIX_NAMESPACE=prterun-node1-20395@1
PMIX_RANK=3
PMIX_SERVER_URI41=prterun-node1-20395@0.0;tcp4://127.0.0.1:47673
MASTER_ADDR=node1
)";

// mpirun -n 4 -ppn 2 -hosts node1,node2 -genv MASTER_ADDR node1 of MPICH 5; Intel MPI 2021 sets the same.
constexpr std::string_view kHydra = R"(MPI_LOCALNRANKS=2
MPI_LOCALRANKID=1
PMI_FD=9
PMI_HOSTNAME=node2
PMI_RANK=3
PMI_SIZE=4
MASTER_ADDR=node1
)";

// The last task of sbatch --nodes=4 --ntasks=7 --job-name=tune with srun.
constexpr std::string_view kSlurm = R"(SLURM_JOB_ID=200505
SLURM_JOB_NODELIST=gpu[007-009,12]
SLURM_NTASKS=7
SLURM_TASKS_PER_NODE=2(x3),1
SLURM_STEP_ID=1
SLURM_STEP_NODELIST=gpu[007-009,12]
SLURM_STEP_NUM_NODES=4
SLURM_STEP_NUM_TASKS=7
SLURM_STEP_TASKS_PER_NODE=2(x3),1
SLURM_NODEID=3
SLURM_PROCID=6
SLURM_LOCALID=0
SLURMD_NODENAME=gpu12
)";

// sbatch --ntasks=4 --nodes=4, a program that the script starts without srun.
constexpr std::string_view kBatchScript = R"(SLURM_NTASKS_PER_NODE=4
SLURM_NTASKS=4
SLURM_TASKS_PER_NODE=1(x4)
SLURM_JOB_ID=200505
SLURM_NODEID=0
SLURM_PROCID=0
SLURM_JOB_NODELIST=gnode[10,20,25,37]
SLURM_LOCALID=0
)";

// The second worker of a PyTorchJob with one master and two workers, nprocPerNode not given.
constexpr std::string_view kPyTorchJob = R"(PET_MASTER_PORT=23456
MASTER_PORT=23456
PET_MASTER_ADDR=tune-master-0
MASTER_ADDR=tune-master-0
WORLD_SIZE=3
RANK=2
PET_NPROC_PER_NODE=auto
PET_NODE_RANK=2
PET_NNODES=3
)";

// The second node of a TrainJob with numNodes: 2, numProcPerNode: 1.
constexpr std::string_view kTrainer = R"(PET_NNODES=2
PET_NPROC_PER_NODE=1
PET_NODE_RANK=1
PET_MASTER_ADDR=tune-node-0-0.tune
PET_MASTER_PORT=29500
JOB_COMPLETION_INDEX=1
)";

constexpr std::string_view kIndexedJob = R"(JOB_COMPLETION_INDEX=1
WORLD_SIZE=2
MASTER_ADDR=tune-0.tune
)";

constexpr std::string_view kEnvironment = "RANK=3\nWORLD_SIZE=4\nMASTER_ADDR=10.0.0.1\nMASTER_PORT=12345\n";

std::string with(std::string_view text, std::string_view more) {
  return std::string(text) + "\n" + std::string(more);
}

std::string without(std::string_view text, const std::set<std::string>& names) {
  std::string kept;
  for (const auto& [name, value] : parse(text))
    if (!names.contains(name)) kept += fmt::format("{}={}\n", name, value);
  return kept;
}

TEST(Launch, OneProcessWithoutALauncher) {
  EXPECT_EQ(described(""), kAlone);
  EXPECT_EQ(described("PATH=/usr/bin\nHOME=/root\nMASTER_ADDR=node-0\nMASTER_PORT=tcp://10.0.0.1:1\n"), kAlone);
  EXPECT_EQ(described("RANK=0\n"), kAlone);
  EXPECT_EQ(described("RANK=\nWORLD_SIZE=\nJOB_COMPLETION_INDEX=\nPET_NNODES=\n"), kAlone) << "empty is not set";
}

TEST(Launch, OneProcessNeedsNoAddressInAnyForm) {
  const std::vector<std::string> forms = {
      "RANK=0\nWORLD_SIZE=1\n",
      "WORLD_SIZE=1\n",
      "RANK=0\nWORLD_SIZE=1\nLOCAL_RANK=0\nLOCAL_WORLD_SIZE=1\nTORCHELASTIC_RUN_ID=none\n",
      "OMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=1\nOMPI_COMM_WORLD_LOCAL_RANK=0\nOMPI_COMM_WORLD_LOCAL_SIZE=1\n",
      "PMI_RANK=0\nPMI_SIZE=1\nMPI_LOCALRANKID=0\nMPI_LOCALNRANKS=1\n",
      "SLURM_STEP_ID=0\nSLURM_PROCID=0\nSLURM_STEP_NUM_TASKS=1\nSLURM_LOCALID=0\nSLURM_NTASKS=4\n",
      "RANK=0\nWORLD_SIZE=1\nPET_NNODES=1\nPET_NODE_RANK=0\nPET_NPROC_PER_NODE=auto\n",
      "PET_NNODES=1\nPET_NPROC_PER_NODE=1\n",
      "JOB_COMPLETION_INDEX=5\nWORLD_SIZE=1\n",
  };
  for (const std::string& form : forms) EXPECT_EQ(described(form), kAlone) << form;
}

TEST(Launch, Torchrun) {
  EXPECT_EQ(described(kTorchrun), "torchrun: 3 of 4, here 1 of 2, store at node-0:33707 by the agent under ''");
  EXPECT_EQ(described(with(kTorchrun, kOneAgent)),
            "torchrun: 3 of 4, here 3 of 4, store at node-0:33707 by the agent under '/worker/attempt_0'");
  EXPECT_EQ(described(with(kTorchrun, with(kOneAgent, "TORCHELASTIC_RESTART_COUNT=2"))),
            "torchrun: 3 of 4, here 3 of 4, store at node-0:33707 by the agent under '/worker/attempt_2'");
  // Of two agents, the one whose worker failed counts 1 and the other 0: no part of the name they share.
  EXPECT_EQ(launch_of(with(kTorchrun, "TORCHELASTIC_RESTART_COUNT=1")).store_prefix, "");
  // TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, and rendezvous by etcd.
  EXPECT_EQ(described(with(kTorchrun, with(kOneAgent, "TORCHELASTIC_USE_AGENT_STORE=False"))),
            "torchrun: 3 of 4, here 3 of 4, store at node-0:33707");
  EXPECT_EQ(launch_of(with(kTorchrun, with(kOneAgent, "TORCHELASTIC_USE_AGENT_STORE=False"))).store_prefix, "");
  // torchrun --virtual-local-rank: each worker sees one device, its number 0.
  EXPECT_EQ(described(with(kTorchrun, "LOCAL_RANK=0")),
            "torchrun: 3 of 4, here 0 of 2, store at node-0:33707 by the agent under ''");
}

TEST(Launch, MpirunOfOpenMpi) {
  EXPECT_EQ(described(kOpenMpi), "mpirun: 3 of 4, here 1 of 2, store at node1:29500");
  EXPECT_EQ(described(with(kOpenMpi, "MASTER_PORT=4000")), "mpirun: 3 of 4, here 1 of 2, store at node1:4000");
  const std::string one_machine = with(kOpenMpi, "OMPI_COMM_WORLD_LOCAL_SIZE=4\nOMPI_COMM_WORLD_LOCAL_RANK=3");
  EXPECT_EQ(described(one_machine), "mpirun: 3 of 4, here 3 of 4, store at node1:29500");
  EXPECT_EQ(described(without(one_machine, {"MASTER_ADDR"})), "mpirun: 3 of 4, here 3 of 4, store at 127.0.0.1:29500");
  expect_refused(without(kOpenMpi, {"MASTER_ADDR"}), {"MASTER_ADDR", "mpirun -x MASTER_ADDR=<host of rank 0>"});
  expect_refused(without(kOpenMpi, {"OMPI_COMM_WORLD_RANK"}), {"OMPI_COMM_WORLD_RANK is not set"});
  expect_refused(without(kOpenMpi, {"OMPI_COMM_WORLD_SIZE"}), {"OMPI_COMM_WORLD_SIZE is not set"});
  expect_refused(without(kOpenMpi, {"OMPI_COMM_WORLD_LOCAL_SIZE"}), {"OMPI_COMM_WORLD_LOCAL_SIZE is not set"});
}

TEST(Launch, MpirunOfMpichAndIntelMpi) {
  EXPECT_EQ(described(kHydra), "mpirun: 3 of 4, here 1 of 2, store at node1:29500");
  const std::string one_machine =
      with(without(kHydra, {"MASTER_ADDR"}), "MPI_LOCALRANKID=3\nMPI_LOCALNRANKS=4\nMASTER_PORT=4000");
  EXPECT_EQ(described(one_machine), "mpirun: 3 of 4, here 3 of 4, store at 127.0.0.1:4000");
  expect_refused(without(kHydra, {"MASTER_ADDR"}), {"MASTER_ADDR", "mpirun -genv MASTER_ADDR <host of rank 0>"});
  // Other process managers of the PMI family leave out what is on this machine.
  const std::string bare = without(kHydra, {"MPI_LOCALRANKID", "MPI_LOCALNRANKS"});
  EXPECT_EQ(described(bare), "mpirun: 3 of 4, here 0 of 1, store at node1:29500");
  expect_refused(without(bare, {"MASTER_ADDR"}), {"MASTER_ADDR"});
  expect_refused(without(kHydra, {"PMI_SIZE"}), {"PMI_SIZE is not set, but PMI_RANK is"});
  expect_refused(without(kHydra, {"PMI_RANK"}), {"PMI_RANK is not set, but PMI_SIZE is"});
}

TEST(Launch, SlurmStep) {
  EXPECT_EQ(described(kSlurm), fmt::format("Slurm: 6 of 7, here 0 of 1, store at gpu007:{}", 20000 + 8081));
  EXPECT_EQ(described(with(kSlurm, "SLURM_PROCID=3\nSLURM_NODEID=1\nSLURM_LOCALID=1")),
            "Slurm: 3 of 7, here 1 of 2, store at gpu007:28081");
  EXPECT_EQ(described(with(kSlurm, "MASTER_ADDR=10.1.0.7\nMASTER_PORT=4000")),
            "Slurm: 6 of 7, here 0 of 1, store at 10.1.0.7:4000");
  // Two of the job's four nodes; the job's own variables say otherwise.
  const std::string_view part =
      "SLURM_STEP_NODELIST=gpu[009,12]\nSLURM_STEP_NUM_TASKS=2\nSLURM_STEP_TASKS_PER_NODE=1(x2)"
      "\nSLURM_PROCID=1\nSLURM_NODEID=1\nSLURM_LOCALID=0";
  EXPECT_EQ(described(with(kSlurm, part)), "Slurm: 1 of 2, here 0 of 1, store at gpu009:28081");
  // Only the job's variables.
  EXPECT_EQ(described(without(kSlurm, {"SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"})),
            "Slurm: 6 of 7, here 0 of 1, store at gpu007:28081");
  // srun --mpi=pmi2 sets PMI_RANK and PMI_SIZE too.
  EXPECT_EQ(described(with(kSlurm, "PMI_RANK=6\nPMI_SIZE=7\nPMI_FD=10")),
            "Slurm: 6 of 7, here 0 of 1, store at gpu007:28081");
}

TEST(Launch, SlurmPortsDifferForNeighbours) {
  std::set<uint16_t> ports;
  for (const int job : {4294967, 4294968, 4294969})
    for (const int step : {0, 1, 2})
      ports.insert(launch_of(with(kSlurm, fmt::format("SLURM_JOB_ID={}\nSLURM_STEP_ID={}", job, step))).master_port);
  EXPECT_EQ(ports.size(), 9U);
  EXPECT_GE(*ports.begin(), 20000);
  EXPECT_LE(*ports.rbegin(), 29999);
  const std::string greatest = with(kSlurm, "SLURM_JOB_ID=4294967295\nSLURM_STEP_ID=4294967290");
  EXPECT_EQ(launch_of(greatest).master_port, 20000 + (16 * 4294967295 + 4294967290) % 10000);
}

TEST(Launch, SlurmHostLists) {
  const std::map<std::string, std::string> hosts = {
      {"gpu[007-009,12],login1", "gpu007"},
      {"login1,gpu[007-009]", "login1"},
      {"node1", "node1"},
      {"gpu[3]", "gpu3"},
      {"rack[0-1]n[10,12]", "rack0n10"},
      {"a[01-02]-ib,b", "a01-ib"},
      {"n-1.cluster.example", "n-1.cluster.example"},
  };
  for (const auto& [list, host] : hosts)
    EXPECT_EQ(launch_of(with(kSlurm, "SLURM_STEP_NODELIST=" + list)).master_address, host) << list;
  for (const char* list : {"gpu[007-009", "gpu]", "gpu[]", "gpu[a-b]", ",gpu1", "(null)", "gpu 1", "[", "gpu[-3]"})
    expect_refused(with(kSlurm, std::string("SLURM_STEP_NODELIST=") + list),
                   {std::string("SLURM_STEP_NODELIST='") + list + "'", "MASTER_ADDR"});
}

TEST(Launch, SlurmTaskCounts) {
  const auto here = [](std::string_view counts, int node) {
    const std::string more =
        fmt::format("SLURM_STEP_TASKS_PER_NODE={}\nSLURM_NODEID={}\nSLURM_LOCALID=0", counts, node);
    return launch_of(with(kSlurm, more)).local_world_size;
  };
  EXPECT_EQ(here("7", 0), 7);
  EXPECT_EQ(here("2(x3),1", 0), 2);
  EXPECT_EQ(here("2(x3),1", 2), 2);
  EXPECT_EQ(here("1,2,1(x3)", 1), 2);
  EXPECT_EQ(here("1,2,1(x3)", 4), 1);
  for (const char* counts :
       {"2(x3)", "2(x3", "x", "2(x),1", "(x4)", "2(x0),1(x4)", "8(x4)", "0(x4)", "2(xx4)", "1(x44"})
    expect_refused(with(kSlurm, std::string("SLURM_STEP_TASKS_PER_NODE=") + counts),
                   {std::string("SLURM_STEP_TASKS_PER_NODE='") + counts + "'", "SLURM_NODEID"});
  expect_refused(with(kSlurm, "SLURM_LOCALID=1"), {"SLURM_LOCALID=1", "SLURM_STEP_TASKS_PER_NODE=1"});
}

TEST(Launch, SlurmVariablesMissing) {
  for (const char* name : {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID"})
    expect_refused(without(kSlurm, {name}), {std::string(name) + " is not set"});
  expect_refused(without(kSlurm, {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}), {"SLURM_TASKS_PER_NODE=''"});
  expect_refused(without(kSlurm, {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"}), {"SLURM_JOB_NODELIST=''"});
}

TEST(Launch, SlurmOutsideAStepIsOneProcess) {
  EXPECT_EQ(described(kBatchScript), kAlone);
  // The shell that salloc opens: a step of one task in a job of four, numbered 0xfffffffa.
  EXPECT_EQ(described(with(kBatchScript, "SLURM_STEP_ID=4294967290\nSLURM_STEP_NUM_TASKS=1")), kAlone);
  // By hand in such a shell.
  EXPECT_EQ(described(with(with(kBatchScript, "SLURM_STEP_ID=0\nSLURM_STEP_NUM_TASKS=1"), kEnvironment)),
            "environment: 3 of 4, here 0 of 1, store at 10.0.0.1:12345");
}

TEST(Launch, PyTorchJobWithOneProcessAPod) {
  EXPECT_EQ(described(kPyTorchJob), "PyTorchJob: 2 of 3, here 0 of 1, store at tune-master-0:23456");
  for (const char* count : {"1", "auto", "cpu", "gpu", "hpu", ""})
    EXPECT_EQ(launch_of(with(kPyTorchJob, std::string("PET_NPROC_PER_NODE=") + count)).world_size, 3) << count;
  // Three pods of two processes: WORLD_SIZE counts processes, RANK pods.
  expect_refused(with(kPyTorchJob, "WORLD_SIZE=6\nPET_NPROC_PER_NODE=2"),
                 {"PET_NPROC_PER_NODE='2'", "torchrun --no-python fettle", "nprocPerNode"});
  expect_refused(with(kPyTorchJob, "PET_NPROC_PER_NODE=many"), {"PET_NPROC_PER_NODE='many'"});
}

TEST(Launch, PyTorchJobWithoutAMasterNeedsTorchrun) {
  const std::string elastic =
      "PET_NNODES=1:3\nPET_RDZV_BACKEND=c10d\nPET_RDZV_ENDPOINT=tune-worker-0:23456\nPET_MAX_RESTARTS=3\n";
  expect_refused(elastic, {"PET_NNODES='1:3'", "torchrun --no-python fettle"});
  expect_refused(with(elastic, "PET_NNODES=3"), {"PET_NODE_RANK is not set"});
}

TEST(Launch, Trainer) {
  EXPECT_EQ(described(kTrainer), "Trainer (PET_*): 1 of 2, here 0 of 1, store at tune-node-0-0.tune:29500");
  EXPECT_EQ(described(with(kTrainer, "PET_NNODES=2:2\nPET_MASTER_PORT=4000\nPET_NPROC_PER_NODE=auto")),
            "Trainer (PET_*): 1 of 2, here 0 of 1, store at tune-node-0-0.tune:4000");
  EXPECT_EQ(described(with(kTrainer, "PET_NNODES=1\nPET_NODE_RANK=0\nPET_NPROC_PER_NODE=gpu")), kAlone);
  // A TrainJob with a limit of eight CPUs and numProcPerNode left at "auto".
  expect_refused(with(kTrainer, "PET_NPROC_PER_NODE=8"), {"PET_NPROC_PER_NODE='8'", "torchrun --no-python fettle"});
  expect_refused(with(kTrainer, "PET_NNODES=1\nPET_NPROC_PER_NODE=8"), {"PET_NPROC_PER_NODE='8'"});
  for (const char* nodes :
       {"1:4", "0:1", "4:2", "2:", ":2", "a:b", "1:2:3", "1:70000", "0:0", "70000:70000", "0", "two", "-1"})
    expect_refused(with(kTrainer, std::string("PET_NNODES=") + nodes), {std::string("PET_NNODES='") + nodes + "'"});
  expect_refused(with(kTrainer, "PET_NODE_RANK=2"), {"PET_NODE_RANK=2 is not below PET_NNODES=2"});
  expect_refused(without(kTrainer, {"PET_NODE_RANK"}), {"PET_NODE_RANK is not set"});
  expect_refused(without(kTrainer, {"PET_MASTER_ADDR"}), {"PET_MASTER_ADDR"});
  expect_refused(with(kTrainer, "PET_MASTER_PORT=0"), {"PET_MASTER_PORT='0'"});
}

TEST(Launch, IndexedJob) {
  EXPECT_EQ(described(kIndexedJob), "Indexed Job: 1 of 2, here 0 of 1, store at tune-0.tune:29500");
  EXPECT_EQ(described("JOB_COMPLETION_INDEX=7\n"), kAlone) << "an array of independent runs";
  expect_refused(with(kIndexedJob, "JOB_COMPLETION_INDEX=2"), {"JOB_COMPLETION_INDEX=2 is not below WORLD_SIZE=2"});
  expect_refused(with(kIndexedJob, "MASTER_ADDR="), {"MASTER_ADDR", "<job>-0.<service>"});
}

TEST(Launch, PlainEnvironment) {
  EXPECT_EQ(described(kEnvironment), "environment: 3 of 4, here 0 of 1, store at 10.0.0.1:12345");
  EXPECT_EQ(described(with(kEnvironment, "LOCAL_RANK=1\nLOCAL_WORLD_SIZE=2")),
            "environment: 3 of 4, here 1 of 2, store at 10.0.0.1:12345");
  for (const char* loopback : {"127.0.0.1", "127.1.2.3", "localhost", "::1"})
    EXPECT_EQ(described(with(kEnvironment, std::string("MASTER_ADDR=") + loopback)),
              fmt::format("environment: 3 of 4, here 3 of 4, store at {}:12345", loopback));
  EXPECT_EQ(launch_of("RANK=0\nWORLD_SIZE=65536\nMASTER_ADDR=node-0").world_size, 65536);
}

TEST(Launch, TheInnermostLauncherDecides) {
  const std::map<std::string, std::string> nested = {
      {with(kSlurm, kTorchrun), "torchrun"},
      {with(kPyTorchJob, kTorchrun), "torchrun"},
      {with(with(kPyTorchJob, "PET_NPROC_PER_NODE=2"), kTorchrun), "torchrun"},
      {with(with(kTrainer, "PET_NPROC_PER_NODE=2"), kTorchrun), "torchrun"},
      {with(kIndexedJob, kTorchrun), "torchrun"},
      {with(kOpenMpi, kTorchrun), "torchrun"},
      {with(kIndexedJob, kEnvironment), "environment"},
      {with(kTrainer, kEnvironment), "PyTorchJob"},
      {with(with(kPyTorchJob, kEnvironment), "LOCAL_RANK=0\nLOCAL_WORLD_SIZE=1"), "environment"},
      {with(kTrainer, "WORLD_SIZE=2"), "Trainer (PET_*)"},
      {with(kTrainer, "RANK=0"), "Trainer (PET_*)"},
      {with(kIndexedJob, kOpenMpi) + "WORLD_SIZE=4", "mpirun"},
      {with(kHydra, kEnvironment), "mpirun"},
      {with(kSlurm, "JOB_COMPLETION_INDEX=0"), "Slurm"},
  };
  for (const auto& [text, launcher] : nested) EXPECT_EQ(launch_of(text).launcher, launcher) << text;
  // A sweep of torchrun --standalone --nproc-per-node=1, one in each task of srun.
  EXPECT_EQ(described(with(kSlurm, with(kTorchrun, "RANK=0\nWORLD_SIZE=1\nLOCAL_RANK=0\nLOCAL_WORLD_SIZE=1"))), kAlone);
  // A script's hint for NeMo is no torchrun.
  EXPECT_EQ(launch_of(with(kSlurm, "TORCHELASTIC_RUN_ID=1")).launcher, "Slurm");
}

TEST(Launch, MpirunInsideSlurm) {
  // Open MPI starts one daemon a node by srun, whose variables the ranks inherit.
  const std::string daemon =
      "SLURM_NODEID=0\nSLURM_PROCID=0\nSLURM_LOCALID=0\nSLURM_STEP_ID=0\nSLURM_STEP_NUM_TASKS=2\n"
      "SLURM_STEP_TASKS_PER_NODE=1(x2)\nSLURM_STEP_NODELIST=node[1-2]\nSLURM_JOB_ID=38749\n";
  EXPECT_EQ(described(with(daemon, kOpenMpi)), "mpirun: 3 of 4, here 1 of 2, store at node1:29500");
  EXPECT_EQ(described(with(daemon, kHydra)), "mpirun: 3 of 4, here 1 of 2, store at node1:29500");
}

TEST(Launch, RanksBesideALauncherMustAgreeWithIt) {
  EXPECT_EQ(launch_of(with(kSlurm, "RANK=6\nWORLD_SIZE=7")).rank, 6);
  EXPECT_EQ(launch_of(with(kSlurm, "WORLD_SIZE=7")).rank, 6);
  // A PyTorchJob of one pod whose command is mpirun.
  EXPECT_EQ(launch_of(with(kOpenMpi, "RANK=0\nWORLD_SIZE=1")).rank, 3);
  // export RANK=$SLURM_PROCID in the batch script gives each task the same one.
  expect_refused(with(kSlurm, "RANK=0\nWORLD_SIZE=7"), {"RANK=0", "SLURM_PROCID=6"});
  expect_refused(with(kSlurm, "RANK=0"), {"RANK=0", "SLURM_PROCID=6"});
  expect_refused(with(kSlurm, "WORLD_SIZE=8"), {"WORLD_SIZE=8", "Slurm", "7 processes"});
  expect_refused(with(kOpenMpi, "WORLD_SIZE=2\nRANK=1"), {"WORLD_SIZE=2", "mpirun", "4 processes"});
  expect_refused(with(kHydra, "RANK=1"), {"RANK=1", "PMI_RANK=3"});
  expect_refused("WORLD_SIZE=2\nOMPI_COMM_WORLD_RANK=0\nOMPI_COMM_WORLD_SIZE=1\n",
                 {"WORLD_SIZE=2", "mpirun", "one process"});
}

TEST(Launch, NumbersAreChecked) {
  for (const char* value : {"two", "-1", "1.5", " 1", "1 ", "+1", "0x1", "99999999999999999999", "70000", "1\n2"}) {
    Variables variables = parse(kEnvironment);
    variables["RANK"] = value;
    EXPECT_THROW(read_launch(environment(variables)), Error) << value;
  }
  expect_refused(with(kEnvironment, "RANK=two"), {"RANK='two'", "from 0 to 65535"});
  expect_refused(with(kEnvironment, "RANK=-1"), {"RANK='-1'"});
  expect_refused(with(kEnvironment, "RANK=4"), {"RANK=4 is not below WORLD_SIZE=4"});
  expect_refused(with(kEnvironment, "WORLD_SIZE=four"), {"WORLD_SIZE='four'", "from 1 to 65536"});
  expect_refused(with(kEnvironment, "WORLD_SIZE=0"), {"WORLD_SIZE='0'"});
  expect_refused(with(kEnvironment, "WORLD_SIZE=65537"), {"WORLD_SIZE='65537'"});
  expect_refused(with(kEnvironment, "LOCAL_RANK=2\nLOCAL_WORLD_SIZE=2"), {"LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2"});
  expect_refused(with(kEnvironment, "LOCAL_RANK=0\nLOCAL_WORLD_SIZE=5"), {"LOCAL_WORLD_SIZE=5", "WORLD_SIZE=4"});
  expect_refused(with(kEnvironment, "LOCAL_RANK=0"), {"LOCAL_WORLD_SIZE is not set, but LOCAL_RANK is"});
  expect_refused(with(kEnvironment, "LOCAL_WORLD_SIZE=2"), {"LOCAL_RANK is not set, but LOCAL_WORLD_SIZE is"});
  expect_refused(with(kTorchrun, "TORCHELASTIC_RESTART_COUNT=x"), {"TORCHELASTIC_RESTART_COUNT='x'"});
  expect_refused(with(kSlurm, "SLURM_STEP_NUM_TASKS=x"), {"SLURM_STEP_NUM_TASKS='x'"});
  expect_refused(with(kIndexedJob, "JOB_COMPLETION_INDEX=x"), {"JOB_COMPLETION_INDEX='x'"});
}

TEST(Launch, HalfADescriptionIsRefused) {
  expect_refused("WORLD_SIZE=2\nMASTER_ADDR=node-0\n", {"WORLD_SIZE=2", "RANK is not set"});
  expect_refused("RANK=1\n", {"RANK=1 without WORLD_SIZE"});
  expect_refused("TORCHELASTIC_RUN_ID=none\nRANK=0\n", {"WORLD_SIZE is not set, but RANK is"});
  expect_refused("WORLD_SIZE=x\n", {"WORLD_SIZE='x'"});
  expect_refused("RANK=1\nWORLD_SIZE=1\n", {"RANK=1 is not below WORLD_SIZE=1"});
}

TEST(Launch, AddressAndPortAreChecked) {
  expect_refused(without(kEnvironment, {"MASTER_ADDR"}), {"MASTER_ADDR", "4 processes", "127.0.0.1"});
  expect_refused(with(kEnvironment, "MASTER_ADDR="), {"MASTER_ADDR"});
  expect_refused(with(kTorchrun, "MASTER_ADDR="), {"MASTER_ADDR", "torchrun --no-python"});
  expect_refused(with(kPyTorchJob, "MASTER_ADDR="), {"MASTER_ADDR", "PyTorchJob"});
  // hostname -I prints every address, and a space after the last.
  for (const char* address : {"10.0.0.1 172.17.0.1 ", "node-0 ", "tcp://node-0:29500", "node-0,node-1", "\t"})
    expect_refused(with(kEnvironment, std::string("MASTER_ADDR=") + address), {"MASTER_ADDR='", "host name"});
  for (const char* port : {"0", "65536", "-1", "http", "29500.0"})
    expect_refused(with(kEnvironment, std::string("MASTER_PORT=") + port), {std::string("MASTER_PORT='") + port + "'"});
  EXPECT_EQ(launch_of(with(kEnvironment, "MASTER_PORT=65535")).master_port, 65535);
  EXPECT_EQ(launch_of(with(kEnvironment, "MASTER_PORT=")).master_port, 29500);
  // What Kubernetes sets in each pod beside a Service of the name "master".
  expect_refused(with(kEnvironment, "MASTER_PORT=tcp://10.96.7.7:29500"), {"MASTER_PORT", "enableServiceLinks: false"});
}

TEST(Launch, ForeignTextIsQuoted) {
  expect_refused(with(kEnvironment, "RANK=1\t\xff" + std::string(500, 'x')), {"RANK='1 \uFFFDxxx", "x…' is not"});
}

TEST(Launch, ProcessEnvironment) {
  ASSERT_EQ(setenv("FETTLE_LAUNCH_TEST", "value", 1), 0);
  EXPECT_EQ(process_environment("FETTLE_LAUNCH_TEST"), "value");
  ASSERT_EQ(setenv("FETTLE_LAUNCH_TEST", "", 1), 0);
  EXPECT_EQ(process_environment("FETTLE_LAUNCH_TEST"), "");
  ASSERT_EQ(unsetenv("FETTLE_LAUNCH_TEST"), 0);
  EXPECT_EQ(process_environment("FETTLE_LAUNCH_TEST"), std::nullopt);
}

}  // namespace
}  // namespace fettle::dist
