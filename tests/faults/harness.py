# SPDX-License-Identifier: Apache-2.0
"""What the fault tests share: starting the program and watching it, reading its log, comparing results, the summary.

A test ends only processes that it started, by their own handles; they also end when the test does (setpriv --pdeathsig).
The environment:
  FETTLE_BUILD         folder of the program and the fault shim (default build/release)
  FETTLE_FAULTS_SEED   repeats the random choices of a run; every run prints its seed
  FETTLE_FAULTS_SCALE  so many times the random cases (default 1), for a long proof
  FETTLE_FAULTS_JOBS   cases at the same time (default 2, at most the processors)
  FETTLE_FAULTS_KEEP   keep the temporary folders of failed cases
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("FETTLE_BUILD", ROOT / "build/release")).resolve()
PROGRAM = BUILD / "fettle"
SHIM = BUILD / "tests/faults/libfault_shim.so"
SEED = int(os.environ.get("FETTLE_FAULTS_SEED", time.time_ns() % 1_000_000))
SCALE = int(os.environ.get("FETTLE_FAULTS_SCALE", 1))
JOBS = int(os.environ.get("FETTLE_FAULTS_JOBS", min(2, os.cpu_count() or 1)))
LONGEST_RUN = 120  # seconds; a healthy one takes a few
POLL = 0.001
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")  # not a launcher's ranks, not a user's settings

# Exit codes of src/base/error.h.
DONE, DATA, IO, PREEMPTED, CONFIG = 0, 65, 74, 75, 78

# What the program prints on standard error.
STARTED = ", 1 thread"  # the device is known
PREPARED = "validation: the end mark"  # so is the data
PLANNED = re.compile(r"(\d+) steps, \d+ an epoch")
RESUMING = re.compile(r"resuming from (\S+) at step (\d+) of \d+")
STEP = re.compile(r"step (\d+)/\d+  loss")
EVALUATED = re.compile(r"step (\d+)/\d+  evaluation loss")
COMPLETE = re.compile(r"this run is complete already")
PROMISE = re.compile(r"SIG(?:TERM|INT): saving the state after this micro-batch(?:, within (\d+) s)?")
AT_ONCE = re.compile(r"^stopped by SIG(?:TERM|INT); run the same command again", re.MULTILINE)
STOPPED = re.compile(r"stopped by SIG(?:TERM|INT) at step (\d+) of \d+; (?:the state is saved|no step is done)")
ERROR = re.compile(r"^error: .*$", re.MULTILINE)
WARNING = re.compile(r"^\S+ warning .*$", re.MULTILINE)

EVAL_STEPS = 10
SAVE_STEPS = 3

COMMON = [
    "train",
    f"--model_name_or_path={ROOT / 'examples/stories260K'}",
    f"--train_file={ROOT / 'examples/data/tinystories_valid_350.jsonl'}",
    "--num_threads=1",
    "--per_device_train_batch_size=2",
    "--gradient_accumulation_steps=2",
    "--max_seq_length=64",
    "--learning_rate=1e-3",
    "--logging_steps=1",
    f"--save_steps={SAVE_STEPS}",
]
PLAIN_LORA = ["--lora_dropout=0.1", "--lora_r=4"]
EVALUATION = ["--validation_split_percentage=20", "--eval_strategy=steps", f"--eval_steps={EVAL_STEPS}"]
# A run of each kind must come out the same however often it was interrupted.
KINDS = {
    "LoRA, bf16, packed": [*PLAIN_LORA, "--bf16=true"],
    "LoRA, fp32, packed": [*PLAIN_LORA, "--bf16=false", "--save_total_limit=1"],
    "LoRA, fp32, one record a row, plateau": [
        *PLAIN_LORA, "--bf16=false", "--packing=false", "--lr_scheduler_type=reduce_lr_on_plateau"],  # needs EVALUATION
    "full, fp32, packed": ["--use_peft=false", "--bf16=false"],
}


def arguments(kind, output_dir, *more):
    return [*COMMON, *KINDS[kind], f"--output_dir={output_dir}", *more]


@dataclasses.dataclass
class Outcome:
    """A process that has ended. `code` is negative for a signal, as subprocess has it."""

    code: int
    log: str
    seconds: float

    @property
    def error(self):
        """The program's last words, or an empty string."""
        found = ERROR.search(self.log)
        return found.group() if found else ""

    @property
    def warnings(self):
        return WARNING.findall(self.log)

    @property
    def resumed(self):
        """The step at which it took up the run, 0 if at the first, None if it found nothing to do."""
        if COMPLETE.search(self.log):
            return None
        found = RESUMING.search(self.log)
        return int(found.group(2)) if found else 0

    @property
    def last_step(self):
        """The last step it has logged, None if none."""
        steps = STEP.findall(self.log)
        return int(steps[-1]) if steps else None


def named(number):
    """SIGKILL for -9, the number itself for an exit code."""
    return signal.Signals(-number).name if number < 0 else str(number)


class Program:
    """A running `fettle`, its standard error in a file of its own."""

    def __init__(self, command, place, rules="", environment=None):
        """`place`: a folder for its cache and logs. `rules`: of fault_shim.c, below output_dir. `environment`: further
        variables, for instance the RANK of one process of several.
        """
        place.mkdir(parents=True, exist_ok=True)
        self.log_file = place / f"stderr-{time.monotonic_ns()}"
        self.operations_file = place / f"operations-{time.monotonic_ns()}"
        variables = {name: os.environ[name] for name in INHERITED if name in os.environ}
        variables |= {"XDG_CACHE_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1", "HOME": str(place)}
        if rules:
            folder = next(a.split("=", 1)[1] for a in command if a.startswith("--output_dir="))
            variables |= {"LD_PRELOAD": str(SHIM), "FETTLE_FAULT_FOLDER": folder, "FETTLE_FAULT_RULES": rules,
                          "FETTLE_FAULT_LOG": str(self.operations_file)}
        variables |= environment or {}
        line = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._began = time.monotonic()
        with open(self.log_file, "wb") as log:
            self._process = subprocess.Popen([*line, PROGRAM, *command], env=variables, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.DEVNULL, stderr=log)
        self._end = os.pidfd_open(self._process.pid)

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    @property
    def operations(self):
        """What the shim has seen below output_dir: (operation, errno, path, source of a rename or None)."""
        found = []
        for line in self.operations_file.read_text().splitlines():
            operation, error, path = line.split(" ", 2)
            target, _, source = path.partition(" <- ")
            found.append((operation, int(error), target, source or None))
        return found

    def ended(self, seconds=0.0):
        """Whether it ends within so many seconds."""
        return bool(select.select([self._end], [], [], seconds)[0])

    def wait_for(self, condition):
        """Calls `condition` until it is true; False if the program ended first."""
        began = time.monotonic()
        while not condition():
            if self.ended(POLL):
                return False
            if time.monotonic() - began > LONGEST_RUN:
                raise TimeoutError(f"nothing came of it in {LONGEST_RUN} s:\n{self.log}")
        return True

    def send(self, number):
        if not self.ended():
            self._process.send_signal(number)

    def wait_until_stopped(self):
        """Until a rule of the shim stops it; False if it ended first."""
        def stopped():
            return "State:\tT" in pathlib.Path(f"/proc/{self._process.pid}/status").read_text()
        return self.wait_for(stopped)

    def go_on(self):
        self.send(signal.SIGCONT)

    def finish(self, limit=LONGEST_RUN):
        """Waits for its end; one that hangs is killed and reported."""
        in_time = self.ended(limit)
        if not in_time:
            self._process.kill()
        code = self._process.wait()
        outcome = Outcome(code, self.log, time.monotonic() - self._began)
        os.close(self._end)
        if not in_time:
            raise TimeoutError(f"it did not end within {limit} s:\n{outcome.log}")
        return outcome


def run(command, place, rules="", environment=None):
    return Program(command, place, rules, environment).finish()


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves behind


def is_volatile(name):
    """Figures of speed, memory, time and caches are of the moment, not of the run."""
    return any(part in name for part in ("second", "memory", "mfu", "runtime", "flops", "compiled_graphs", "warmup"))


def lasting(value):
    """A JSON value without what is_volatile."""
    if isinstance(value, dict):
        return {name: lasting(part) for name, part in value.items() if not is_volatile(name)}
    return [lasting(part) for part in value] if isinstance(value, list) else value


def content(path):
    """What two equal runs have in common of a file, in a form that can be compared."""
    if path.name == "metrics.jsonl":
        return [lasting(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name in ("all_results.json", "trainer_state.json"):
        return lasting(json.loads(path.read_text()))
    return path.read_bytes()


NOT_COMPARED = {"manifest.sha256", "README.md", "fettle_config.json", "manifest.json"}  # hold times, the path, and hashes of times


def differences(reference, result):
    """One sentence for each file of two output folders that differs or lies in one of them alone. Both runs are done.

    Of the checkpoints only the newest counts: one that cannot be removed, or the step at which a run was stopped, may
    leave others behind it.
    """
    older = {f"checkpoint-{step}" for place in (reference, result) for step in checkpoints(place)
             if step < max(checkpoints(reference), default=0)}

    def files(folder):
        paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        return {str(path) for path in paths if path.parts[0] not in older}
    there, here = files(reference), files(result)
    found = [f"{name} is missing" for name in sorted(there - here)] + [f"{name} is left" for name in sorted(here - there)]
    for name in sorted(there & here):
        if pathlib.Path(name).name not in NOT_COMPARED and content(reference / name) != content(result / name):
            found.append(f"{name} differs")
    return found


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blake3(path):
    """By b3sum(1), which is not Fettle's."""
    with open(path, "rb") as file:
        return subprocess.run(["b3sum", "--no-names"], stdin=file, check=True, capture_output=True, text=True).stdout.strip()


def is_whole(checkpoint):
    """The manifest's sizes and hashes hold, by this module's own reading of them."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_bytes())["files"]
        return bool(files) and all((checkpoint / name).stat().st_size == entry["bytes"]
                                   and blake3(checkpoint / name) == entry["blake3"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def checkpoints(output_dir):
    """{step: folder} of all that are named as checkpoints."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in output_dir.glob("checkpoint-*")]
    return {int(match.group(1)): path for match, path in sorted(matches, key=lambda pair: str(pair[1])) if match}


def whole_checkpoints(output_dir):
    """Their steps, ascending."""
    return sorted(step for step, folder in checkpoints(output_dir).items() if is_whole(folder))


def is_finished(output_dir):
    with contextlib.suppress(OSError, ValueError):
        return json.loads((output_dir / "run.json").read_text())["finished"] is True
    return False


def fingerprint(folder, leave_out=(".lock",)):
    """{path: hash} of all files below a folder, to see that nothing was deleted or changed."""
    return {str(path.relative_to(folder)): sha256(path)
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in leave_out}


def was_saving(output_dir):
    """Whether a process that was killed left a half written checkpoint. Saving goes on beside every other stage."""
    return any(path.name.endswith(".unfinished") for path in output_dir.glob("*"))


def stage(log):
    """What a process was doing when it was killed, from its log."""
    steps = re.findall(r"(?:step|at step) (\d+)(?:/| of )(\d+)", log)
    if not steps:
        return "data" if STARTED in log and PREPARED not in log else "setup"
    last, total = steps[-1]
    if last == total and (f"at step {total} of" in log or f"step {total}/{total}  evaluation" in log):
        return "final save"
    if not STEP.search(log):
        return "setup"
    is_due = int(last) % EVAL_STEPS == 0 or last == total
    return "evaluation" if is_due and last not in EVALUATED.findall(log) else "step"


# ---------------------------------------------------------------------------------------------------------------------
# Cases side by side, and the summary


class Workplace:
    """A temporary folder for one test file, and the uninterrupted runs that others are compared with."""

    def __init__(self, name, parent=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix=f"fettle-{name}-", dir=parent)).resolve()
        self.failed = False
        self._references = {}
        self._locks = threading.Lock()
        self._count = 0

    def close(self):
        if self.failed and "FETTLE_FAULTS_KEEP" in os.environ:
            print(f"kept: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def new(self, name="case"):
        with self._locks:
            self._count += 1
            place = self.folder / f"{name}-{self._count}"
        place.mkdir()
        return place

    def reference(self, kind, *more):
        """The output folder of an uninterrupted run, made once."""
        key = (kind, more)
        with self._locks:
            if key in self._references:
                return self._references[key]
            place = self.folder / f"reference-{len(self._references)}"
            outcome = run(arguments(kind, place / "out", *more), place)
            if outcome.code != DONE:
                raise AssertionError(f"the uninterrupted run ended with {named(outcome.code)}:\n{outcome.log}")
            self._references[key] = place / "out"
            return place / "out"


class Summary:
    """Counts what was done, for the table at the end. May be used from several threads."""

    def __init__(self, title):
        self.title = title
        self.failures = []
        self._rows = {}
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def count(self, row, number=1):
        with self._lock:
            self._rows[row] = self._rows.get(row, 0) + number

    def counted(self, row):
        with self._lock:
            return self._rows.get(row, 0)

    def fail(self, case, reason):
        with self._lock:
            self.failures.append(f"{case}: {reason}")
            print(f"FAILED {case}: {reason}", flush=True)

    def table(self):
        rows = [(row, str(number)) for row, number in self._rows.items()]
        rows += [("failures", str(len(self.failures))), ("seconds", f"{time.monotonic() - self._began:.0f}"),
                 ("seed", str(SEED))]
        width = max(len(row) for row, _ in rows)
        lines = [f"| {self.title:<{width}} | number |", f"|{'-' * (width + 2)}|-------:|"]
        return "\n".join(lines + [f"| {row:<{width}} | {number:>6} |" for row, number in rows])


def side_by_side(cases, check, summary):
    """check(case) for every case, JOBS at a time; what it raises becomes a failure of that case."""
    def one(case):
        try:
            check(case)
        except Exception as error:  # pylint: disable=broad-except  # the other cases still count
            summary.fail(getattr(case, "name", case), f"{type(error).__name__}: {error}")
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(one, cases))


def require(condition, message, outcome=None):
    """As assert, with the program's log."""
    if not condition:
        raise AssertionError(message + (f"\n--- exit {named(outcome.code)}, log:\n{outcome.log}" if outcome else ""))


def require_same(reference, output_dir, outcome):
    """The run that ended with `outcome` is done and its result is that of the uninterrupted one."""
    require(outcome.code == DONE, f"the resumed run ended with {named(outcome.code)}", outcome)
    found = differences(reference, output_dir)
    require(not found, f"the result is another: {'; '.join(found)}", outcome)


def main(name, tests):
    """Runs the test functions of a file, each given (workplace, summary, random); the process's exit code."""
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is absent: build it, or name its folder in FETTLE_BUILD")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored, and inherited
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    print(f"{name}: seed {SEED}, {JOBS} at a time, {PROGRAM}", flush=True)
    workplace, summary = Workplace(name), Summary(name)
    wanted = sys.argv[1:]
    try:
        for test in tests:
            if wanted and test.__name__ not in wanted:
                continue
            print(f"{test.__name__}: {test.__doc__.splitlines()[0]}", flush=True)
            try:
                test(workplace, summary, random.Random(f"{SEED} {test.__name__}"))
            except Exception as error:  # pylint: disable=broad-except  # the other tests still count
                summary.fail(test.__name__, f"{type(error).__name__}: {error}")
    finally:
        workplace.failed = bool(summary.failures)
        workplace.close()
    print("\n".join(["", summary.table(), *(f"FAILED {failure.splitlines()[0]}" for failure in summary.failures)]))
    return 1 if summary.failures else 0
