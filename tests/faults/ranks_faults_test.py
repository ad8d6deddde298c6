# SPDX-License-Identifier: Apache-2.0
"""One rank of four fails, stops, is told to stop, never comes or was started otherwise: the others say which, in time.

  lost           SIGKILL and SIGSTOP of one rank at random moments: the others end with 69 and name it, rank 0 saves, and
                 the run goes on to the same bytes
  stop_signals   SIGTERM to one rank at random moments: all stop, and the state is saved
  rendezvous     ranks that do not come: 69 after ddp_timeout, and who is missing
  disagreements  other options, records or weights on one rank: 78 and both values
"""

import collections
import re
import shutil
import signal
import sys
import threading
import time

import harness
import ranks
from harness import CONFIG, DONE, PREEMPTED, named, require
from ranks import UNAVAILABLE, Ranks, Start, command

SIZE, STEPS = 4, 60
# Seconds; the last from the fault to the end of the last rank. On a busy machine one rank may come to the rendezvous 8 s
# after another. A rank that stops with the lock of the cache costs the others 20 s more, before they wait for it as long
# as for one that did not come.
PEER_TIMEOUT, RENDEZVOUS, LONGEST = 5, 14, 36
OPTIONS = {"max_steps": STEPS, "validation_split_percentage": 20, "eval_strategy": "steps", "eval_steps": harness.EVAL_STEPS,
           "peer_timeout": PEER_TIMEOUT, "ddp_timeout": RENDEZVOUS}
STAGES = ("setup", "data", "step", "save", "evaluation", "final save")
FAULTS = 10 * harness.SCALE  # of each signal
STOPS = 5 * harness.SCALE
A_CHAIN = 5  # interruptions of one run before it is left in peace


class Durations:
    """How long the stages of an uninterrupted run take; `output_dir` is its result."""

    def __init__(self, place):
        self.output_dir = place / "out"
        marks = {"data": "thread", "planned": " steps, ", "first": "step 1/", "tenth": "step 10/", "evaluated":
                 f"step 10/{STEPS}  evaluation", "last": f"step {STEPS}/{STEPS}  evaluation"}
        seen = {}
        began = time.monotonic()
        with Ranks(command(self.output_dir, **OPTIONS), place, Start(SIZE)) as running:
            def look():
                log = running.main.log
                for name, text in marks.items():
                    if text in log:
                        seen.setdefault(name, time.monotonic() - began)
                return len(seen) == len(marks)
            require(running.main.wait_for(look), f"the log lacks {set(marks) - set(seen)}\n{running.log}")
            ranks.require_done(running.finish())
        self.setup = seen["first"]
        self.data = seen["planned"] - seen["data"]
        self.step = (seen["tenth"] - seen["first"]) / 9
        self.evaluation = seen["evaluated"] - seen["tenth"]
        self.final = time.monotonic() - began - seen["last"]


def wait_for_stage(stage, running, output_dir, pause):
    """Until a stage and so much of it; False if the run ended before. pause(name): a random part of Durations.name."""
    main = running.main

    def unfinished():
        return any(path.name.endswith(".unfinished") for path in output_dir.glob("checkpoint-*"))

    def to_evaluate():
        found = harness.STEP.findall(main.log)
        return bool(found) and int(found[-1]) % harness.EVAL_STEPS == 0

    if stage == "setup":
        return not main.ended(pause("setup"))
    if stage == "data":
        return main.wait_for(lambda: "thread" in main.log) and not main.ended(pause("data"))
    if stage == "step":
        return running.wait_for_step(3) and not main.ended(8 * pause("step"))
    if stage == "save":
        return main.wait_for(unfinished) and not main.ended(pause("step"))
    if stage == "evaluation":
        return main.wait_for(to_evaluate) and not main.ended(pause("evaluation"))
    return main.wait_for(lambda: f"step {STEPS}/{STEPS}  evaluation" in main.log) and not main.ended(pause("final"))


class Case:
    """One rank in one stage, and what happens to it."""

    def __init__(self, stage, rank, number):
        self.stage = stage
        self.rank = rank
        self.number = number

    def __str__(self):
        return f"{named(-self.number)} to rank {self.rank} in {self.stage}"


class Hand:
    """The cases of one chain."""

    def __init__(self, number, cases):
        self.number = number
        self.cases = sorted(cases, key=lambda case: case.stage == "final save")  # after it nothing could follow
        self.name = ", ".join(map(str, self.cases))


class Table:
    """One row a case."""

    def __init__(self):
        self._rows = []
        self._lock = threading.Lock()

    def add(self, case, step, seconds, message):
        with self._lock:
            self._rows.append((case.stage, "-" if step is None else str(step), f"rank {case.rank}: {named(-case.number)}",
                               f"{seconds:.1f}", message))

    def show(self):
        head = ("moment", "step", "cause", "s", "what the first of the others says")
        widths = [max(len(row[i]) for row in [head, *self._rows]) for i in range(4)]
        for row in [head, *sorted(self._rows)]:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)) + "  " + row[4])


class Chain:
    """One run of four ranks, interrupted several times and then left in peace."""

    def __init__(self, workplace, durations, random, judge):
        """`judge(case, running, chain)` makes the fault and looks at what comes of it."""
        self.durations = durations
        self.place = workplace.new("chain")
        self.output_dir = self.place / "out"
        self.output_dir.mkdir()
        self.start = Start(SIZE)  # the same port every time, as in a cluster
        self._random = random
        self._judge = judge

    def _begin(self):
        return Ranks(command(self.output_dir, **OPTIONS), self.place, self.start)

    def go(self, cases):
        """Returns the cases for which the run was over before."""
        for number, case in enumerate(cases):
            if case.stage == "data":  # without its cache it has data to prepare
                for file in (self.place / "cache").rglob("*.tokens"):
                    file.unlink()
            with self._begin() as running:
                def pause(name):
                    return self._random.uniform(0, getattr(self.durations, name))
                if not wait_for_stage(case.stage, running, self.output_dir, pause):
                    ranks.require_same(self.durations.output_dir, self.output_dir, running.finish())
                    return cases[number:]
                self._judge(case, running, self)
        with self._begin() as running:
            ranks.require_same(self.durations.output_dir, self.output_dir, running.finish())
        return []


def run_chains(cases, workplace, summary, random, judge):
    """Until every case has had its turn; a run that is over takes the case to the next one."""
    durations = Durations(workplace.new("uninterrupted"))
    rest = collections.deque()
    for attempt in range(12):  # the shortest stages are over before most signals
        random.shuffle(cases)
        hands = [Hand(f"{attempt} {begin}", cases[begin:begin + A_CHAIN]) for begin in range(0, len(cases), A_CHAIN)]

        def one(hand):
            chain = Chain(workplace, durations, type(random)(f"{harness.SEED} {hand.number}"), judge)
            rest.extend(chain.go(hand.cases))
            summary.count("interrupted runs compared with the uninterrupted")
        harness.side_by_side(hands, one, summary)
        cases = list(rest)
        rest.clear()
        if not cases:
            return
    require(False, f"no run could be interrupted by {', '.join(map(str, cases))}")


def deal(number, signals, random):
    """So many cases of each signal: all stages and all ranks."""
    stages = ["step", "save", "evaluation", "setup", "data", "step", "save", "evaluation", "final save", "step"]
    cases = []
    for each in signals:
        victims = random.sample(range(SIZE), SIZE) * number
        cases += [Case(stages[i % len(stages)], victims[i], each) for i in range(number)]
    return cases


# ---------------------------------------------------------------------------------------------------------------------
# A rank is gone


def root_cause(case, pid):
    """What the others must say: the rank that failed first, and nothing of those that ended because of it."""
    rank = case.rank
    gone = rf"rank {rank} \(host \S+, pid {pid}\) (is gone|has not answered for \d+ s)"
    absent = rf"ranks? (\d+, )*{rank}(, \d+)* of {SIZE} did not come within \d+ s"
    store = r"rank \d did not reach rank 0 at \S+:\d+ within \d+ s|rank 0 at \S+:\d+ (is gone|has not answered for \d+ s)"
    unreachable = store if rank == 0 else gone
    return re.compile("^(" + "|".join((gone, absent, unreachable)) + ")")


def judge_loss(case, running, chain, table, summary):
    victim = running.processes[case.rank]
    began = time.monotonic()
    victim.send(case.number)
    outcomes = running.finish(LONGEST + 30, without=(case.rank,))
    seconds = time.monotonic() - began
    expected = root_cause(case, victim.pid)
    said = ""
    for rank, outcome in outcomes.items():
        if outcome.code == DONE and case.stage == "final save":
            continue  # it had nothing left to do
        message = ranks.last_words(outcome)
        said = said or message
        require(outcome.code == UNAVAILABLE, f"{case}: rank {rank} ended with {named(outcome.code)}\n{running.log}")
        ranks.require_one_line(rank, outcome)
        require(expected.search(message), f"{case} (pid {victim.pid}): rank {rank} says: {message}\n{running.log}")
    require(seconds <= LONGEST, f"{case}: the last one ended after {seconds:.1f} s\n{running.log}")
    if case.rank != 0 and outcomes[0].last_step is not None:
        whole = harness.whole_checkpoints(chain.output_dir)
        require(whole and whole[-1] == outcomes[0].last_step,
                f"{case}: rank 0 had done step {outcomes[0].last_step}, and {whole} are whole\n{running.log}")
    step = running.main.log and harness.STEP.findall(running.main.log)
    table.add(case, step[-1] if step else None, seconds, said or "(all were done)")
    judge_victim(case, victim, chain, summary)


def judge_victim(case, victim, chain, summary):
    """A rank that was stopped either is killed or goes on: then it ends by itself, and spoils nothing."""
    summary.count(f"{named(-case.number)} of one rank")
    if case.number == signal.SIGKILL or case.rank % 2:
        victim.end()
        return
    before = harness.fingerprint(chain.output_dir) if case.rank else None
    victim.send(signal.SIGCONT)
    outcome = victim.finish(LONGEST + 30)
    require(outcome.code in (UNAVAILABLE, DONE) and (outcome.code == UNAVAILABLE or case.stage == "final save"),
            f"{case}, then SIGCONT: it ended with {named(outcome.code)}", outcome)
    require(before is None or before == harness.fingerprint(chain.output_dir), f"{case}, then SIGCONT: it changed files", outcome)
    summary.count("stopped ranks that went on and ended by themselves")


def lost(workplace, summary, random):
    """Every other rank ends with 69, names the rank that is gone, and the next start goes on to the same bytes."""
    table = Table()

    def judge(case, running, chain):
        judge_loss(case, running, chain, table, summary)
    try:
        run_chains(deal(FAULTS, (signal.SIGKILL, signal.SIGSTOP), random), workplace, summary, random, judge)
    finally:
        table.show()


def held_cache(workplace, summary, _):
    """A rank that stops while it prepares the records for all ranks of its machine does not hold them for ever."""
    place = workplace.new("held")
    cache = place / "cache"
    shim = {"LD_PRELOAD": str(harness.SHIM), "FETTLE_FAULT_FOLDER": str(cache),
            "FETTLE_FAULT_RULES": "operations=rename,name=.tokens,action=stop"}

    def environment(rank, size, port):
        return ranks.plain(rank, size, port) | (shim if rank == 1 else {})
    start = Start(SIZE, environment=environment, absent=(0, 2, 3))
    with Ranks(command(place / "out", **OPTIONS), place, start) as running:
        require(running.processes[1].wait_until_stopped(), f"it did not come to its cache\n{running.log}")
        for rank in start.absent:
            running.launch(rank)
        expected = root_cause(Case("data", 1, signal.SIGSTOP), running.processes[1].pid)
        for rank, outcome in running.finish(2 * LONGEST, without=(1,)).items():
            require(outcome.code == UNAVAILABLE, f"rank {rank} ended with {named(outcome.code)}\n{running.log}")
            require(expected.search(ranks.last_words(outcome)), f"rank {rank} does not name rank 1\n{running.log}")
        running.processes[1].end()
        for rank in range(SIZE):
            running.launch(rank)
        ranks.require_done(running.finish())
    summary.count("ranks that stopped with the cache's lock")


# ---------------------------------------------------------------------------------------------------------------------
# A rank is told to stop


def judge_stop(case, running, chain, table, summary):
    before = harness.whole_checkpoints(chain.output_dir)
    began = time.monotonic()
    running.processes[case.rank].send(case.number)
    outcomes = running.finish(LONGEST + 30)
    seconds = time.monotonic() - began
    own = outcomes[case.rank]
    others = [outcome for rank, outcome in outcomes.items() if rank != case.rank]
    if outcomes[0].last_step is not None and own.code == PREEMPTED and ranks.STOPPED.search(own.log):
        ranks.require_stopped(outcomes, chain.output_dir)
        row = "in a step: all saved, exit 75"
    elif own.code == -case.number:
        require(own.log == "", f"{case}: the signal killed it, though it had begun", own)
        row = "before main began"
    elif case.stage == "final save":
        require(own.code in (DONE, PREEMPTED), f"{case}: it ended with {named(own.code)}", own)
        require({outcome.code for outcome in others} <= {DONE, UNAVAILABLE}, f"{case}\n{running.log}")
        row = "after the last step"
    else:  # before the run had begun there was nothing to save
        require(case.stage in ("setup", "data"), f"{case}: they did not save\n{running.log}")
        require(own.code == PREEMPTED, f"{case}: it ended with {named(own.code)}", own)
        expected = root_cause(case, running.processes[case.rank].pid)
        for outcome in others:
            require(outcome.code in (UNAVAILABLE, PREEMPTED), f"{case}: {named(outcome.code)}\n{running.log}")
            require(outcome.code == PREEMPTED or expected.search(ranks.last_words(outcome)), f"{case}\n{running.log}")
        require(set(before) <= set(harness.whole_checkpoints(chain.output_dir)), f"{case}: a checkpoint is gone")
        row = "before the first step: exit 75, the others 75 or 69"
    require(seconds <= LONGEST, f"{case}: the last one ended after {seconds:.1f} s\n{running.log}")
    table.add(case, outcomes[0].last_step, seconds, ranks.last_words(others[0]))
    summary.count(f"{named(-case.number)} to one rank, {row}")


def stop_signals(workplace, summary, random):
    """All ranks stop after their micro-batch, rank 0 saves, and all end with 75."""
    table = Table()
    victims = random.sample(range(SIZE), SIZE)
    stages = [stage for stage in STAGES if stage != "data"] + ["step", "step", "evaluation"]
    cases = [Case(stages[i % len(stages)], victims[i % SIZE], signal.SIGTERM) for i in range(max(STOPS, len(stages)))]

    def judge(case, running, chain):
        judge_stop(case, running, chain, table, summary)
    try:
        run_chains(cases, workplace, summary, random, judge)
    finally:
        table.show()


# ---------------------------------------------------------------------------------------------------------------------
# Ranks that never meet


def rendezvous(workplace, summary, _):
    """After ddp_timeout the others say who did not come, or which address does not answer."""
    limit = 4
    texts = {(2,): f"rank 2 of {SIZE} did not come within {limit} s", (1, 3): f"ranks 1, 3 of {SIZE} did not come within {limit} s",
             (0,): r"rank \d did not reach rank 0 at 127\.0\.0\.1:\d+ within \d s: .*refused"}

    def check(absent):
        place = workplace.new("absent")
        with Ranks(command(place / "out", **OPTIONS | {"ddp_timeout": limit}), place, Start(SIZE, absent=absent)) as running:
            for rank, outcome in running.finish(LONGEST).items():
                require(outcome.code == UNAVAILABLE, f"rank {rank} ended with {named(outcome.code)}", outcome)
                require(re.search(texts[absent], ranks.last_words(outcome)), f"without {absent}: rank {rank}", outcome)
        summary.count("runs in which a rank did not come")

    def late(_):
        place = workplace.new("late")
        with Ranks(command(place / "out", **OPTIONS | {"max_steps": 5}), place, Start(SIZE, absent=(0, 2))) as running:
            for rank in (2, 0):
                require(not running.processes[1].ended(1.5), f"it did not wait\n{running.log}")
                running.launch(rank)
            ranks.require_done(running.finish())
        summary.count("runs in which ranks came late")
    harness.side_by_side(list(texts), check, summary)
    harness.side_by_side(["late"], late, summary)


def machines(workplace, name, number, change):
    """A current folder for each rank, with a model and records; change(bytes) is what rank `number` has in the file."""
    place = workplace.new("machines")
    for rank in range(SIZE):
        shutil.copytree(harness.ROOT / "examples/stories260K", place / str(rank) / "model")
        shutil.copy(harness.ROOT / "examples/data/tinystories_valid_350.jsonl", place / str(rank) / "train.jsonl")
    file = place / str(number) / name
    file.write_bytes(change(file.read_bytes()))
    return Start(SIZE, folder=lambda rank: place / str(rank))


def without_last_line(data):
    return data[:data.rstrip(b"\n").rindex(b"\n") + 1]


def with_a_bit_flipped(data):
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def disagreements(workplace, summary, _):
    """All ranks end with 78 and a line that names the one that differs, and both values."""
    same_names = {"model_name_or_path": "model", "train_file": "train.jsonl"}
    hashes = "'[0-9a-f]{64}' against '[0-9a-f]{64}'"
    other = workplace.new("records") / "train.jsonl"
    other.write_bytes(without_last_line((harness.ROOT / "examples/data/tinystories_valid_350.jsonl").read_bytes()))
    cases = {
        "learning_rate": (Start(SIZE, more={2: ["--learning_rate=0.5"]}), "rank 2.*0.5.*against.*0.001", {}),
        "seed": (Start(SIZE, more={3: ["--seed=7"]}), "rank 3.*7.*against.*42", {}),
        "zero_stage": (Start(SIZE, more={1: ["--zero_stage=1"]}), "rank 1.*1.*against.*0", {}),
        "eval_steps": (Start(SIZE, more={2: ["--eval_steps=3"]}), f"rank 2.*3.*against.*{harness.EVAL_STEPS}", {}),
        "do_train": (Start(SIZE, more={3: ["--do_train=false"]}), "rank 3.*false.*against.*true", {}),
        "validation records": (Start(SIZE, more={1: ["--max_eval_samples=3"]}), "validation records of rank 1", {}),
        "the file's name": (Start(SIZE, more={1: [f"--train_file={other}"]}), "rank 1.*records.*against.*tinystories", {}),
        "records": (machines(workplace, "train.jsonl", 3, without_last_line), "records of rank 3.*" + hashes, same_names),
        "weights": (machines(workplace, "model/model.safetensors", 2, with_a_bit_flipped), "model of rank 2.*" + hashes,
                    same_names),
        "world size": (Start(SIZE, environment=lambda rank, size, port: ranks.plain(rank, size - (rank == 1), port)),
                       r"rank 1 \(.*world size 3, but rank \d.* with 4|rank \d.*world size 4, but rank 1 \(.*with 3", {}),
        "the same rank twice": (Start(SIZE, environment=lambda rank, size, port: ranks.plain(min(rank, 2), size, port)),
                                "two processes were started as rank 2.*pid.*pid", {}),
    }

    def check(name):
        start, text, options = cases[name]
        place = workplace.new("disagreement")
        with Ranks(command(place / "out", **OPTIONS | options), place, start) as running:
            outcomes = running.finish(LONGEST)
            for rank, outcome in outcomes.items():
                message = ranks.last_words(outcome)
                require(outcome.code == CONFIG, f"{name}: rank {rank} ended with {named(outcome.code)}\n{running.log}")
                require(re.search(text, message), f"{name}: rank {rank} does not say {text}\n{running.log}")
            print(f"  {name}: {ranks.last_words(outcomes[0])}", flush=True)
        require(not (place / "out").exists(), f"{name}: output_dir was made")
        summary.count("runs refused with 78 because one rank differs")
    harness.side_by_side(list(cases), check, summary)


if __name__ == "__main__":
    sys.exit(harness.main("ranks_faults", [lost, held_cache, stop_signals, rendezvous, disagreements]))
