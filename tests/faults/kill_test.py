# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed again and again end with the bytes of the uninterrupted run, and lose no finished checkpoint.

  sigkill      SIGKILL at random moments of every stage, ten and more of them inside a save
  stop_signals SIGTERM and SIGINT at random moments: exit 75 within the printed bound, and the step it stopped at is kept
  slow_volume  the bound also holds where a save takes seconds
  second_signal a second signal ends it at once
  every_operation SIGKILL before every single file operation of a save, one after the other
"""

import ctypes
import itertools
import os
import select
import signal
import struct
import sys
import time
from random import Random

import harness
from harness import DONE, KINDS, PREEMPTED, Program, arguments, named, require

MOST_STEPS = 40
MORE = [*harness.EVALUATION, f"--max_steps={MOST_STEPS}"]
# At least so many in each stage, a save goes on beside the others: 50 and more of SIGKILL, 20 and more of SIGTERM and
# SIGINT.
KILLS = {"save": 16, "step": 20, "setup": 10, "evaluation": 10, "final save": 6, "data": 4}
SIGNALS = {"save": 5, "step": 6, "setup": 3, "evaluation": 5, "data": 1, "final save": 1}
KILLS = {stage: number * harness.SCALE for stage, number in KILLS.items()}
SIGNALS = {stage: number * harness.SCALE for stage, number in SIGNALS.items()}
KILLS_A_CHAIN = 5
MOST_ROUNDS = 12
AT_ONCE = 1.0  # seconds
SAFE_DEATH = -signal.SIGTERM, -signal.SIGINT  # before main has begun there is nobody to answer a signal


class NewNames:
    """Watches a folder for new entries, without the delay of looking again and again (inotify)."""

    CREATE, MOVED_TO = 0x100, 0x80
    EVENT = struct.Struct("iIII")

    def __init__(self, folder):
        library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if library.inotify_add_watch(self._descriptor, os.fsencode(folder), self.CREATE | self.MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {folder}")

    def next(self, seconds):
        """The names that came in the meantime, after at most so many seconds."""
        if not select.select([self._descriptor], [], [], seconds)[0]:
            return []
        names, data = [], os.read(self._descriptor, 65536)
        while data:
            *_, length = self.EVENT.unpack_from(data)
            names.append(data[self.EVENT.size:self.EVENT.size + length].rstrip(b"\0").decode())
            data = data[self.EVENT.size + length:]
        return names

    def close(self):
        os.close(self._descriptor)


class Durations:
    """How long the stages of an uninterrupted run take, so that random moments fall into them."""

    def __init__(self, kind, place):
        seen = {}
        program = Program(arguments(kind, place / "out", *MORE), place)
        began = time.monotonic()
        marks = {"data": harness.STARTED, "planned": " steps, ", "first": "step 1/", "tenth": "step 10/",
                 "evaluated": f"step 10/{MOST_STEPS}  evaluation", "last": f"step {MOST_STEPS}/{MOST_STEPS}  evaluation"}

        def look():
            log = program.log
            for name, text in marks.items():
                if text in log:
                    seen.setdefault(name, time.monotonic() - began)
            return len(seen) == len(marks)
        require(program.wait_for(look), f"the log lacks {set(marks) - set(seen)}", None)
        program.finish()
        self.whole = time.monotonic() - began
        self.setup = seen["first"]
        self.data = seen["planned"] - seen["data"]
        self.step = (seen["tenth"] - seen["first"]) / 9
        self.evaluation = seen["evaluated"] - seen["tenth"]
        self.final = self.whole - seen["last"]


class Aim:
    """Waits for a random moment of one stage of a running program. `random` decides it."""

    def __init__(self, durations, random):
        self._durations = durations
        self._random = random

    def before_start(self, stage, place):
        """Without its cache the program has data to prepare."""
        if stage == "data":
            for file in (place / "cache").rglob("*.tokens"):
                file.unlink()

    def wait(self, stage, program, output_dir):
        """False if the program ended before that moment."""
        return getattr(self, "_" + stage.replace(" ", "_"))(program, output_dir)

    def _after(self, program, seconds):
        return not program.ended(self._random.uniform(0, seconds))

    def _after_text(self, program, text, seconds):
        return program.wait_for(lambda: text in program.log) and self._after(program, seconds)

    def _setup(self, program, _):
        return self._after(program, self._durations.setup)

    def _data(self, program, _):
        return self._after_text(program, harness.STARTED, self._durations.data)

    def _step(self, program, _):
        wanted = self._random.randint(1, 6)
        return (program.wait_for(lambda: len(harness.STEP.findall(program.log)) >= wanted)
                and self._after(program, 2 * self._durations.step))

    def _save(self, program, output_dir):
        names = NewNames(output_dir)
        try:
            for _ in range(self._random.randint(1, 3)):
                while not any(name.endswith(".unfinished") for name in names.next(0.01)):
                    if program.ended():
                        return False
            return self._after(program, 0.005)
        finally:
            names.close()

    def _evaluation(self, program, _):
        def is_due():
            steps = harness.STEP.findall(program.log)
            return bool(steps) and int(steps[-1]) % harness.EVAL_STEPS == 0
        return program.wait_for(is_due) and self._after(program, self._durations.evaluation)

    def _final_save(self, program, _):
        return self._after_text(program, f"step {MOST_STEPS}/{MOST_STEPS}  evaluation", 0.7 * self._durations.final)


def check_resume(output_dir, promised, outcome):
    """It took up the newest whole checkpoint; `promised` was that at the moment of the kill."""
    if outcome.code in SAFE_DEATH or outcome.resumed is None or not harness.PLANNED.search(outcome.log):
        return  # it ended before it came so far, or the run was complete
    if outcome.resumed or outcome.last_step:
        require(outcome.resumed == promised, f"it went on from step {outcome.resumed}, not {promised}", outcome)


class Chain:
    """One run, interrupted several times and then left in peace. `interrupt` does that to a program."""

    def __init__(self, kind, workplace, aim, interrupt):
        self.name = kind
        self._kind = kind
        self._workplace = workplace
        self._place = workplace.new("chain")
        self.output_dir = self._place / "out"
        self.output_dir.mkdir()
        self._aim = aim
        self._interrupt = interrupt
        self._promised = 0  # the newest whole checkpoint

    def _start(self):
        return Program(arguments(self._kind, self.output_dir, *MORE), self._place)

    def go(self, stages):
        """Interrupts it in each of these stages; returns those for which it was done too early."""
        for number, stage in enumerate(stages):
            self._aim.before_start(stage, self._place)
            program = self._start()
            reached = self._aim.wait(stage, program, self.output_dir)
            outcome = self._interrupt(program, self) if reached else program.finish()
            require(reached or outcome.code == DONE, f"it ended with {named(outcome.code)} by itself", outcome)
            check_resume(self.output_dir, self._promised, outcome)
            self._promised = max([0, *harness.whole_checkpoints(self.output_dir)])
            if outcome.code == DONE:
                self._finish(outcome)
                return stages[number:]
        outcome = self._start().finish()
        check_resume(self.output_dir, self._promised, outcome)
        self._finish(outcome)
        return []

    def _finish(self, outcome):
        harness.require_same(self._workplace.reference(self._kind, *MORE), self.output_dir, outcome)


def deal(stages, random):
    """Shuffled into chains; within a chain the end of the run comes last, or nothing could follow it."""
    random.shuffle(stages)
    hands = [stages[begin:begin + KILLS_A_CHAIN] for begin in range(0, len(stages), KILLS_A_CHAIN)]
    return [sorted(hand, key=lambda stage: stage == "final save") for hand in hands]


def run_chains(workplace, summary, random, interrupt, wanted):
    """Chains over all kinds of runs. `wanted()`: the stages in which an interruption is still missing; a moment that was
    aimed at one stage may fall into the next, so there are several rounds.
    """
    durations = {kind: Durations(kind, workplace.new("durations")) for kind in KINDS}
    for kind in KINDS:
        workplace.reference(kind, *MORE)
    kinds = list(KINDS)
    chains = 0

    def one(numbered):
        number, hand = numbered
        kind = kinds[number % len(kinds)]
        aim = Aim(durations[kind], Random(f"{harness.SEED} {number} {hand}"))
        Chain(kind, workplace, aim, interrupt).go(hand)
        summary.count("interrupted runs compared with the uninterrupted")
    for _ in range(MOST_ROUNDS):
        hands = deal(wanted(), random)
        harness.side_by_side(list(enumerate(hands, chains)), one, summary)
        chains += len(hands)
        if not hands or summary.failures:
            break


def sigkill(workplace, summary, random):
    """SIGKILL at random moments of all stages; every chain ends with the reference's bytes."""
    def kill(program, chain):
        program.send(signal.SIGKILL)
        outcome = program.finish()
        if outcome.code != DONE:
            require(outcome.code == -signal.SIGKILL, f"it ended with {named(outcome.code)} by itself", outcome)
            summary.count("SIGKILL")
            summary.count("SIGKILL in " + harness.stage(outcome.log))
            summary.count("SIGKILL in save", harness.was_saving(chain.output_dir))
        return outcome

    def wanted():
        return [stage for stage, number in KILLS.items() for _ in range(number - summary.counted("SIGKILL in " + stage))]
    run_chains(workplace, summary, random, kill, wanted)
    require(not wanted(), f"no kill hit {wanted()}")


def judge_stop(program, output_dir, number):
    """Sends a stop signal and holds the program to its promises; returns the outcome and what it did."""
    before = harness.whole_checkpoints(output_dir)
    began = time.monotonic()
    program.send(number)
    outcome = program.finish()
    seconds = time.monotonic() - began
    if outcome.code == DONE:
        require(harness.is_finished(output_dir), "it says that it is done, and is not", outcome)
        return outcome, "done before it could stop"
    if outcome.code == -number:
        require(outcome.log == "", "a stop signal killed it, though it had begun", outcome)
        return outcome, "before main began"
    require(outcome.code == PREEMPTED, f"a stop signal ended it with {named(outcome.code)}", outcome)
    whole = harness.whole_checkpoints(output_dir)
    if harness.AT_ONCE.search(outcome.log):
        nothing_to_save = outcome.last_step is None or outcome.last_step == MOST_STEPS
        # It may have saved between the look and the signal.
        require(nothing_to_save and whole[-1:] >= before[-1:], f"checkpoints {before} became {whole}", outcome)
        require(seconds <= AT_ONCE, f"{seconds:.2f} s to stop at once", outcome)
        return outcome, "exit 75 at once, before the first step or after the last"
    promise, stopped = harness.PROMISE.search(outcome.log), harness.STOPPED.search(outcome.log)
    require(promise and stopped, "it does not say what it did", outcome)
    step = int(stopped.group(1))
    require(max([0, *whole]) == step, f"it stopped at step {step}, and {whole} are whole", outcome)
    require(outcome.last_step in (None, step), f"step {outcome.last_step} was done, saved is {step}", outcome)
    if promise.group(1) is None:
        require(outcome.last_step is None, "after a step it knows no bound", outcome)
        return outcome, "exit 75, stopped in its first step"
    require(seconds <= int(promise.group(1)), f"{seconds:.2f} s to stop, promised were {promise.group(1)}", outcome)
    return outcome, "exit 75, saved within the bound"


def stop_signals(workplace, summary, random):
    """SIGTERM and SIGINT at random moments: exit 75 in time, nothing lost."""
    turns = itertools.cycle([signal.SIGTERM, signal.SIGINT])

    def stop(program, chain):
        number = next(turns)
        outcome, row = judge_stop(program, chain.output_dir, number)
        summary.count(f"{named(-number)}: {row}")
        if outcome.code == PREEMPTED:
            summary.count("signals answered with exit 75")
        return outcome

    def wanted():
        missing = sum(SIGNALS.values()) - summary.counted("signals answered with exit 75")
        stages = [stage for stage, number in SIGNALS.items() for _ in range(number)]
        return stages if missing == len(stages) else ["step"] * missing
    run_chains(workplace, summary, random, stop, wanted)
    require(not wanted(), f"{len(wanted())} signals too few were answered with exit 75")


def begun(kind, workplace, rules, more):
    """A run on a slow volume that has just saved its first checkpoint; returns (program, command, its place)."""
    place = workplace.new("begun")
    command = arguments(kind, place / "out", *more)
    program = Program(command, place, rules)
    require(program.wait_for(lambda: harness.whole_checkpoints(place / "out")), "it saved no checkpoint")
    return program, command, place


def slow_volume(workplace, summary, random):
    """The promised bound holds where every file operation takes long, also for a save that is under way."""
    kind = next(iter(KINDS))

    def one(moment):
        program, command, place = begun(kind, workplace, "times=0,action=delay,ms=20", MORE)
        program.ended(moment)
        outcome, row = judge_stop(program, place / "out", signal.SIGTERM)
        require(outcome.code == PREEMPTED, f"exit {named(outcome.code)}", outcome)
        summary.count(f"slow volume, SIGTERM: {row}")
        harness.require_same(workplace.reference(kind, *MORE), place / "out", harness.run(command, place))
    workplace.reference(kind, *MORE)
    harness.side_by_side([random.uniform(0, 2) for _ in range(3)], one, summary)


def second_signal(workplace, summary, _):
    """A second signal ends it at once, in the middle of the save; the run still comes out the same."""
    kind = next(iter(KINDS))

    def one(pair):
        first, second = pair
        program, command, place = begun(kind, workplace, "times=0,action=delay,ms=50", MORE)  # a save takes seconds
        program.send(first)
        answered = program.wait_for(lambda: harness.PROMISE.search(program.log))
        began = time.monotonic()
        program.send(second)
        outcome = program.finish()
        seconds = time.monotonic() - began
        require(answered, f"the first signal is not answered: exit {named(outcome.code)}", outcome)
        require(outcome.code == -second, f"the second signal ended it with {named(outcome.code)}", outcome)
        require(seconds < 1, f"{seconds:.2f} s from the second signal to the end", outcome)
        harness.require_same(workplace.reference(kind, *MORE), place / "out", harness.run(command, place))
        summary.count("ended at once by a second signal")
    workplace.reference(kind, *MORE)
    harness.side_by_side([(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)],
                         one, summary)


def every_operation(workplace, summary, _):
    """SIGKILL before every file operation of a save, then resumed to the end."""
    kind = next(iter(KINDS))
    more = ["--max_steps=7", "--verify_saved_model=false"]
    reference = workplace.reference(kind, *more)

    def one(nth):
        place = workplace.new("operation")
        command = arguments(kind, place / "out", *more)
        outcome = harness.run(command, place, rules=f"name=checkpoint-6,nth={nth},action=kill")
        if outcome.code == DONE:
            summary.count("operations of a save that do not happen")
            return
        require(outcome.code == -signal.SIGKILL, f"operation {nth}: {named(outcome.code)}", outcome)
        whole = harness.whole_checkpoints(place / "out")
        resumed = harness.run(command, place)
        require(resumed.resumed == whole[-1] >= 3, f"operation {nth}: {whole} are whole", resumed)
        harness.require_same(reference, place / "out", resumed)
        summary.count("SIGKILL before one operation of a save")
    place = workplace.new("count")
    program = Program(arguments(kind, place / "out", *more), place, rules="action=EIO,name=no such file")
    program.finish()
    count = sum(o not in ("read", "stat", "list") and "checkpoint-6" in path for o, _, path, _ in program.operations)
    harness.side_by_side(range(1, count + 1), one, summary)
    require(count >= 20, f"a save has only {count} operations")


if __name__ == "__main__":
    sys.exit(harness.main("kill", [sigkill, stop_signals, slow_volume, second_signal, every_operation]))
