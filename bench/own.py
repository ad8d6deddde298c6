# SPDX-License-Identifier: Apache-2.0
"""Fettle against itself: many and long documents against few and short ones, two processes against one, and training
with checkpoints against training without."""

import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import time

import runs

SMALL_MODEL = pathlib.Path(__file__).resolve().parents[1] / "examples/stories260K"
ROWS = 2  # of a process and step


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tokens_per_second(output):
    """Over all steps but the first, of all processes."""
    lines = runs.step_lines(output)
    pairs = list(zip(lines, lines[1:]))
    seconds = sum((line["tokens"] - before["tokens"]) / line["tokens_per_second"] for before, line in pairs)
    return (lines[-1]["tokens"] - lines[0]["tokens"]) / seconds


def train(bench, processes, options):
    """Runs `fettle train` in so many processes; returns (output folder, seconds from start to end)."""
    output = bench.folder / "own"
    shutil.rmtree(output, ignore_errors=True)
    options = {"model_name_or_path": bench.model, "output_dir": output, "log_level": "warning", "do_eval": "false",
               "verify_saved_model": "false", "logging_steps": 1, **options}
    command = [str(bench.fettle), "train", *(f"--{key}={value}" for key, value in options.items())]
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    began = time.monotonic()
    running = [
        subprocess.Popen(command, env={**bench.environment, **group, "RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(processes)
    ]
    for process in running:
        errors = process.communicate()[1]
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{errors.decode()[-3000:]}\nexit {process.returncode}")
    return output, time.monotonic() - began


def seconds_of_step(bench, model, documents, length):
    """The least of four steps, each of so many documents of so many tokens; and the process's peak memory."""
    steps = 4
    file = bench.folder / "growth.jsonl"
    runs.write_rows(file, steps * documents, length, 500)
    run = bench.train(model_name_or_path=model, train_file=file, dataset_format="tokenized", packing="false",
                      max_seq_length=length, per_device_train_batch_size=documents, max_steps=steps)
    return {"documents": documents, "tokens": documents * length, "memory": run["memory"],
            "seconds": min(step["seconds"] for step in run["steps"])}


def measure_growth(bench, is_quick):
    """The same tokens in more and more documents, with a model so small that what a document costs shows; and more and
    more tokens in documents of one length."""
    tokens = 2000 if is_quick else 20000
    split = [seconds_of_step(bench, SMALL_MODEL, count, tokens // count) for count in (1, 10, 100, 1000, tokens // 2)]
    rows = (1, 4) if is_quick else (1, 4, 16, 64)
    grown = [seconds_of_step(bench, bench.model, count, 512) for count in rows]
    return {"documents": split, "tokens": grown}


def measure_ranks(bench, turns, steps):
    """One process of one thread against as many of them as there are cores; each takes the same rows a step."""
    processes = len(os.sched_getaffinity(0))
    options = {"train_file": bench.folder / "equal.jsonl", "dataset_format": "tokenized", "packing": "false",
               "max_seq_length": 512, "per_device_train_batch_size": ROWS, "num_threads": 1, "max_steps": steps,
               "save_strategy": "no", "lora_r": 8}
    one, several = [], []
    for _ in range(turns):
        one.append(tokens_per_second(train(bench, 1, options)[0]))
        several.append(tokens_per_second(train(bench, processes, options)[0]))
    alone, together = statistics.median(one), statistics.median(several)
    return {"processes": processes, "one": alone, "several": together, "efficiency": together / (processes * alone)}


def measure_saving(bench, turns, steps):
    """What a checkpoint costs training, for LoRA and for all weights. The first also grows the process by its copy of
    the state; all runs save after the last step."""
    results = {}
    for name, more in {"LoRA": {"lora_r": 8}, "full fine-tuning": {"use_peft": "false"}}.items():
        options = {"train_file": bench.folder / "equal.jsonl", "dataset_format": "tokenized", "packing": "false",
                   "max_seq_length": 512, "per_device_train_batch_size": ROWS, "max_steps": steps, **more}

        def seconds(saves):
            return train(bench, 1, {**options, "save_steps": steps // saves})[1]
        first, further = [], []
        for _ in range(turns):
            one, two, six = seconds(1), seconds(2), seconds(6)
            first.append(two - one)
            further.append((six - two) / 4)
        size = sum(file.stat().st_size for file in (bench.folder / f"own/checkpoint-{steps}").iterdir())
        results[name] = {"first": statistics.median(first), "further": statistics.median(further), "bytes": size}
    return results
