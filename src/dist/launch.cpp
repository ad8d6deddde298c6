// SPDX-License-Identifier: Apache-2.0
#include "dist/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"

namespace fettle::dist {
namespace {

constexpr int64_t kMostProcesses = 65536;
constexpr int64_t kMostPort = 65535;
constexpr int64_t kMostSlurmId = std::numeric_limits<uint32_t>::max();

std::optional<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

[[noreturn]] void refuse(std::string what, std::string hint) {
  throw Error(ExitCode::kConfig, std::move(what), std::move(hint));
}

/// The environment with an Error that names the variable for each value that cannot be used.
class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}

  /// The value; nullopt if not set or empty (a manifest's `value: ""`, a fieldRef to an annotation that is absent).
  [[nodiscard]] std::optional<std::string> text(const char* name) const {
    std::optional<std::string> value = environment_(name);
    if (value && value->empty()) value.reset();
    return value;
  }

  [[nodiscard]] bool has(const char* name) const { return text(name).has_value(); }

  [[nodiscard]] std::optional<int64_t> integer(const char* name, int64_t least, int64_t most) const {
    const std::optional<std::string> value = text(name);
    if (!value) return std::nullopt;
    const std::optional<int64_t> number = parse_integer(*value);
    if (!number || *number < least || *number > most)
      refuse(fmt::format("{}={} is not a whole number from {} to {}", name, quote(*value), least, most),
             "correct it, or unset it if no launcher is meant to have set it");
    return number;
  }

  [[nodiscard]] std::optional<int64_t> rank(const char* name) const { return integer(name, 0, kMostProcesses - 1); }
  [[nodiscard]] std::optional<int64_t> size(const char* name) const { return integer(name, 1, kMostProcesses); }

  /// The first of the two that is set: a job step's own variable, else the whole job's.
  [[nodiscard]] const char* first_set(const char* step, const char* job) const { return has(step) ? step : job; }

 private:
  const Environment& environment_;
};

/// What the launcher itself set; its absence means that something took it away again.
int64_t required(std::optional<int64_t> value, const char* name, const char* because_of) {
  if (!value)
    refuse(fmt::format("{} is not set, but {} is", name, because_of),
           fmt::format("pass both on to fettle, or unset {} to train with one process", because_of));
  return *value;
}

struct Names {
  const char* rank;
  const char* world_size;
  const char* local_rank;
  const char* local_world_size;
};

void check_rank(int64_t rank, const char* rank_name, int64_t size, const char* size_name) {
  if (rank >= size)
    refuse(fmt::format("{}={} is not below {}={}", rank_name, rank, size_name, size),
           "ranks count from 0, and each process has its own");
}

bool is_loopback(std::string_view address) {
  return address == "localhost" || address == "::1" || address.starts_with("127.");
}

/// Rank and size in the world and on this machine; without the latter, note [4] of the header.
Launch read_ranks(const Variables& variables, const Names& names) {
  Launch launch;
  launch.rank = required(variables.rank(names.rank), names.rank, names.world_size);
  launch.world_size = required(variables.size(names.world_size), names.world_size, names.rank);
  check_rank(launch.rank, names.rank, launch.world_size, names.world_size);
  const std::optional<int64_t> local_rank = variables.rank(names.local_rank);
  const std::optional<int64_t> local_world_size = variables.size(names.local_world_size);
  if (local_rank || local_world_size) {
    launch.local_rank = required(local_rank, names.local_rank, names.local_world_size);
    launch.local_world_size = required(local_world_size, names.local_world_size, names.local_rank);
    check_rank(launch.local_rank, names.local_rank, launch.local_world_size, names.local_world_size);
  } else if (is_loopback(variables.text("MASTER_ADDR").value_or(""))) {
    launch.local_rank = launch.rank;
    launch.local_world_size = launch.world_size;
  }
  if (launch.local_world_size > launch.world_size)
    refuse(fmt::format("{}={} is above {}={}", names.local_world_size, launch.local_world_size, names.world_size,
                       launch.world_size),
           "it counts the processes of this machine alone");
  return launch;
}

void read_port(const Variables& variables, const char* name, Launch& launch) {
  const std::optional<std::string> value = variables.text(name);
  if (value && value->starts_with("tcp://"))
    refuse(fmt::format("{}={} is not a port: Kubernetes sets it for a Service of that name", name, quote(*value)),
           fmt::format("set {} in the manifest, or enableServiceLinks: false in the pod", name));
  if (const std::optional<int64_t> port = variables.integer(name, 1, kMostPort))
    launch.master_port = static_cast<uint16_t>(*port);
}

/// Takes `name` as the address; keeps the one that is there if it is not set.
void read_address(const Variables& variables, const char* name, Launch& launch) {
  const std::optional<std::string> value = variables.text(name);
  if (!value) return;
  if (value->find_first_of(" \t\r\n,/") != std::string::npos)
    refuse(fmt::format("{}={} is not one host name or address", name, quote(*value)),
           "give the host name or address of rank 0 alone; the port goes into MASTER_PORT");
  launch.master_address = *value;
}

/// Address and port of a world of several processes. `hint` says how to give the address to this launcher.
void read_store(const Variables& variables, const char* hint, Launch& launch) {
  if (launch.world_size == 1) return;
  read_address(variables, "MASTER_ADDR", launch);
  read_port(variables, "MASTER_PORT", launch);
  if (launch.master_address.empty())
    refuse(fmt::format("MASTER_ADDR is empty or not set, and the run has {} processes", launch.world_size), hint);
}

bool has_torchrun(const Variables& variables) {
  return variables.has("TORCHELASTIC_RUN_ID") && variables.has("RANK");
}

Launch read_torchrun(const Variables& variables) {
  Launch launch = read_ranks(variables, {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"});
  read_store(variables, "start fettle by `torchrun --no-python`, which sets it", launch);
  // As torch compares it: Python's str(True).
  launch.hosts_store = variables.text("TORCHELASTIC_USE_AGENT_STORE") != "True";
  const std::optional<int64_t> restarts =
      variables.integer("TORCHELASTIC_RESTART_COUNT", 0, std::numeric_limits<int64_t>::max());
  const bool one_agent = launch.local_world_size == launch.world_size;
  if (!launch.hosts_store && one_agent) launch.store_prefix = fmt::format("/worker/attempt_{}", restarts.value_or(0));
  return launch;
}

/// MASTER_ADDR as given, else this machine if all ranks are on it.
Launch read_mpi(const Variables& variables, const Names& names, const char* hint) {
  Launch launch = read_ranks(variables, names);
  if (launch.local_world_size == launch.world_size) launch.master_address = "127.0.0.1";
  read_store(variables, hint, launch);
  return launch;
}

bool has_open_mpi(const Variables& variables) {
  return variables.has("OMPI_COMM_WORLD_RANK") || variables.has("OMPI_COMM_WORLD_SIZE");
}

Launch read_open_mpi(const Variables& variables) {
  return read_mpi(
      variables,
      {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"},
      "start it as `mpirun -x MASTER_ADDR=<host of rank 0> … fettle …`");
}

bool has_hydra(const Variables& variables) {
  if (!variables.has("PMI_RANK") && !variables.has("PMI_SIZE")) return false;
  return variables.has("MPI_LOCALRANKID") || !variables.has("SLURM_STEP_ID");
}

Launch read_hydra(const Variables& variables) {
  return read_mpi(variables, {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
                  "start it as `mpirun -genv MASTER_ADDR <host of rank 0> … fettle …`");
}

/// The first host of Slurm's compressed list: gpu007 of "gpu[007-009,12],login1"; r0n1 of "r[0-1]n[1,3]". nullopt if
/// the text is no such list.
std::optional<std::string> first_host(std::string_view list) {
  std::string host;
  for (size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const std::string_view ranges = list.substr(i + 1);
    const size_t end = ranges.find(']');
    const std::string_view number = ranges.substr(0, std::min(end, ranges.find_first_of(",-")));
    const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
    if (end == std::string_view::npos || number.empty() || !std::ranges::all_of(number, is_digit)) return std::nullopt;
    host += number;
    i += end + 1;
  }
  const auto fits = [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '.' || c == '_'; };
  if (host.empty() || !std::ranges::all_of(host, fits)) return std::nullopt;
  return host;
}

/// Slurm's compressed counts: nodes 0, 1, 2 and 3 of "2(x3),1" run 2, 2, 2 and 1 tasks. nullopt if `node` is not in it.
std::optional<int64_t> tasks_on_node(std::string_view counts, int64_t node) {
  while (!counts.empty()) {
    const std::string_view item = counts.substr(0, counts.find(','));
    counts.remove_prefix(std::min(item.size() + 1, counts.size()));
    const size_t open = std::min(item.find("(x"), item.size());
    const std::string_view repeated = item.substr(open);
    std::optional<int64_t> nodes = 1;
    if (!repeated.empty()) {
      if (!repeated.ends_with(')')) return std::nullopt;
      nodes = parse_integer(repeated.substr(2, repeated.size() - 3));
    }
    const std::optional<int64_t> tasks = parse_integer(item.substr(0, open));
    if (!tasks || !nodes || *nodes < 1) return std::nullopt;
    if (node < *nodes) return tasks;
    node -= *nodes;
  }
  return std::nullopt;
}

const char* slurm_size_name(const Variables& variables) {
  return variables.first_set("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
}

/// A step of one task may be a shell (srun --pty, salloc) in which anything is started, so it decides nothing.
bool has_slurm(const Variables& variables) {
  return variables.has("SLURM_STEP_ID") && variables.size(slurm_size_name(variables)).value_or(1) > 1;
}

void read_slurm_tasks_here(const Variables& variables, Launch& launch) {
  const char* name = variables.first_set("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE");
  const int64_t node = required(variables.rank("SLURM_NODEID"), "SLURM_NODEID", "SLURM_STEP_ID");
  const std::string counts = variables.text(name).value_or("");
  const std::optional<int64_t> tasks = tasks_on_node(counts, node);
  if (!tasks || *tasks < 1 || *tasks > launch.world_size)
    refuse(fmt::format("{}={} does not say how many of {} tasks run on node {} (SLURM_NODEID)", name, quote(counts),
                       launch.world_size, node),
           "start fettle by srun, which sets it, and leave it as it is");
  launch.local_rank = required(variables.rank("SLURM_LOCALID"), "SLURM_LOCALID", "SLURM_STEP_ID");
  launch.local_world_size = *tasks;
  check_rank(launch.local_rank, "SLURM_LOCALID", launch.local_world_size, name);
}

Launch read_slurm(const Variables& variables) {
  const char* size_name = slurm_size_name(variables);
  Launch launch;
  launch.rank = required(variables.rank("SLURM_PROCID"), "SLURM_PROCID", "SLURM_STEP_ID");
  launch.world_size = required(variables.size(size_name), size_name, "SLURM_STEP_ID");
  check_rank(launch.rank, "SLURM_PROCID", launch.world_size, size_name);
  read_slurm_tasks_here(variables, launch);

  read_address(variables, "MASTER_ADDR", launch);
  if (launch.master_address.empty()) {
    const char* name = variables.first_set("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
    const std::string nodes = variables.text(name).value_or("");
    const std::optional<std::string> host = first_host(nodes);
    if (!host)
      refuse(fmt::format("{}={} is not a list of hosts", name, quote(nodes)),
             "set MASTER_ADDR to the host of task 0 before srun");
    launch.master_address = *host;
  }
  if (variables.has("MASTER_PORT")) {
    read_port(variables, "MASTER_PORT", launch);
  } else {
    const int64_t job = required(variables.integer("SLURM_JOB_ID", 0, kMostSlurmId), "SLURM_JOB_ID", "SLURM_STEP_ID");
    const int64_t step = variables.integer("SLURM_STEP_ID", 0, kMostSlurmId).value_or(0);
    launch.master_port = static_cast<uint16_t>(20000 + (16 * job + step) % 10000);
  }
  return launch;
}

/// PyTorchJob and Trainer describe nodes, and leave it to torchrun to start so many processes on each; the words ask it
/// to count devices. Started without torchrun, fettle is one process a node.
void check_one_process_a_node(const Variables& variables) {
  constexpr std::array<std::string_view, 5> kWords = {"auto", "cpu", "gpu", "hpu", "xpu"};
  const char* name = "PET_NPROC_PER_NODE";
  const std::string value = variables.text(name).value_or("auto");
  if (std::ranges::find(kWords, value) != kWords.end()) return;
  if (variables.size(name) != 1)
    refuse(fmt::format("{}={}: only torchrun starts several processes on a node, and it did not start this one", name,
                       quote(value)),
           "set one process a node (numProcPerNode or nprocPerNode: 1) and fettle's own nproc_per_node, or start "
           "`torchrun --no-python fettle …`");
}

bool has_ranks(const Variables& variables) {
  return variables.has("RANK") && variables.has("WORLD_SIZE");
}

bool has_pytorch_job(const Variables& variables) {
  return has_ranks(variables) && variables.has("PET_NNODES") && !variables.has("LOCAL_RANK");
}

Launch read_pytorch_job(const Variables& variables) {
  check_one_process_a_node(variables);
  Launch launch;
  launch.rank = required(variables.rank("RANK"), "RANK", "WORLD_SIZE");
  launch.world_size = required(variables.size("WORLD_SIZE"), "WORLD_SIZE", "RANK");
  check_rank(launch.rank, "RANK", launch.world_size, "WORLD_SIZE");
  read_store(variables, "leave MASTER_ADDR to the PyTorchJob, which sets it in each pod", launch);
  return launch;
}

Launch read_environment(const Variables& variables) {
  Launch launch = read_ranks(variables, {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"});
  read_store(variables, "set it to the host name or address of rank 0, 127.0.0.1 if all are on one machine", launch);
  return launch;
}

bool has_trainer(const Variables& variables) {
  return variables.has("PET_NNODES");
}

/// PET_NNODES is "2", or "1:4" for an elastic run, whose size only torchrun's agents agree on.
int64_t read_nodes(const Variables& variables) {
  const char* name = "PET_NNODES";
  const std::string value = variables.text(name).value_or("");
  const size_t colon = value.find(':');
  if (colon == std::string::npos) return required(variables.size(name), name, "PET_NODE_RANK");
  const std::optional<int64_t> least = parse_integer(std::string_view(value).substr(0, colon));
  const std::optional<int64_t> most = parse_integer(std::string_view(value).substr(colon + 1));
  if (!least || least != most || *least < 1 || *least > kMostProcesses)
    refuse(fmt::format("{}={} is not one number of nodes: only torchrun settles how many of an elastic run there are",
                       name, quote(value)),
           "start `torchrun --no-python fettle …`, or give one number");
  return *least;
}

Launch read_trainer(const Variables& variables) {
  check_one_process_a_node(variables);
  Launch launch;
  launch.world_size = read_nodes(variables);
  if (launch.world_size == 1) return launch;
  launch.rank = required(variables.rank("PET_NODE_RANK"), "PET_NODE_RANK", "PET_NNODES");
  check_rank(launch.rank, "PET_NODE_RANK", launch.world_size, "PET_NNODES");
  read_address(variables, "PET_MASTER_ADDR", launch);
  read_port(variables, "PET_MASTER_PORT", launch);
  if (launch.master_address.empty())
    refuse(fmt::format("PET_MASTER_ADDR is empty or not set, and the run has {} nodes", launch.world_size),
           "leave it to the TrainJob, which sets it, or set it to the host name of node 0");
  return launch;
}

bool has_indexed_job(const Variables& variables) {
  return variables.has("JOB_COMPLETION_INDEX") && variables.size("WORLD_SIZE").value_or(1) > 1;
}

Launch read_indexed_job(const Variables& variables) {
  Launch launch;
  launch.rank = required(variables.rank("JOB_COMPLETION_INDEX"), "JOB_COMPLETION_INDEX", "WORLD_SIZE");
  launch.world_size = required(variables.size("WORLD_SIZE"), "WORLD_SIZE", "JOB_COMPLETION_INDEX");
  check_rank(launch.rank, "JOB_COMPLETION_INDEX", launch.world_size, "WORLD_SIZE");
  read_store(variables, "set it in the manifest to the first pod's name in the headless Service: <job>-0.<service>",
             launch);
  return launch;
}

struct Launcher {
  const char* name;
  bool (*is_there)(const Variables& variables);
  Launch (*read)(const Variables& variables);
  const char* rank;          ///< the variable that RANK must agree with, or null if it is RANK itself or overrules it
  bool starts_each = false;  ///< process of a machine, and not one that stands for all
};

/// The first that is there decides.
constexpr std::array kLaunchers = {
    Launcher{"torchrun", has_torchrun, read_torchrun, nullptr, true},
    Launcher{"mpirun", has_open_mpi, read_open_mpi, "OMPI_COMM_WORLD_RANK", true},
    Launcher{"mpirun", has_hydra, read_hydra, "PMI_RANK", true},
    Launcher{"Slurm", has_slurm, read_slurm, "SLURM_PROCID", true},
    Launcher{"PyTorchJob", has_pytorch_job, read_pytorch_job, nullptr},
    Launcher{"environment", has_ranks, read_environment, nullptr},
    Launcher{"Trainer (PET_*)", has_trainer, read_trainer, nullptr},
    Launcher{"Indexed Job", has_indexed_job, read_indexed_job, nullptr},
};

/// RANK and WORLD_SIZE beside mpirun or Slurm: a script that sets RANK before srun gives all tasks the same one.
void check_agreement(const Variables& variables, const Launcher& launcher, const Launch& launch) {
  const std::optional<int64_t> size = variables.size("WORLD_SIZE");
  const std::optional<int64_t> rank = variables.rank("RANK");
  if (size == 1) return;
  if (size && *size != launch.world_size)
    refuse(fmt::format("WORLD_SIZE={} contradicts {}, which started {} ({}={})", *size, launcher.name,
                       launch.world_size == 1 ? "one process" : fmt::format("{} processes", launch.world_size),
                       launcher.rank, launch.rank),
           "unset WORLD_SIZE, or make it the number of processes that are started");
  if (rank && *rank != launch.rank)
    refuse(fmt::format("RANK={} contradicts {}={} of {}", *rank, launcher.rank, launch.rank, launcher.name),
           "unset RANK: the launcher numbers the processes");
}

/// Half a description: one of many processes that do not know of each other would each train, and save over each other.
void check_single(const Variables& variables) {
  const int64_t size = variables.size("WORLD_SIZE").value_or(1);
  const int64_t rank = variables.rank("RANK").value_or(0);
  if (size > 1)
    refuse(fmt::format("WORLD_SIZE={} without a rank: RANK is not set, and no launcher gave one", size),
           "start fettle by torchrun, mpirun or srun, set RANK, or unset WORLD_SIZE to train with one process");
  if (rank > 0 && !variables.has("WORLD_SIZE"))
    refuse(fmt::format("RANK={} without WORLD_SIZE", rank), "set WORLD_SIZE, or unset RANK to train with one process");
}

}  // namespace

Launch read_launch(const Environment& environment) {
  const Variables variables(environment);
  for (const Launcher& launcher : kLaunchers) {
    if (!launcher.is_there(variables)) continue;
    Launch launch = launcher.read(variables);
    if (launcher.rank != nullptr) check_agreement(variables, launcher, launch);
    if (launch.world_size == 1) return {};
    launch.launcher = launcher.name;
    launch.is_one_of_machine = launcher.starts_each;
    return launch;
  }
  check_single(variables);
  return {};
}

}  // namespace fettle::dist
