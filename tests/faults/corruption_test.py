# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints are noticed, named and passed over for the one before; the run ends with the same bytes.

  damaged_files      every file of a checkpoint, damaged in every way below, and manifests that lie
  both_damaged       nothing whole is left: exit 65, and nothing is deleted
  unreadable         a checkpoint that cannot be read just now (EIO) is not taken for a broken one: exit 74
  run_file           a damaged run.json does not cost the checkpoints beside it
"""

import json
import os
import re
import shutil
import signal
import sys
from random import Random

import harness
from harness import DATA, DONE, IO, arguments, named, require, side_by_side

OLDER, NEWER, STEPS = 3, 6, 8  # the checkpoints of the interrupted run, and where it would have ended
MORE = [f"--max_steps={STEPS}", "--verify_saved_model=false"]
LORA, FULL = "LoRA, bf16, packed", "full, fp32, packed"
FLIPS, CUTS = 8 * harness.SCALE, 5 * harness.SCALE
LEAST_CASES = 200
SECTOR = 512
HARMLESS = "manifest.json: append_a_byte", "manifest.json: cut_off_one_byte"  # the line break at its end


def interrupted(workplace, kind):
    """The output folder of a run that was killed as it began its last checkpoint; made once, then copied."""
    place = workplace.folder / f"interrupted {kind}"
    if not place.exists():
        rules = f"operations=mkdir,name=checkpoint-{STEPS}.unfinished,action=kill"
        outcome = harness.run(arguments(kind, place / "out", *MORE), place, rules)
        require(outcome.code == -signal.SIGKILL, f"it was to be killed at its last checkpoint, not {named(outcome.code)}", outcome)
        whole = harness.whole_checkpoints(place / "out")
        require(whole == [OLDER, NEWER], f"whole checkpoints: {whole}", outcome)
    return place / "out"


class Case:
    """One way to damage one checkpoint."""

    def __init__(self, kind, name, damage, file=""):
        """`damage(newer, older)` is given the two checkpoint folders; `file` is what the message must name, empty: any file
        of the checkpoint (a manifest that is wrong about a file)."""
        self.kind = kind
        self.name = name
        self.damage = damage
        self.file = file


# ---------------------------------------------------------------------------------------------------------------------
# Ways to damage a file: each takes its path, that of the same file in the other checkpoint, and the random numbers


def flip_a_bit(path, _, random):
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def flip_a_bit_of_the_first_bytes(path, _, random):
    data = bytearray(path.read_bytes())
    data[random.randrange(min(64, len(data)))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def cut_off(path, _, random):
    os.truncate(path, random.randrange(1, path.stat().st_size))


def cut_off_one_byte(path, *_):
    os.truncate(path, path.stat().st_size - 1)


def lose_a_sector(path, _, random):
    data = bytearray(path.read_bytes())
    begin = random.randrange(0, len(data), SECTOR)
    length = len(data[begin:begin + SECTOR])
    was_empty = not any(data[begin:begin + length])
    data[begin:begin + length] = (b"\xff" if was_empty else b"\0") * length
    path.write_bytes(data)


def append_a_byte(path, *_):
    path.write_bytes(path.read_bytes() + b"\n")


def append_many_bytes(path, _, random):
    path.write_bytes(path.read_bytes() + random.randbytes(4096))


def empty(path, *_):
    os.truncate(path, 0)


def delete(path, *_):
    path.unlink()


def turn_into_a_folder(path, *_):
    path.unlink()
    path.mkdir()


def turn_into_a_dead_link(path, *_):
    path.unlink()
    path.symlink_to("nowhere")


def turn_into_a_pipe(path, *_):
    path.unlink()
    os.mkfifo(path)


def swap_with_the_other_checkpoint(path, other, _):
    mine, yours = path.read_bytes(), other.read_bytes()
    path.write_bytes(yours)
    other.write_bytes(mine)


def fill_with_noise(path, _, random):
    path.write_bytes(random.randbytes(path.stat().st_size))


WAYS = [*[flip_a_bit] * FLIPS, *[flip_a_bit_of_the_first_bytes] * 2, *[cut_off] * CUTS, cut_off_one_byte, lose_a_sector,
        append_a_byte, append_many_bytes, empty, delete, turn_into_a_folder, turn_into_a_dead_link, turn_into_a_pipe,
        fill_with_noise]
ONCE = list(dict.fromkeys(WAYS))


# ---------------------------------------------------------------------------------------------------------------------
# Manifests that lie: each changes the parsed manifest, or returns the text to write in its place


def lies_of(files):
    """(name, change) pairs; a change is given the manifest as parsed and the older checkpoint's folder."""
    def change(name, key, value):
        def apply(manifest, _):
            manifest["files"][name][key] = value
        return apply

    def without(*path):
        def apply(manifest, _):
            part = manifest
            for key in path[:-1]:
                part = part[key]
            del part[path[-1]]
        return apply

    def add(name):
        def apply(manifest, _):
            manifest["files"][name] = {"bytes": 1, "blake3": "0" * 64}
        return apply

    for name in files:
        yield f"another hash for {name}", change(name, "blake3", "0" * 64)
        yield f"another size for {name}", change(name, "bytes", 1)
        yield f"no entry for {name}", without("files", name)
    name = "optimizer.safetensors"
    yield "no hash", without("files", name, "blake3")
    yield "no size", without("files", name, "bytes")
    yield "a hash that is a number", change(name, "blake3", 7)
    yield "a size that is a text", change(name, "bytes", "7")
    yield "a size below zero", change(name, "bytes", -1)
    yield "a size beyond all numbers", change(name, "bytes", 1e300)
    yield "a file that is not there", add("nothing.safetensors")
    yield "a file outside", add("../run.json")
    yield "a file with an absolute path", add("/etc/hostname")
    yield "a file without a name", add("")
    yield "no files at all", lambda *_: json.dumps({"files": {}})
    yield "an array of files", lambda *_: json.dumps({"files": []})
    yield "no list of files", lambda *_: "{}"
    yield "a number", lambda *_: "7"
    yield "brackets without end", lambda *_: "[" * 100_000
    yield "the older checkpoint's manifest", lambda _, older: (older / "manifest.json").read_text()


def lie_case(kind, name, change):
    def damage(newer, older):
        manifest = json.loads((newer / "manifest.json").read_text())
        text = change(manifest, older)
        (newer / "manifest.json").write_text(json.dumps(manifest) if text is None else text)
    return Case(kind, f"{kind}: a manifest with {name}", damage)


# ---------------------------------------------------------------------------------------------------------------------


def file_case(kind, file, way, random):
    seeded = Random(random.random())
    named_file = "" if file == "manifest.json" else file
    return Case(kind, f"{kind}: {file}: {way.__name__}", lambda newer, older: way(newer / file, older / file, seeded), named_file)


def swap_inside(first, second):
    def damage(newer, _):
        one, two = (newer / first).read_bytes(), (newer / second).read_bytes()
        (newer / first).write_bytes(two)
        (newer / second).write_bytes(one)
    return damage


def all_cases(workplace, random):
    for kind, ways in ((LORA, WAYS), (FULL, ONCE)):
        files = sorted(path.name for path in (interrupted(workplace, kind) / f"checkpoint-{NEWER}").iterdir())
        for file in files:
            for way in ways:
                yield file_case(kind, file, way, random)
        listed = [file for file in files if file != "manifest.json"]
        yield Case(kind, f"{kind}: two files exchanged", swap_inside(listed[0], listed[-1]))
        for name, change in lies_of(listed):
            yield lie_case(kind, name, change)


def resume(workplace, kind, damage, *more, rules=""):
    """A copy of the interrupted run, damaged and taken up; returns (outcome, output_dir)."""
    place = workplace.new("damaged")
    output_dir = place / "out"
    shutil.copytree(interrupted(workplace, kind), output_dir)
    damage(output_dir / f"checkpoint-{NEWER}", output_dir / f"checkpoint-{OLDER}")
    before = harness.fingerprint(output_dir)
    environment = {"XDG_CACHE_HOME": str(workplace.folder / "cache")}
    outcome = harness.run(arguments(kind, output_dir, *MORE, *more), place, rules, environment)
    return outcome, output_dir, before


def names_it(line, file):
    """Whether a message names the file; of a manifest, whatever file it says is wrong."""
    return file in line if file else re.search(r"is broken: \S", line) is not None


def damaged_files(workplace, summary, random):
    """Each damage is named on standard error, the checkpoint before is used, and the result is the same."""
    cases = list(all_cases(workplace, random))
    require(len(cases) >= LEAST_CASES, f"only {len(cases)} cases")

    def check(case):
        outcome, output_dir, _ = resume(workplace, case.kind, case.damage)
        if case.name.endswith(HARMLESS) and outcome.resumed == NEWER:
            summary.count("manifests damaged in their white space alone")
        else:
            require(outcome.resumed == OLDER, f"it went on from step {outcome.resumed}, not {OLDER}", outcome)
            said = [line for line in outcome.warnings if f"checkpoint-{NEWER}" in line and "skipped" in line]
            require(said and names_it(said[0], case.file), f"no warning names checkpoint-{NEWER} and a file", outcome)
        harness.require_same(workplace.reference(case.kind, *MORE), output_dir, outcome)
        shutil.rmtree(output_dir.parent)
        summary.count("damaged checkpoints passed over")
    for kind in (LORA, FULL):
        workplace.reference(kind, *MORE)
    side_by_side(cases, check, summary)


def swapped_with_the_other(workplace, summary, _):
    """Files that two checkpoints exchanged are noticed in both, and so are folders."""
    def check(file):
        def damage(newer, older):
            swap_with_the_other_checkpoint(newer / file, older / file, None)
        same = harness.sha256(template / f"checkpoint-{NEWER}" / file) == harness.sha256(template / f"checkpoint-{OLDER}" / file)
        outcome, output_dir, before = resume(workplace, LORA, damage)
        if same:
            require(outcome.resumed == NEWER, f"it went on from step {outcome.resumed}", outcome)
            harness.require_same(workplace.reference(LORA, *MORE), output_dir, outcome)
        else:
            require(outcome.code == DATA, f"exit {named(outcome.code)}", outcome)
            require(before == harness.fingerprint(output_dir), "files were deleted or changed", outcome)
            require(file in outcome.error or file == "manifest.json", f"the message does not name {file}", outcome)
        summary.count("files exchanged between two checkpoints")

    def exchange_folders(newer, older):
        newer.rename(newer.parent / "aside")
        older.rename(newer)
        (newer.parent / "aside").rename(older)
    template = interrupted(workplace, LORA)
    side_by_side(sorted(path.name for path in (template / f"checkpoint-{NEWER}").iterdir()), check, summary)
    outcome, output_dir, before = resume(workplace, LORA, exchange_folders)
    require(outcome.code == DATA, f"exit {named(outcome.code)}", outcome)
    require(before == harness.fingerprint(output_dir), "files were deleted or changed", outcome)
    for step in (NEWER, OLDER):
        require(f"checkpoint-{step}" in outcome.error, f"the message does not name checkpoint-{step}", outcome)
    summary.count("files exchanged between two checkpoints")


def both_damaged(workplace, summary, random):
    """With nothing whole left the program says what is wrong with each, exits 65 and deletes nothing."""
    files = sorted(path.name for path in (interrupted(workplace, LORA) / f"checkpoint-{NEWER}").iterdir())

    def check(pair):
        first, second, way, seed = pair

        def damage(newer, older):
            ways[way](newer / first, None, Random(seed))
            ways[way](older / second, None, Random(seed))
        outcome, output_dir, before = resume(workplace, LORA, damage)
        require(outcome.code == DATA, f"exit {named(outcome.code)}", outcome)
        for text in (f"checkpoint-{NEWER}", f"checkpoint-{OLDER}", *({first, second} - {"manifest.json"})):
            require(text in outcome.error, f"the message does not name {text}", outcome)
        require(harness.fingerprint(output_dir) == before, "files were deleted or changed", outcome)
        summary.count("runs without a whole checkpoint refused")
    ways = {way.__name__: way for way in (flip_a_bit, delete, empty, cut_off)}
    pairs = [(first, random.choice(files), random.choice(list(ways)), random.random()) for first in files]
    side_by_side(pairs, check, summary)


def unreadable(workplace, summary, _):
    """A file that cannot be read may be whole: exit 74 naming it, nothing deleted, and the next try goes on from it."""
    files = sorted(path.name for path in (interrupted(workplace, LORA) / f"checkpoint-{NEWER}").iterdir())

    def check(file):
        rules = f"operations=read,name=checkpoint-{NEWER}/{file}$,times=0,action=EIO"
        outcome, output_dir, before = resume(workplace, LORA, lambda *_: None, rules=rules)
        require(outcome.code == IO, f"exit {named(outcome.code)}", outcome)
        require(f"checkpoint-{NEWER}/{file}" in outcome.error, "the message does not name the file", outcome)
        require(harness.fingerprint(output_dir) == before, "files were deleted or changed", outcome)
        again = harness.run(arguments(LORA, output_dir, *MORE), output_dir.parent)
        require(again.resumed == NEWER, f"it went on from step {again.resumed}", again)
        harness.require_same(workplace.reference(LORA, *MORE), output_dir, again)
        summary.count("unreadable checkpoints left alone")
    side_by_side(files, check, summary)


def run_file(workplace, summary, random):
    """A damaged run.json beside whole checkpoints: the run goes on, or is refused; nothing is deleted."""
    def check(case):
        way, more, seed = case

        def damage(newer, _):
            ways[way](newer.parent / "run.json", None, Random(seed))
        outcome, output_dir, before = resume(workplace, LORA, damage, *more)
        if outcome.code == DONE:
            require(outcome.resumed == NEWER, f"it went on from step {outcome.resumed}", outcome)
            harness.require_same(workplace.reference(LORA, *MORE), output_dir, outcome)
        else:
            require(outcome.code in (DATA, harness.CONFIG), f"exit {named(outcome.code)}", outcome)
            require(harness.fingerprint(output_dir) == before, "files were deleted or changed", outcome)
        summary.count("damaged run.json")
    ways = {way.__name__: way for way in (empty, delete, cut_off, fill_with_noise, flip_a_bit)}
    cases = [(way, more, random.random()) for way in ways for more in ((), ("--overwrite_output_dir=true",))]
    side_by_side(cases, check, summary)


if __name__ == "__main__":
    sys.exit(harness.main("corruption", [damaged_files, swapped_with_the_other, both_damaged, unreadable, run_file]))
