# SPDX-License-Identifier: Apache-2.0
"""Real launchers start real runs of two processes, stop them and start them again; the results are the plain run's.

  environments     plain variables, LOCAL_RANK, an Indexed Job, PyTorchJob, Trainer (PET_*), Slurm's variables
  torchrun, mpirun the programs themselves (torch's in .venv-test, Debian's Open MPI), and our own nproc_per_node
  restarted        torchrun --max-restarts=1, with a worker killed
  stopped          SIGTERM to the launcher, Ctrl-C in its terminal, SIGTERM to one worker: all save
  lost             nproc_per_node: a killed worker ends the run by its name; a killed launcher takes its workers along
  sent_twice       a signal that comes from the terminal and from the launcher counts once
"""

import os
import pathlib
import re
import shutil
import signal
import sys
import time

import harness
import ranks
from harness import DONE, PREEMPTED, PROGRAM, ROOT, named, require
from ranks import Process, Ranks, Start, command

SIZE, STEPS = 2, 60
OPTIONS = {"max_steps": STEPS, "gradient_accumulation_steps": 2, "verify_saved_model": False}
LONGER = OPTIONS | {"gradient_accumulation_steps": 8, "max_steps": 40}  # mpirun passes SIGTERM on only after a second
TORCHRUN = ROOT / ".venv-test/bin/torchrun"
MPIRUN = "mpirun"
TIE = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # a worker ends with its launcher


def job(rank, size, port):
    """Kubernetes' Indexed Job, as the chart describes it."""
    return {"JOB_COMPLETION_INDEX": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port)}


def local(rank, size, port):
    return ranks.plain(rank, size, port) | {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}


def pytorch_job(rank, size, port):
    return ranks.plain(rank, size, port) | {"PET_NNODES": str(size), "PET_NPROC_PER_NODE": "1", "PYTHONUNBUFFERED": "1"}


def trainer(rank, size, port):
    """Kubeflow Trainer's TrainJob."""
    return {"PET_NNODES": str(size), "PET_NODE_RANK": str(rank), "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "localhost", "PET_MASTER_PORT": str(port)}


def slurm(rank, size, port):
    return {"SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
            "SLURM_NODEID": "0", "SLURM_NTASKS": str(size), "SLURM_STEP_NUM_TASKS": str(size),
            "SLURM_STEP_TASKS_PER_NODE": str(size), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": str(port)}


ENVIRONMENTS = {"plain variables": ranks.plain, "LOCAL_RANK": local, "Indexed Job": job, "PyTorchJob": pytorch_job,
                "Trainer (PET_*)": trainer, "Slurm's variables": slurm}


def start_torchrun(place, arguments, *more):
    require(TORCHRUN.exists(), f"{TORCHRUN} is absent: tools/setup.sh test")
    line = [TORCHRUN, "--no-python", f"--nproc-per-node={SIZE}", "--master-addr=127.0.0.1",
            f"--master-port={ranks.PORTS.free()}", *more, *TIE, PROGRAM, *arguments]
    return Process(line, place, ranks.environment_of(place))


def start_mpirun(place, arguments, *more):
    require(shutil.which(MPIRUN), "mpirun is absent: tools/setup.sh test")
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    line = [MPIRUN, *root, "--oversubscribe", "-n", SIZE, *more, *TIE, PROGRAM, *arguments]
    return Process(line, place, ranks.environment_of(place) | {"MASTER_PORT": str(ranks.PORTS.free())})


def start_own(place, arguments, *more):
    return Process([PROGRAM, *arguments, f"--nproc_per_node={SIZE}", *more], place, ranks.environment_of(place))


# How to start a run, and the variable that holds a worker's rank.
LAUNCHERS = {"torchrun": (start_torchrun, "RANK"), "mpirun": (start_mpirun, "OMPI_COMM_WORLD_RANK"),
             "nproc_per_node": (start_own, "RANK")}


class Launched:
    """A launcher at work; leaving the `with` ends it, and with it its workers."""

    def __init__(self, name, place, options, *more):
        self.output_dir = place / "out"
        self._place = place
        self._name = name
        self._options = options
        self._more = more
        self.process = self._start()

    def _start(self):
        return LAUNCHERS[self._name][0](self._place, command(self.output_dir, **self._options), *self._more)

    def again(self):
        self.process = self._start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.end()

    def workers(self):
        found = ranks.workers(self.process, LAUNCHERS[self._name][1])
        require(len(found) == SIZE, f"the workers are {found}\n{self.process.log}")
        return found

    def wait_for_step(self, step):
        log = self.process
        require(log.wait_for(lambda: f"step {step}/" in log.log), f"it ended before step {step}\n{log.log}")


_REFERENCES = {}


def reference(workplace, options=None):
    """The output folder of two plain ranks, made once. `options`: OPTIONS if not given."""
    options = options or OPTIONS
    key = str(options)
    if key not in _REFERENCES:
        place = workplace.new("plain")
        _REFERENCES[key] = ranks.train(command(place / "out", **options), place, SIZE)
    return _REFERENCES[key]


def environments(workplace, summary, _):
    """Every way in which a rank can be described."""
    expected = reference(workplace)

    def check(name):
        place = workplace.new("environment")
        outcomes = ranks.run(command(place / "out", **OPTIONS), place, Start(SIZE, environment=ENVIRONMENTS[name]))
        ranks.require_same(expected, place / "out", outcomes)
        summary.count(f"{name}: same bytes")
    harness.side_by_side(list(ENVIRONMENTS), check, summary)


def launchers(workplace, summary, _):
    """torchrun and mpirun, from the start to the end."""
    for name in LAUNCHERS:
        with Launched(name, workplace.new(name), OPTIONS) as launched:
            outcome = launched.process.finish()
            ranks.require_same(reference(workplace), launched.output_dir, {0: outcome})
        summary.count(f"{name}: same bytes")


def restarted(workplace, summary, _):
    """torchrun starts both workers again when one was killed; the run goes on where it was."""
    for victim in range(SIZE):
        with Launched("torchrun", workplace.new("restarted"), OPTIONS, "--max-restarts=1") as launched:
            launched.wait_for_step(7)
            ranks.kill(launched.workers()[victim])
            outcome = launched.process.finish()
            ranks.require_same(reference(workplace), launched.output_dir, {0: outcome})
            require((outcome.resumed or 0) >= 3, f"it went on from step {outcome.resumed}", outcome)
        summary.count("torchrun: restarts after a killed worker")


def to_launcher(launched):
    """As Kubernetes and Slurm stop a run."""
    launched.process.send(signal.SIGTERM)


def ctrl_c(launched):
    """As a terminal does: to all of the foreground's process group."""
    os.killpg(launched.process.pid, signal.SIGINT)


def to_one_worker(launched):
    ranks.kill(launched.workers()[1], signal.SIGTERM)


def stopped(workplace, summary, _):
    """However a launcher's run is told to stop, the state is saved, and the same command goes on from there."""
    expected = reference(workplace, LONGER)

    def check(case):
        name, stop = case
        with Launched(name, workplace.new("stopped"), LONGER) as launched:
            launched.wait_for_step(4)
            stop(launched)
            outcome = launched.process.finish()
            check_stop(f"{name}, {stop.__name__}", outcome, launched.output_dir)
            codes = re.findall(r"[Ee]xit ?code *: *(\d+)", outcome.log)
            if name == "nproc_per_node":
                require(outcome.code == PREEMPTED, f"it ended with {named(outcome.code)}", outcome)
            elif stop is to_one_worker:
                require(set(codes) == {str(PREEMPTED)}, f"{name} saw {codes}", outcome)
            launched.again()
            ranks.require_same(expected, launched.output_dir, {0: launched.process.finish()})
        summary.count(f"{name}: {stop.__name__.replace('_', ' ')}: saved and continued")
    stops = (to_launcher, ctrl_c, to_one_worker)
    harness.side_by_side([(name, stop) for name in LAUNCHERS for stop in stops], check, summary)


def check_stop(name, outcome, output_dir):
    """The workers said that they stopped at one step with 75's words, and it is saved. What mpirun was told to stop says
    last may not come through mpirun any more."""
    found = ranks.STOPPED.findall(outcome.log)
    least = 1 if name.startswith("mpirun") else SIZE
    require(least <= len(found) <= SIZE and len(set(step for _, step in found)) == 1,
            f"{name}: {len(found)} of {SIZE} workers say that they stopped with the state saved", outcome)
    whole = harness.whole_checkpoints(output_dir)
    step = int(found[0][1])
    require(whole and whole[-1] == step, f"{name}: stopped at step {step}, and {whole} are whole", outcome)
    require(outcome.code != DONE, f"{name}: the launcher ended with {named(outcome.code)}", outcome)


def lives(pid):
    """Whether a process is more than an entry that its parent has not collected."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lost(workplace, summary, _):
    """What a cluster does when memory is short: one process is gone, and the others must not stay behind."""
    with Launched("nproc_per_node", workplace.new("lost"), LONGER) as launched:
        launched.wait_for_step(4)
        ranks.kill(launched.workers()[1])
        outcome = launched.process.finish()
        require(outcome.code == 128 + signal.SIGKILL, f"it ended with {named(outcome.code)}", outcome)
        require("rank 1" in outcome.log, "nobody named the process that was killed", outcome)
        launched.again()
        ranks.require_same(reference(workplace, LONGER), launched.output_dir, {0: launched.process.finish()})
        summary.count("nproc_per_node: a killed worker: named, and continued")
    with Launched("nproc_per_node", workplace.new("lost"), LONGER) as launched:
        launched.wait_for_step(4)
        workers = launched.workers()
        launched.process.end()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(map(lives, workers.values())):
            time.sleep(0.05)
        require(not any(map(lives, workers.values())), f"of the workers {workers} some outlived their launcher")
        summary.count("nproc_per_node: a killed launcher takes its workers along")


def sent_twice(workplace, summary, _):
    """From the terminal to the whole group, and once more by the launcher that passes it on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        place = workplace.new("twice")
        start = Start(SIZE)
        with Ranks(command(place / "out", **OPTIONS), place, start) as running:
            require(running.wait_for_step(7), f"it ended before\n{running.log}")
            for pause in (0.05, 0.05, 0):
                for process in running.processes.values():
                    process.send(number)
                time.sleep(pause)
            ranks.require_stopped(running.finish(), place / "out")
        outcomes = ranks.run(command(place / "out", **OPTIONS), place, start)
        ranks.require_same(reference(workplace), place / "out", outcomes)
        summary.count(f"{named(-number)} three times at once: saved and continued")


if __name__ == "__main__":
    sys.exit(harness.main("launchers", [environments, launchers, restarted, stopped, lost, sent_twice]))
