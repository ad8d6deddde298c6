// SPDX-License-Identifier: Apache-2.0
/// Which launcher started this process, and where it stands among the processes of the run. All of it is read from the
/// environment that the launcher made.
///
/// The first row whose launcher is recognised decides, so an inner launcher goes before the one that started it:
/// torchrun inside a PyTorchJob, an Indexed Job or srun is torchrun, mpirun inside Slurm is mpirun.
///
/// | launcher            | recognised by             | variables read                                                |
/// |---------------------|---------------------------|---------------------------------------------------------------|
/// | torchrun            | TORCHELASTIC_RUN_ID, RANK | RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE                   |
/// |                     |                           | MASTER_ADDR MASTER_PORT TORCHELASTIC_USE_AGENT_STORE          |
/// |                     |                           | TORCHELASTIC_RESTART_COUNT                                    |
/// | mpirun (Open MPI)   | OMPI_COMM_WORLD_RANK      | OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE                     |
/// |                     | or _SIZE                  | OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE         |
/// |                     |                           | MASTER_ADDR [1] MASTER_PORT                                   |
/// | mpirun (MPICH,      | PMI_RANK or PMI_SIZE [2]  | PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS [4]         |
/// | Intel MPI)          |                           | MASTER_ADDR [1] MASTER_PORT                                   |
/// | Slurm (srun)        | SLURM_STEP_ID, and more   | SLURM_PROCID SLURM_LOCALID SLURM_NODEID                       |
/// |                     | than one task             | SLURM_STEP_NUM_TASKS, else SLURM_NTASKS                       |
/// |                     |                           | SLURM_STEP_TASKS_PER_NODE, else SLURM_TASKS_PER_NODE          |
/// |                     |                           | MASTER_ADDR, else the first host of SLURM_STEP_NODELIST, else |
/// |                     |                           | of SLURM_JOB_NODELIST                                         |
/// |                     |                           | MASTER_PORT, else one made of SLURM_JOB_ID SLURM_STEP_ID [3]  |
/// | PyTorchJob          | RANK, WORLD_SIZE and      | RANK WORLD_SIZE MASTER_ADDR MASTER_PORT PET_NPROC_PER_NODE    |
/// |                     | PET_NNODES, no LOCAL_RANK |                                                               |
/// | environment         | RANK, WORLD_SIZE          | RANK WORLD_SIZE MASTER_ADDR MASTER_PORT                       |
/// |                     |                           | LOCAL_RANK LOCAL_WORLD_SIZE [4]                               |
/// | Trainer (PET_*)     | PET_NNODES                | PET_NODE_RANK PET_NNODES PET_NPROC_PER_NODE                   |
/// |                     |                           | PET_MASTER_ADDR PET_MASTER_PORT                               |
/// | Indexed Job         | JOB_COMPLETION_INDEX and  | JOB_COMPLETION_INDEX WORLD_SIZE MASTER_ADDR MASTER_PORT       |
/// |                     | WORLD_SIZE over 1         |                                                               |
/// | none: one process   |                           | WORLD_SIZE and RANK, to refuse half a description             |
///
/// A variable that is set but empty counts as not set. A run of one process needs no address, in whatever form it is
/// described; a port that is not given is 29500.
///
/// [1] Without MASTER_ADDR: 127.0.0.1 if all ranks are on this machine, else an error: an MPI launcher does not say
///     where rank 0 runs.
/// [2] Not inside an srun step without MPI_LOCALRANKID: there Slurm's PMI-2 plugin set PMI_RANK, and Slurm knows more.
/// [3] 20000 + (16 * job + step) mod 10000: below the ports that Linux hands out and that Kubernetes' NodePorts use,
///     and different for jobs and steps that run side by side. Outside a step (a batch script's own shell, which has
///     SLURM_NTASKS too) a program is one process.
/// [4] Without these two: all on this machine if MASTER_ADDR is a loopback address, else one process a machine.
///
/// PyTorchJob counts WORLD_SIZE in processes and RANK in pods, so the two only fit with one process a pod; it and
/// Trainer expect torchrun to start several. An Indexed Job says nothing of its size: the manifest gives WORLD_SIZE and
/// MASTER_ADDR, and without WORLD_SIZE each pod is a run of its own (one completion, or an array of runs). If RANK or
/// WORLD_SIZE is set beside mpirun or Slurm, it must say the same as they do.
///
/// Formats: torch/distributed/elastic/agent/server/local_elastic_agent.py and torch/distributed/rendezvous.py; Open MPI
/// "Environment variables set for MPI applications"; Slurm srun(1) and src/common/env.c; Kubeflow training-operator
/// pkg/controller.v1/pytorch/envvar.go, Kubeflow trainer pkg/runtime/framework/plugins/torch/torch.go.
#pragma once

#include <cstdint>
#include <string>

#include "base/environment.h"

namespace fettle::dist {

/// Where this process stands among the processes of a run, as the launcher that started it says.
struct Launch {
  int64_t rank = 0;
  int64_t world_size = 1;
  int64_t local_rank = 0;        ///< among the processes of this machine; torchrun --virtual-local-rank says 0 to all
  int64_t local_world_size = 1;  ///< processes on this machine
  std::string master_address;    ///< host name or address of rank 0 (or of the launcher's store)
  uint16_t master_port = 29500;
  bool hosts_store = true;  ///< rank 0 serves the store at master_address; false: a torchrun agent does
  /// Keys begin with it: a torchrun agent's store outlives a restart of the workers. One agent: the attempt, as torch
  /// did until 2.5. Several agents: empty, as in torch since, because each counts only its own workers' failures and
  /// they would not agree; what an earlier attempt left in the store is then to be told apart by other means.
  std::string store_prefix;
  /// For the log: "torchrun", "mpirun", "Slurm", "PyTorchJob", "Trainer (PET_*)", "Indexed Job", "environment"; empty
  /// for a single process.
  std::string launcher;
  bool is_one_of_machine = false;  ///< the launcher starts every process of a machine itself (torchrun, mpirun, srun)
};

/// Throws Error{kConfig} that names the variable and its value: not a number, out of range (world sizes end at 65,536),
/// a rank that is not below the world size, a rank without a size or a size without a rank, no address, or several
/// processes a node that only torchrun can start.
Launch read_launch(const Environment& environment);

}  // namespace fettle::dist
