# SPDX-License-Identifier: Apache-2.0
"""What every comparison with Hugging Face shares: our programs, the tiny models, the tokenizers, writers and readers.

The build folder comes from the environment variable FETTLE_BUILD (ctest sets it); without it, build/release and
build/dev are tried. A missing program is a failure, never a skip: a comparison that did not run proves nothing. With
FETTLE_TEST_DEVICE our side computes on that device; ctest runs the comparisons that train a second time, with hpu, on a
stand-in of a Gaudi card (tests/hpu).
"""

import json
import lzma
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in these tests may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DATASETS = REPOSITORY / "tests/data/datasets"
TOKENIZERS = REPOSITORY / "tests/data/tokenizers"
STORIES260K = REPOSITORY / "examples/stories260K"
THREADS = 2
DEVICE = os.environ.get("FETTLE_TEST_DEVICE", "cpu")

sys.path.insert(0, str(REPOSITORY / "tests/golden"))


def find_program(name):
    """The path of a built program. FETTLE_BUILD names the build folder."""
    named = os.environ.get("FETTLE_BUILD")
    folders = [pathlib.Path(named)] if named else [REPOSITORY / "build/release", REPOSITORY / "build/dev"]
    for folder in folders:
        for place in (folder, folder / "src/cli", folder / "tests/tools"):
            if (place / name).is_file():
                return place / name
    raise FileNotFoundError(f"{name} is in none of {[str(f) for f in folders]}: build it, or set FETTLE_BUILD")


def option(key, value):
    """`--key=value` as the command line takes it; lists are JSON, booleans true and false."""
    if isinstance(value, bool):
        return f"--{key}={'true' if value else 'false'}"
    if isinstance(value, (list, tuple)):
        return f"--{key}={json.dumps(list(map(str, value)))}"
    return f"--{key}={value}"


class Program:
    """One of our programs. Calling it runs it and returns the CompletedProcess, its streams as text, line ends kept."""

    def __init__(self, path, cache):
        self.path = path
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "XDG_CACHE_HOME": str(cache)}

    def __call__(self, *arguments, timeout=300, expect=0, **options):
        """Positional arguments go as they are, keywords as options. expect: the exit code asserted; None: any."""
        command = [str(self.path), *map(str, arguments), *(option(k, v) for k, v in options.items())]
        done = subprocess.run(command, capture_output=True, timeout=timeout, env=self.environment, check=False)
        done.stdout, done.stderr = (stream.decode("utf-8", "backslashreplace") for stream in (done.stdout, done.stderr))
        if expect is not None and done.returncode != expect:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
            pytest.fail(f"exit code {done.returncode}, not {expect}: {' '.join(command)}\n{said}")
        return done


@pytest.fixture(scope="session")
def program_cache(tmp_path_factory):
    """Stands in for the user's cache folder, so that no test reads or leaves anything there."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def fettle(program_cache):
    """`fettle("eval", model_name_or_path=folder, …)`: the program, with two threads."""
    program = Program(find_program("fettle"), program_cache)

    def run(command, *arguments, **options):
        if command in ("train", "eval", "generate", "chat", "benchmark", "merge", "quantize"):
            options = {"num_threads": THREADS, "device": DEVICE, **options}
        return program(command, *arguments, **options)

    return run


@pytest.fixture(scope="session")
def parity(program_cache):
    """The test program that prints logits, losses and gradients of one batch."""
    program = Program(find_program("fettle_parity"), program_cache)
    return lambda *arguments: program(*arguments, "--device", DEVICE)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """`tiny_models("qwen3")` → folder of that family's tiny random model, made once a session."""
    import make_models

    root = tmp_path_factory.mktemp("models")
    made = {}

    def get(family, **variant):
        key = (family, *sorted(variant.items()))
        if key not in made:
            made[key] = make_models.make(family, root / "-".join(map(str, [family, *sum(key[1:], ())])), **variant)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tokenizer_folders():
    """Name → folder of every test tokenizer; Qwen3's file is kept compressed and unpacked here once."""
    packed = TOKENIZERS / "qwen3/tokenizer.json.xz"
    unpacked = packed.with_suffix("")
    if not unpacked.exists():
        partial = unpacked.with_name(f"tokenizer.json.{os.getpid()}")
        partial.write_bytes(lzma.decompress(packed.read_bytes()))
        partial.rename(unpacked)  # atomic: another test process may be doing the same
    folders = {folder.name: folder for folder in sorted(TOKENIZERS.iterdir()) if folder.is_dir()}
    return {**folders, "stories260K": STORIES260K}


@pytest.fixture
def write_jsonl(tmp_path):
    """`write_jsonl("train.jsonl", records)` → the file's path in this test's own folder."""

    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


def read_jsonl(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line.strip()]
