# SPDX-License-Identifier: Apache-2.0
"""Full, read-only, failing, slow, late and vanishing volumes: the program says so and exits 74, and no state is lost.

Real volumes (tmpfs, a bind mount, ext4 in a file) where the user may mount, the fault shim for the rest.
  full_at_random     a volume with a random number of bytes left
  full_at_a_point    a volume that fills up at one operation of a save or of the final save
  read_only          a volume that becomes read-only in the middle
  vanished           a volume that is unmounted in the middle
  power_cut          what is on an ext4 disk at a random operation, as after a power failure
  operations         every file operation of a save and of the final save fails once
  slow_and_short     short writes, interrupted calls, slow volumes: the run goes on
  order_of_syncing   nothing gets its final name before it is on the disk, by the log of a run's operations
  unseen             a renamed checkpoint that is seen late
  replaced           a checkpoint that is written again
"""

import collections
import errno
import re
import shutil
import signal
import sys
import time

import harness
import volume
from harness import DONE, IO, Program, arguments, named, require, side_by_side

STEPS = 8  # with a save every 3: checkpoints at 3, 6 and 8
MORE = [f"--max_steps={STEPS}", "--verify_saved_model=false"]
KIND = "LoRA, bf16, packed"
MEBIBYTE = 1 << 20
FULL_CASES, POWER_CASES, FINAL_CASES = 14 * harness.SCALE, 12 * harness.SCALE, 24 * harness.SCALE
WRITING = ("open", "write", "fsync", "rename", "mkdir")  # none of these may fail without consequences in a save
UNSEEN_FOR = 2000  # milliseconds


def go(output_dir, place, rules=""):
    return Program(arguments(KIND, output_dir, *MORE), place, rules)


def finish_after(workplace, place, output_dir, summary, row):
    """The cause is gone: the same command ends with the reference's bytes, and begins at the newest whole checkpoint."""
    whole = harness.whole_checkpoints(output_dir)
    outcome = go(output_dir, place).finish()
    if not harness.COMPLETE.search(outcome.log):
        require(outcome.resumed == max([0, *whole]), f"it went on from step {outcome.resumed}; whole are {whole}", outcome)
    harness.require_same(workplace.reference(KIND, *MORE), output_dir, outcome)
    summary.count(row)


def require_refusal(outcome, output_dir, reason):
    """Exit 74 with one line that says what, where and what to do."""
    require(outcome.code == IO, f"exit {named(outcome.code)}, not {IO}", outcome)
    require(reason in outcome.error and str(output_dir) in outcome.error and "; " in outcome.error,
            f"the message does not say '{reason}', where and what to do", outcome)


def stopped_at(program, what):
    require(program.wait_until_stopped(), f"it never came to {what}", None)


def mounts(summary):
    """Whether volumes can be mounted; the reason is printed and counted if not."""
    reason = volume.enter_namespace()
    if reason:
        print(f"skipped: {reason}")
        summary.count("groups of cases skipped: this user may not mount")
    return not reason


def disks(summary):
    reason = volume.why_no_disks()
    if reason:
        print(f"skipped: {reason}")
        summary.count("groups of cases skipped: no loop device")
    return not reason


# ---------------------------------------------------------------------------------------------------------------------
# Real volumes


def used_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def full_at_random(workplace, summary, random):
    """A volume with a random number of bytes left: exit 74 or done, never anything lost."""
    if not mounts(summary):
        return
    needed = int(1.6 * used_bytes(workplace.reference(KIND, *MORE)))
    fillings = [random.randrange(needed) for _ in range(FULL_CASES)]
    kinds = ["tmpfs"] * len(fillings)
    if disks(summary):
        kinds[::4] = ["ext4"] * len(kinds[::4])

    def check(case):
        kind, free = case
        place = workplace.new("full")
        disk = (volume.MemoryVolume(place / "volume", 16 * MEBIBYTE) if kind == "tmpfs"
                else volume.Disk(place / "volume", place / "image", 32 * MEBIBYTE))
        output_dir = disk.point / "out"
        disk.leave_free(free)
        outcome = go(output_dir, place).finish()
        if outcome.code != DONE:
            require_refusal(outcome, output_dir, "No space left on device")
            summary.count(f"{kind}, full: refused with exit 74")
        disk.make_room()
        finish_after(workplace, place, output_dir, summary, "full volumes, same bytes after room was made")
        disk.unmount()
    side_by_side(list(zip(kinds, fillings)), check, summary)
    require(summary.counted("tmpfs, full: refused with exit 74") > 0, "no volume was too full")


def full_at_a_point(workplace, summary, random):
    """A volume that fills up at one operation of a save, of the metrics or of the final save."""
    if not mounts(summary):
        return
    points = [f"name=checkpoint-6.unfinished/,nth={random.randint(1, 25)}" for _ in range(5)]
    points += [f"operations=open,name=out/.fettle-,nth={nth}" for nth in (4, 6, 8, 10)]

    def check(point):
        place = workplace.new("point")
        disk = volume.MemoryVolume(place / "volume", 16 * MEBIBYTE)
        output_dir = disk.point / "out"
        program = go(output_dir, place, f"{point},action=stop")
        stopped_at(program, point)
        whole = harness.whole_checkpoints(output_dir)
        disk.leave_free(0)
        program.go_on()
        outcome = program.finish()
        require_refusal(outcome, output_dir, "No space left on device")
        require(set(whole) <= set(harness.whole_checkpoints(output_dir)), "an earlier checkpoint is gone", outcome)
        disk.make_room()
        finish_after(workplace, place, output_dir, summary, "volumes that filled up at one operation")
        disk.unmount()
    side_by_side(points, check, summary)


def read_only(workplace, summary, _):
    """A volume that becomes read-only in the middle: exit 74, earlier checkpoints whole."""
    if not mounts(summary):
        return

    def check(case):
        kind, point = case
        place = workplace.new("read-only")
        disk = (volume.MemoryVolume(place / "volume", 16 * MEBIBYTE) if kind == "tmpfs"
                else volume.Disk(place / "volume", place / "image", 32 * MEBIBYTE))
        output_dir = disk.point / "out"
        program = go(output_dir, place, f"{point},action=stop")
        stopped_at(program, point)
        whole = harness.whole_checkpoints(output_dir)
        repair = disk.become_read_only(output_dir)
        program.go_on()
        outcome = program.finish()
        require_refusal(outcome, output_dir, "Read-only file system")
        repair()
        require(set(whole) <= set(harness.whole_checkpoints(output_dir)), "an earlier checkpoint is gone", outcome)
        finish_after(workplace, place, output_dir, summary, f"volumes that became read-only, {kind}")
        disk.unmount()
    points = ["operations=mkdir,name=checkpoint-6.unfinished", "operations=open,name=checkpoint-6.unfinished/,nth=2",
              "operations=rename,name=checkpoint-6$", "operations=rename,name=out/adapter_model.safetensors"]
    kinds = ["tmpfs", "ext4"] if disks(summary) else ["tmpfs"]
    side_by_side([(kind, point) for kind in kinds for point in points], check, summary)


def vanished(workplace, summary, _):
    """A volume that is unmounted in the middle: exit 74, and the folder beneath does not pass for it."""
    if not mounts(summary):
        return

    def check(case):
        mounted, point = case
        place = workplace.new("vanished")
        disk = volume.MemoryVolume(place / "volume", 16 * MEBIBYTE)
        output_dir = place / "mounted" / "out"
        point_of_mount = output_dir if mounted == "output_dir" else output_dir.parent
        volume.show_also_at(disk.point, point_of_mount)
        program = go(output_dir, place, f"{point},action=stop")
        stopped_at(program, point)
        volume.command("umount", "-l", point_of_mount)
        program.go_on()
        outcome = program.finish()
        require(outcome.code == IO, f"exit {named(outcome.code)}, not {IO}", outcome)
        require(str(output_dir) in outcome.error, "the message does not name the folder", outcome)
        beneath = [str(path) for path in point_of_mount.rglob("*")]
        require(not beneath or "metrics" not in point, f"a later save wrote beneath the volume: {beneath}", outcome)
        volume.show_also_at(disk.point, point_of_mount)
        finish_after(workplace, place, output_dir, summary, "volumes that vanished")
        volume.command("umount", "-l", point_of_mount)
        disk.unmount()
    points = ["operations=write,name=metrics.jsonl,nth=4", "operations=mkdir,name=checkpoint-6.unfinished",
              "operations=open,name=checkpoint-6.unfinished/,nth=3", "operations=rename,name=checkpoint-6$",
              "operations=open,name=out/.fettle-,nth=6"]
    side_by_side([(mounted, point) for mounted in ("output_dir", "the folder above") for point in points], check, summary)


def power_cut(workplace, summary, random):
    """The disk as it is at a random operation: what was saved is whole, and the run ends with the same bytes."""
    if not mounts(summary) or not disks(summary):
        return
    count = len([o for o in operations_of_a_run(workplace) if o[0] in WRITING + ("remove", "close")])

    def check(nth):
        place = workplace.new("power")
        disk = volume.Disk(place / "volume", place / "image", 32 * MEBIBYTE)
        program = go(disk.point / "out", place, f"operations=open+write+fsync+rename+mkdir+remove+close,nth={nth},action=stop")
        stopped_at(program, f"operation {nth}")
        disk.cut_power(place / "after")
        program.send(signal.SIGKILL)
        program.go_on()
        program.finish()
        log = program.operations
        disk.unmount()
        later = volume.Disk(place / "volume", place / "after")
        output_dir = later.point / "out"
        durable = durable_checkpoint(log, output_dir)
        whole = harness.whole_checkpoints(output_dir)
        require(max([0, *whole]) >= durable, f"checkpoint {durable} was synced; on the disk are {whole}")
        finish_after(workplace, place, output_dir, summary, "power cuts")
        later.unmount()
    side_by_side(sorted(random.sample(range(1, count + 1), min(POWER_CASES, count))), check, summary)


def durable_checkpoint(log, output_dir):
    """The newest checkpoint of which the renaming was synced."""
    renamed = durable = 0
    for operation, error, path, _ in log:
        match = re.fullmatch(re.escape(str(output_dir)) + r"/checkpoint-(\d+)", path)
        if operation == "rename" and error == 0 and match:
            renamed = int(match.group(1))
        if operation == "fsync" and error == 0 and path == str(output_dir):
            durable = renamed
    return durable


# ---------------------------------------------------------------------------------------------------------------------
# Failing operations


def operations_of_a_run(workplace):
    """What an uninterrupted run does below output_dir, with paths relative to it."""
    place = workplace.new("operations")
    program = go(place / "out", place, "action=EIO,name=no such file")
    outcome = program.finish()
    harness.require_same(workplace.reference(KIND, *MORE), place / "out", outcome)
    return [(operation, error, path.removeprefix(str(place / "out")), source)
            for operation, error, path, source in program.operations]


class Point:
    """The k-th operation of its kind on names like this one; temporary names are random and stand for each other."""

    def __init__(self, operation, path, nth):
        self.operation = operation
        self.path = path
        self.nth = nth
        temporary = re.fullmatch(r"(.*/\.fettle-)[0-9a-f]+\.tmp", path)
        self.pattern = f"/out{temporary.group(1)}" if temporary else f"/out{path}$"

    def is_fatal(self):
        """Whether the run may not go on after this failed: something was not written."""
        is_closing = self.operation == "close" and self.path not in ("/metrics.jsonl", "/.lock")  # not at the very end
        return self.operation in WRITING or is_closing

    def case(self, action):
        rules = f"operations={self.operation},name={self.pattern},nth={self.nth},action={action}"
        return f"{self.operation} {self.nth} of {self.pattern.rstrip('$')}, {action}", rules, self.is_fatal()


def points_of(done):
    """The points of all those operations, in their order."""
    seen, points = collections.Counter(), []
    for operation, _, path, _ in done:
        pattern = Point(operation, path, 0).pattern
        seen[operation, pattern] += 1
        points.append(Point(operation, path, seen[operation, pattern]))
    return points


def failing_cases(done, random):
    """(name, rules, whether it is fatal) for every operation of the second save, its pruning, and the final save."""
    begin = next(i for i, o in enumerate(done) if o[0] == "mkdir" and o[2].startswith("/checkpoint-6"))
    end = next(i for i, o in enumerate(done) if o[0] == "mkdir" and o[2].startswith(f"/checkpoint-{STEPS}"))
    everywhere = points_of(done)
    of_a_save = [p for p in everywhere[begin:end] if p.operation != "stat" and (p.operation, p.path) != ("write", "/metrics.jsonl")]
    require(len(of_a_save) >= 40, f"a save has only {len(of_a_save)} operations")
    for point in of_a_save:
        yield point.case("EIO")
    for point in everywhere[end:]:
        if point.operation == "remove" and point.path.startswith("/checkpoint-3"):
            yield point.case("EIO")
    for point in [p for p in of_a_save if p.operation in ("rename", "close") or p.path in ("", "/checkpoint-6.unfinished")]:
        yield point.case("late_EIO")
    final = [p for p in everywhere if p.is_fatal() and "checkpoint-" not in p.path]
    for point in random.sample(final, min(FINAL_CASES, len(final))):
        yield point.case(random.choice(["EIO", "ENOSPC", "EROFS", "EDQUOT"]))
    for operation in ("open", "fsync", "rename"):
        yield f"{operation}, EINTR", f"operations={operation},nth=12,action=EINTR", False
    yield "half a line of metrics", ("operations=write,name=metrics.jsonl,nth=5,action=half;"
                                     "operations=write,name=metrics.jsonl,nth=6,action=ENOSPC"), True


def operations(workplace, summary, random):
    """Every file operation of a save and many others fail once: exit 74, the resumed run ends with the same bytes."""
    def check(case):
        name, rules, is_fatal = case
        place = workplace.new("operation")
        output_dir = place / "out"
        program = go(output_dir, place, rules)
        outcome = program.finish()
        require(any(error not in (0, errno.ENOENT) for _, error, _, _ in program.operations), f"{name}: it did not happen", outcome)
        allowed = (IO,) if is_fatal else (DONE, IO)
        require(outcome.code in allowed, f"{name}: exit {named(outcome.code)}, not {allowed}", outcome)
        require(outcome.code == DONE or str(output_dir) in outcome.error, f"{name}: the message does not say where", outcome)
        summary.count(f"failed operations: exit {outcome.code}")
        finish_after(workplace, place, output_dir, summary, "failed operations, same bytes after")
        shutil.rmtree(place)
    side_by_side(list(failing_cases(operations_of_a_run(workplace), random)), check, summary)


class SyncOrder:
    """What of a run's files is on the disk for certain, by the log of its operations; paths are relative to output_dir."""

    def __init__(self):
        self._unsynced = set()  # files with bytes that no fsync has covered
        self._names = {}  # path: folder of a name that is not on the disk yet
        self._lines = self._synced_lines = 0  # of metrics.jsonl

    def write(self, path):
        self._unsynced.add(path)
        self._lines += path == "/metrics.jsonl"

    def fsync(self, path):
        self._unsynced.discard(path)
        self._names = {name: folder for name, folder in self._names.items() if folder != path}
        if path == "/metrics.jsonl":
            self._synced_lines = self._lines

    def rename(self, target, source):
        source = "/" + source.split("/out/", 1)[1]
        loose = [path for path in self._unsynced if path == source or path.startswith(source + "/")]
        loose += [name for name, folder in self._names.items() if folder == source]
        if target == "/run.json":  # it says that the run is finished
            loose += [name for name, folder in self._names.items() if folder == ""]
        require(not loose, f"{target} gets its name, and {loose} are not on the disk")
        checkpoint = re.fullmatch(r"/checkpoint-(\d+)", target)
        if checkpoint:  # MORE has no evaluation: a line a step
            require(self._synced_lines >= int(checkpoint.group(1)), f"{target}: {self._synced_lines} lines of metrics are synced")
        self._names[target] = target.rsplit("/", 1)[0]

    def remove(self, path):
        if re.match(r"/checkpoint-\d+(/|$)", path):
            pending = [name for name in self._names if re.fullmatch(r"/checkpoint-\d+", name)]
            require(not pending, f"{path} is removed, and the name {pending} is not on the disk")


def order_of_syncing(workplace, summary, _):
    """In the log of a whole run: nothing is renamed, or removed in its favour, before it is on the disk."""
    order = SyncOrder()
    for operation, error, path, source in operations_of_a_run(workplace):
        if error == 0 and operation == "rename":
            order.rename(path, source)
            summary.count("renames of what was on the disk")
        elif error == 0 and operation in ("write", "fsync", "remove"):
            getattr(order, operation)(path)


def slow_and_short(workplace, summary, _):
    """Short writes, interrupted calls and slow volumes are nothing to stop for."""
    def check(rules):
        place = workplace.new("slow")
        program = go(place / "out", place, rules)
        outcome = program.finish()
        is_interrupted = any(error == errno.EINTR for _, error, _, _ in program.operations)
        require(is_interrupted == ("EINTR" in rules), "no call was interrupted", outcome)
        harness.require_same(workplace.reference(KIND, *MORE), place / "out", outcome)
        summary.count("short, interrupted and slow volumes")
    side_by_side(["operations=write,times=0,action=half", "operations=write,nth=1,action=EINTR",
                  "operations=write,nth=20,action=EINTR", "operations=write,times=3,nth=30,action=EINTR",
                  "operations=write+fsync,times=0,action=delay,ms=10", "times=0,action=delay,ms=3"], check, summary)


def unseen(workplace, summary, _):
    """A renamed checkpoint that others see only after two seconds: no state is lost, in that process or the next."""
    def check(then):
        place = workplace.new("unseen")
        output_dir = place / "out"
        environment = {"FETTLE_FAULT_UNSEEN": str(place / "unseen")}
        rule = f"operations=rename,name=checkpoint-6$,action=unseen,ms={UNSEEN_FOR}"
        command = arguments(KIND, output_dir, *MORE)
        outcome = harness.run(command, place, rule + then, environment)
        require(outcome.code in (DONE, IO, -signal.SIGKILL), f"exit {named(outcome.code)}", outcome)
        require((place / "unseen").exists(), "nothing was unseen", outcome)
        began = time.monotonic()
        while outcome.code != DONE and time.monotonic() - began < 10:
            outcome = harness.run(command, place, "action=EIO,name=no such file", environment)
            require(outcome.code in (DONE, IO), f"exit {named(outcome.code)}", outcome)
        harness.require_same(workplace.reference(KIND, *MORE), output_dir, outcome)
        summary.count("renames that were seen late")
    side_by_side(["", f";operations=mkdir,name=checkpoint-{STEPS}.unfinished,action=kill",
                  ";operations=remove,name=checkpoint-3,action=kill"], check, summary)


def replaced(workplace, summary, _):
    """A checkpoint that is written again, at a stop in the first step after a resume, is never gone, whatever fails.

    There are file systems that cannot exchange two names (NFS): that is refused here as they do.
    """
    more = ["--max_steps=4", "--save_steps=2", "--save_total_limit=1", "--per_device_train_batch_size=16",
            "--gradient_accumulation_steps=4", "--verify_saved_model=false"]  # a step takes long enough to be stopped in
    reference = workplace.reference(KIND, *more)
    template = workplace.new("template")
    outcome = harness.run(arguments(KIND, template / "out", *more), template,
                          "operations=mkdir,name=checkpoint-4.unfinished,action=kill")
    require(harness.whole_checkpoints(template / "out") == [2], "it was to be killed with one checkpoint", outcome)

    def check(rules):
        place = workplace.new("replaced")
        output_dir = place / "out"
        shutil.copytree(template / "out", output_dir)
        command = arguments(KIND, output_dir, *more)
        program = Program(command, place, rules)
        require(program.wait_for(lambda: harness.RESUMING.search(program.log)), "it does not resume")
        program.ended(0.1)
        program.send(signal.SIGTERM)
        outcome = program.finish()
        allowed = (harness.PREEMPTED, IO, -signal.SIGKILL)
        require(outcome.code in allowed, f"exit {named(outcome.code)}", outcome)
        was_replaced = any(path.endswith("/checkpoint-2") and operation == "exchange"
                           for operation, _, path, _ in program.operations)
        summary.count("checkpoints written again", was_replaced)
        resumed = harness.run(command, place)
        require(resumed.resumed in (2, 3), f"it was at step 2 and goes on from step {resumed.resumed}", resumed)
        harness.require_same(reference, output_dir, resumed)
    refused = "operations=exchange,times=0,action=EINVAL;"
    removals = [f"operations=remove,name=/checkpoint-2/,nth={nth},action=kill" for nth in (1, 3, 5)]
    others = ["operations=rename,name=/checkpoint-2$,action=kill", "operations=rename,name=/checkpoint-2$,action=EIO",
              "operations=remove,name=/checkpoint-2$,action=kill", "operations=rename,name=/checkpoint-2,nth=6,action=EIO"]
    side_by_side([refused + rules for rules in removals + others]
                 + ["operations=exchange,times=0,action=EIO;operations=rename,name=/checkpoint-2$,action=EIO",
                    "operations=exchange,action=late_EIO"], check, summary)
    require(summary.counted("checkpoints written again") >= 5, "too few stops fell into the first step")


if __name__ == "__main__":
    volume.enter_namespace()
    sys.exit(harness.main("disk", [full_at_random, full_at_a_point, read_only, vanished, power_cut, operations,
                                   order_of_syncing, slow_and_short, unseen, replaced]))
