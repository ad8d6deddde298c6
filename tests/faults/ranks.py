# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: starting them, what they must say, and comparing what they computed."""

import array
import collections.abc
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import harness
from harness import DONE, PREEMPTED, PROGRAM, named, require

UNAVAILABLE = 69
LAST_WORDS = re.compile(r"^rank (\d+): (?:error: )?(.*)$", re.MULTILINE)
STOPPED = re.compile(r"stopped by (SIGTERM|SIGINT|a signal to another rank) at step (\d+) of \d+; (?:the state is saved|no step is done)")

# ---------------------------------------------------------------------------------------------------------------------
# Command lines


def parsed(arguments):
    return dict(argument.removeprefix("--").split("=", 1) for argument in arguments)


LORA = parsed(harness.COMMON[1:] + harness.PLAIN_LORA) | {
    "bf16": "false", "per_device_train_batch_size": "1", "gradient_accumulation_steps": "1", "peer_timeout": "20"}


def command(output_dir, **options):
    """`fettle train`: LoRA on the embedded model in float32, one micro-batch of one row a rank and step, but for the
    options given here. None leaves an option out."""
    merged = {name: value for name, value in (LORA | {"output_dir": output_dir} | options).items() if value is not None}
    return ["train", *(f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in merged.items())]


# ---------------------------------------------------------------------------------------------------------------------
# Starting


class Ports:
    """Ports below those that Linux hands out for outgoing connections, each given out once."""

    def __init__(self):
        self._lock = threading.Lock()
        self._next = random.Random(os.getpid()).randrange(20000, 30000)

    def free(self):
        with self._lock:
            while True:
                self._next = 20000 + (self._next - 20000 + 1) % 10000
                with socket.socket() as tried:
                    tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        tried.bind(("", self._next))
                        return self._next
                    except OSError:
                        continue


PORTS = Ports()


def environment_of(place):
    """Of a process that no launcher has started, with its cache in `place`."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"XDG_CACHE_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "HOME": str(place), "TMPDIR": str(place)}


class Process(harness.Program):
    """As harness.Program, of any command line. It ends with the thread that started it."""

    def __init__(self, line, place, environment, cwd=None):
        # pylint: disable=super-init-not-called  # which knows one command line
        place.mkdir(parents=True, exist_ok=True)
        self.log_file = place / f"stderr-{time.monotonic_ns()}"
        tie = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._began = time.monotonic()
        with open(self.log_file, "wb") as log:
            self._process = subprocess.Popen(  # pylint: disable=consider-using-with  # finish() waits
                [*tie, *map(str, line)], env=environment, cwd=cwd, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self._end = os.pidfd_open(self._process.pid)
        self._outcome = None

    @property
    def pid(self):
        return self._process.pid

    def finish(self, limit=harness.LONGEST_RUN):
        """As harness.Program.finish, also when called again."""
        if self._outcome is None:
            self._outcome = super().finish(limit)
        return self._outcome

    def ended(self, seconds=0.0):
        return self._outcome is not None or super().ended(seconds)

    def end(self):
        """Ends it, whatever it does."""
        if self._outcome is None:
            self._process.kill()
            self.finish()


def plain(rank, size, port):
    """The least that describes a rank."""
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@dataclasses.dataclass
class Start:
    """How the processes of a run are started. A function of the rank where they differ."""

    size: int
    port: int = dataclasses.field(default_factory=PORTS.free)
    environment: collections.abc.Callable = plain  # of (rank, size, port)
    more: dict = dataclasses.field(default_factory=dict)  # {rank: further arguments}
    prefix: collections.abc.Callable = lambda rank: []  # what comes before the program
    folder: collections.abc.Callable = lambda rank: None  # the current one
    absent: tuple = ()  # ranks that are not started


class Ranks:
    """The running processes of one run; leaving the `with` ends those that are left."""

    def __init__(self, arguments, place, start):
        self.start = start
        self._arguments = arguments
        self._place = place
        self.processes = {}
        for rank in range(start.size):
            if rank not in start.absent:
                self.launch(rank)

    def launch(self, rank):
        start = self.start
        line = [*start.prefix(rank), PROGRAM, *self._arguments, *start.more.get(rank, [])]
        environment = environment_of(self._place) | start.environment(rank, start.size, start.port)
        self.processes[rank] = Process(line, self._place / f"rank-{rank}", environment, start.folder(rank))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.end()

    @property
    def main(self):
        return self.processes[0]

    @property
    def log(self):
        """Of all ranks, one after the other."""
        return "\n".join(f"--- rank {rank}:\n{process.log}" for rank, process in sorted(self.processes.items()))

    def wait_for_step(self, step):
        """Until rank 0 has logged it; False if it ended before."""
        return self.main.wait_for(lambda: any(int(found) >= step for found in harness.STEP.findall(self.main.log)))

    def finish(self, limit=harness.LONGEST_RUN, without=()):
        """{rank: Outcome} when all have ended, but for the ranks in `without`."""
        deadline = time.monotonic() + limit
        wanted = {rank: process for rank, process in self.processes.items() if rank not in without}
        late = [rank for rank, process in wanted.items() if not process.ended(max(0.0, deadline - time.monotonic()))]
        require(not late, f"ranks {late} did not end within {limit} s\n{self.log}")
        return {rank: process.finish() for rank, process in wanted.items()}


def run(arguments, place, start):
    """{rank: Outcome} of a run that nothing interrupts."""
    with Ranks(arguments, place, start) as ranks:
        return ranks.finish()


def require_done(outcomes):
    for rank, outcome in outcomes.items():
        require(outcome.code == DONE, f"rank {rank} ended with {named(outcome.code)}", outcome)


def train(arguments, place, size):
    """A run to its end; the output folder."""
    require_done(run(arguments, place, Start(size)))
    return pathlib.Path(parsed(arguments[1:])["output_dir"])


# ---------------------------------------------------------------------------------------------------------------------
# What they say


def last_words(outcome):
    """The sentence that a rank ended with, without its name; empty if it said none."""
    found = LAST_WORDS.findall(outcome.log)
    return found[-1][1] if found else ""


def require_one_line(rank, outcome):
    """A rank that fails says so in one line that begins with its name."""
    found = LAST_WORDS.findall(outcome.log)
    require(len(found) == 1 and found[0][0] == str(rank), f"rank {rank} says not one sentence but {found}", outcome)


def require_stopped(outcomes, output_dir):
    """All ended with 75 at the same step, which is saved; returns the step."""
    steps = set()
    for rank, outcome in outcomes.items():
        require(outcome.code == PREEMPTED, f"rank {rank} ended with {named(outcome.code)}, not {PREEMPTED}", outcome)
        found = STOPPED.search(outcome.log)
        require(found, f"rank {rank} does not say that the state is saved", outcome)
        steps.add(int(found.group(2)))
    require(len(steps) == 1, f"they stopped at the steps {steps}", outcomes[0])
    whole = harness.whole_checkpoints(output_dir)
    require(whole and {whole[-1]} == steps, f"they stopped at step {steps}, and {whole} are whole", outcomes[0])
    return steps.pop()


# ---------------------------------------------------------------------------------------------------------------------
# What they computed


def read_tensors(path):
    """{name: array of float32} of a safetensors file (https://github.com/huggingface/safetensors, Format)."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            require(entry["dtype"] == "F32", f"{path}: {name} is {entry['dtype']}")
            begin, end = entry["data_offsets"]
            tensors[name] = array.array("f", data[8 + size + begin:8 + size + end])
    return tensors


def read_gradient(checkpoint):
    """The gradient of the first step, up to the factor 1 - beta1, from the optimizer's means after it."""
    tensors = read_tensors(checkpoint / "optimizer.safetensors")
    return {name: values for name, values in tensors.items() if name.endswith(".exp_avg")}


def flat(tensors):
    return [value for name in sorted(tensors) for value in tensors[name]]


def distance(reference, tensors):
    """‖difference‖ / ‖reference‖ over all tensors together."""
    require(reference.keys() == tensors.keys(), f"other tensors: {reference.keys() ^ tensors.keys()}")
    there, here = flat(reference), flat(tensors)
    norm = math.hypot(*there)
    require(norm > 0 and math.isfinite(norm), f"the reference's norm is {norm}")
    return math.dist(there, here) / norm


def losses(output_dir):
    """{step: training loss}."""
    lines = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def loss_distance(reference, output_dir):
    """The largest relative difference of a step's loss."""
    there, here = losses(reference), losses(output_dir)
    require(there.keys() == here.keys() and there, f"steps {sorted(there)} and {sorted(here)}")
    return max(abs(there[step] - here[step]) / abs(there[step]) for step in there)


def result_differences(reference, output_dir):
    """harness.differences, but for older checkpoints: an interrupted run saved at other steps too."""
    newest = f"checkpoint-{max(harness.whole_checkpoints(reference))}/"
    return [sentence for sentence in harness.differences(reference, output_dir)
            if not sentence.startswith("checkpoint-") or sentence.startswith(newest)]


def require_same(reference, output_dir, outcomes):
    """The ranks are done, and the result is that of the uninterrupted run, byte for byte."""
    require_done(outcomes)
    found = result_differences(reference, output_dir)
    require(not found, f"the result is another: {'; '.join(found)}", outcomes.get(0))


# ---------------------------------------------------------------------------------------------------------------------
# Processes below a launcher


def descendants(pid):
    """The living processes below one, by their pids."""
    parents = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def workers(launcher, rank_variable):
    """{rank: pid} of the fettle processes below a launcher."""
    found = {}
    for pid in descendants(launcher.pid):
        try:
            program = os.readlink(f"/proc/{pid}/exe")
            variables = dict(entry.split("=", 1) for entry in
                             pathlib.Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry)
        except OSError:
            continue
        if program == str(PROGRAM) and rank_variable in variables:
            found[int(variables[rank_variable])] = pid
    return found


def kill(pid, number=signal.SIGKILL):
    """A worker of a launcher that this test started."""
    os.kill(pid, number)
