# SPDX-License-Identifier: Apache-2.0
"""Measures Fettle against transformers + peft + trl on this machine and writes docs/benchmarks.md, .json and .svg.

    python bench/bench.py [--quick] [--part reference|own]

Each measurement is a process of its own, one at a time, all with the same number of torch threads; the two sides take
turns, and the medians over all turns are reported. --quick (for continuous integration): one short turn, and the report
goes to build/bench instead of docs. --part: only the comparison with the reference, or only that of Fettle with itself
(long and many documents, several processes, checkpoints); the other part's numbers stay.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import own
import picture
import report
import runs
import shapes

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
REFERENCE = REPOSITORY / "bench/reference.py"
ROW_TOKENS = 512
DATASETS = {
    "medical_meadow": REPOSITORY / "examples/data/medical_meadow_wikidoc_patient_2000.json",
    "dolly_finqa": REPOSITORY / "tests/data/datasets/dolly_finqa_500.jsonl",
}
RECORDS = 500
LORA = {"lora_r": 8, "lora_alpha": 16}
PLAIN = {"learning_rate": 2e-4, "logging_steps": 1, "save_strategy": "no"}
# Neither side evaluates or reads back what it saved: only training is measured.
ONLY_TRAIN = {"do_eval": "false", "verify_saved_model": "false", "log_level": "warning"}


class Bench:
    """What all measurements share: programs, threads, the folder of the inputs."""

    def __init__(self, build, folder):
        self.fettle = build / "fettle"
        self.folder = folder
        self.threads = len(os.sched_getaffinity(0))
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        self.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        self.model = self.model_of(shapes.SHAPES["135M"])

    def model_of(self, shape):
        """Made in a process of its own: those that follow start as copies of this one, and its memory would count."""
        folder = self.folder / f"llama-{shape.name}"
        if not (folder / "model.safetensors").exists():
            subprocess.run([sys.executable, REPOSITORY / "bench/shapes.py", shape.name, folder], check=True)
        return folder

    def run(self, command):
        """Runs a command; returns its output and the most memory it had at once (VmHWM)."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=errors, env=self.environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0), errors.seek(0)
            if process.returncode != 0:
                sys.exit(f"{' '.join(map(str, command))}\n{errors.read().decode()[-3000:]}\nexit {process.returncode}")
            return output.read().decode(), usage.ru_maxrss * 1024

    def reference(self, *arguments):
        output, memory = self.run([sys.executable, REFERENCE, *arguments])
        return {**json.loads(output.splitlines()[-1]), "memory": memory}

    def train(self, **options):
        """`fettle train`; the seconds and tokens of each step but the first, from metrics.jsonl."""
        output = self.folder / "ours"
        shutil.rmtree(output, ignore_errors=True)
        options = {"model_name_or_path": self.model, "output_dir": output, "num_threads": self.threads, **options}
        adapter = {} if options.get("use_peft") == "false" else LORA
        options = {**adapter, **PLAIN, **ONLY_TRAIN, **options}
        _, memory = self.run([self.fettle, "train", *(f"--{key}={value}" for key, value in options.items())])
        lines = runs.step_lines(output)
        steps = []
        for before, line in zip(lines, lines[1:]):
            tokens = line["tokens"] - before["tokens"]
            targets = line["target_tokens"] - before["target_tokens"]
            steps.append({"seconds": tokens / line["tokens_per_second"], "tokens": tokens, "target_tokens": targets})
        return {"steps": steps, "memory": memory}


def rate(runs, key):
    """Median over the turns of a turn's tokens per second, its first step left out."""
    def total(run, what):
        return sum(step[what] for step in run["steps"])

    return statistics.median(total(run, key) / total(run, "seconds") for run in runs)


def summary(theirs, ours, key):
    return {
        "reference": rate(theirs, key),
        "fettle": rate(ours, key),
        "ratio": rate(ours, key) / rate(theirs, key),
        "reference_memory": statistics.median(run["memory"] for run in theirs),
        "fettle_memory": statistics.median(run["memory"] for run in ours),
        "turns": len(ours),
        "reference_steps": len(theirs[0]["steps"]),
        "fettle_steps": len(ours[0]["steps"]),
    }


def write_equal_rows(bench, rows):
    """Rows of 512 random tokens; returns the file."""
    file = bench.folder / "equal.jsonl"
    runs.write_rows(file, rows, ROW_TOKENS, 49152)
    return file


def profile(bench, options):
    """Where the time of a step goes, in a run of its own: the profiler costs time."""
    bench.train(**options, profile_steps=max(1, options["max_steps"] - 3))
    return json.loads((bench.folder / "ours/profile.json").read_text())


def measure_equal(bench, shape, what, turns, steps):
    """The same tokens on both sides: rows of 512 tokens. `what`: lora or full."""
    file = write_equal_rows(bench, shape.rows * steps)
    model = bench.model_of(shape)
    options = {"model_name_or_path": model, "train_file": file, "dataset_format": "tokenized", "packing": "false"}
    options |= {"max_seq_length": ROW_TOKENS, "per_device_train_batch_size": shape.rows, "max_steps": steps}
    options |= {"shuffle": "false", "use_peft": "true" if what == "lora" else "false"}
    theirs, ours, peaks = [], [], []
    for _ in range(turns):
        peaks.append(bench.reference("gemm", shape.name)["flops_per_second"])
        reference = bench.reference(what, model, file, steps, shape.rows)
        theirs.append({**reference, "steps": reference["steps"][1:]})
        ours.append(bench.train(**options))
    result = summary(theirs, ours, "tokens")
    result["profile"] = profile(bench, options)
    result["gemm_peak"] = statistics.median(peaks)
    for side in ("reference", "fettle"):
        flops = result[side] * shape.flops_per_token(ROW_TOKENS / 2, what == "full")
        result[f"{side}_share"] = flops / result["gemm_peak"]
    return result


def measure_records(bench, path, turns, steps):
    """500 real instruction records, each side with its own way to make batches; only answers are targets."""
    text = path.read_text()
    records = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    file = bench.folder / f"{path.stem}.json"
    file.write_text(json.dumps(records[:RECORDS]))
    options = {"train_file": file, "max_seq_length": 1024, "per_device_train_batch_size": 2, "max_steps": steps}
    theirs, ours = [], []
    for _ in range(turns):
        theirs.append(bench.reference("trl", bench.model, file, steps))
        ours.append(bench.train(**options))
    return summary(theirs, ours, "target_tokens")


def machine(bench):
    with open("/proc/cpuinfo") as lines:
        facts = dict(line.strip().partition("\t: ")[::2] for line in lines if "\t: " in line)
    name = next(value for key, value in facts.items() if key.strip() == "model name")
    flags = set(next(value for key, value in facts.items() if key.strip() == "flags").split())
    shown = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "cpu": name,
        "threads": bench.threads,
        "instructions": shown,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "trl")},
        "date": datetime.date.today().isoformat(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short turn; the report goes to build/bench")
    parser.add_argument("--turns", type=int, default=3, help="how often the two sides take turns")
    parser.add_argument("--part", choices=["reference", "own"], help="measure only this")
    parser.add_argument("--build", type=pathlib.Path, default=REPOSITORY / "build/release", help="folder of fettle")
    arguments = parser.parse_args()
    folder = REPOSITORY / "build/bench"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.build, folder)
    turns = 1 if arguments.quick else arguments.turns
    target = folder if arguments.quick else REPOSITORY / "docs"
    kept = target / "benchmarks.json"
    results = json.loads(kept.read_text()) if arguments.part and kept.exists() else {}
    if arguments.part != "own":
        work = [("135M", "lora"), ("135M", "full")]
        if not arguments.quick:
            work[1:1] = [(name, "lora") for name, shape in shapes.SHAPES.items() if shape.steps and name != "135M"]
        results |= {"machine": machine(bench), "equal": []}
        for name, what in work:
            shape = shapes.SHAPES[name]
            measured = measure_equal(bench, shape, what, turns, 4 if arguments.quick else shape.steps)
            results["equal"].append({"shape": name, "what": what, **measured})
        results["records"] = {
            name: measure_records(bench, path, turns, 3 if arguments.quick else 12) for name, path in DATASETS.items()
        }
    if arguments.part != "reference":
        results["growth"] = own.measure_growth(bench, arguments.quick)
        write_equal_rows(bench, 60)
        results["ranks"] = own.measure_ranks(bench, turns, 3 if arguments.quick else 8)
        results["saving"] = own.measure_saving(bench, turns, 6 if arguments.quick else 24)
    kept.write_text(json.dumps(results, indent=2) + "\n")
    text = report.markdown(results)
    (target / "benchmarks.md").write_text(text)
    (target / "benchmarks.svg").write_text(picture.svg(report.compared(results)))
    print(text)


if __name__ == "__main__":
    main()
