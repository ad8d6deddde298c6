# SPDX-License-Identifier: Apache-2.0
"""Writes schedules.json: the learning rates that transformers gives for every lr_scheduler_type, several warm-ups and arguments.

Run it with the Python of the reference environment: python tests/golden/make_schedules.py
"""

import json
import math
import pathlib

import torch
import transformers
from transformers.optimization import get_scheduler

PEAK = 3e-3
TOTAL = 23
WARMUPS = (0, 1, 5, 22)
ARGUMENTS = {
    "linear": [{}],
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "polynomial": [{}, {"lr_end": 1e-4, "power": 2.0}, {"power": 0.5}],
    "constant": [{}],
    "constant_with_warmup": [{}],
    "inverse_sqrt": [{}, {"timescale": 40}, {"timescale": None}],
    "cosine_with_min_lr": [{"min_lr": 1e-4}, {"min_lr_rate": 0.2, "num_cycles": 1.0}],
    "cosine_warmup_with_min_lr": [{"min_lr": 1e-4}, {"min_lr_rate": 0.2, "warmup_lr_rate": 0.1}],
    "warmup_stable_decay": [
        {"num_decay_steps": 4},
        {"num_decay_steps": 4, "num_stable_steps": 6, "min_lr_ratio": 0.1},
        {"num_decay_steps": 9, "warmup_type": "cosine", "decay_type": "linear"},
        {"num_decay_steps": 9, "warmup_type": "1-sqrt", "decay_type": "1-sqrt", "min_lr_ratio": 0.05},
        {"num_decay_steps": 9, "num_cycles": 1.0},
    ],
}
ADAPTIVE_ARGUMENTS = {
    "reduce_lr_on_plateau": [
        {},
        {"patience": 1, "factor": 0.5},
        {"patience": 0, "factor": 0.5, "cooldown": 2, "min_lr": 1e-4},
        {"patience": 2, "mode": "max", "threshold": 0.05, "threshold_mode": "abs"},
    ],
    "greedy": [
        {},
        {"patience": 1, "factor": 0.5, "min_lr": 1e-5, "max_lr": 0.01},
        {"patience": 0, "factor": 0.7, "min_lr": 1e-3, "max_lr": 0.01, "warmup": 1, "cooldown": 1, "reset_start": 3},
        {"patience": 1, "min_lr": 1e-5, "smooth": True, "window_size": 4, "threshold_mode": "rel", "threshold": 0.01},
    ],
}


def optimizer():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def pure_case(name, warmup, arguments):
    owner = optimizer()
    schedule = get_scheduler(name, owner, warmup, TOTAL, dict(arguments))
    rates = []
    for _ in range(TOTAL):
        rates.append(owner.param_groups[0]["lr"])
        owner.step()
        schedule.step()
    return {"type": name, "warmup_steps": warmup, "arguments": arguments, "learning_rates": rates}


def metrics():
    """A loss that falls, stalls, rises and falls again."""
    return [3 - 0.1 * i for i in range(8)] + [2.3 + 0.05 * math.sin(i) for i in range(20)] + [2.2 - 0.05 * i for i in range(12)]


def adaptive_case(name, arguments):
    owner = optimizer()
    schedule = get_scheduler(name, owner, scheduler_specific_kwargs=dict(arguments))
    rates = []
    for metric in metrics():
        schedule.step(metric)
        rates.append(owner.param_groups[0]["lr"])
    return {"type": name, "arguments": arguments, "learning_rates": rates}


def main():
    pure = [pure_case(n, w, a) for n, cases in ARGUMENTS.items() for w in WARMUPS for a in cases]
    adaptive = [adaptive_case(n, a) for n, cases in ADAPTIVE_ARGUMENTS.items() for a in cases]
    golden = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "learning_rate": PEAK,
        "total_steps": TOTAL,
        "metrics": metrics(),
        "pure": pure,
        "adaptive": adaptive,
    }
    pathlib.Path(__file__).with_name("schedules.json").write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
