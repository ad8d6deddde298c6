# SPDX-License-Identifier: Apache-2.0
"""What every measurement of `fettle train` reads and writes."""

import json
import random


def write_rows(file, count, length, vocabulary):
    """`count` records of `length` random tokens, all of them targets."""
    generator = random.Random(0)
    with open(file, "w") as lines:
        for _ in range(count):
            ids = [generator.randrange(3, vocabulary) for _ in range(length)]
            lines.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def step_lines(output):
    """The lines of a run's metrics.jsonl that are of steps."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]
