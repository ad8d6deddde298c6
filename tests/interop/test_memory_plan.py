# SPDX-License-Identifier: Apache-2.0
"""`fettle check` says how much memory a run will need: held against the peak of the run itself.

The model has the shape of SmolLM2-135M and random weights; what a step needs does not depend on their values.
"""

import json
import random
import re
import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "bench"))
import shapes

TOLERANCE = 0.10
ROW_TOKENS = 512
CASES = {
    "LoRA": {"per_device_train_batch_size": 4},
    "LoRA, one row": {"per_device_train_batch_size": 1},
    "LoRA, activation checkpointing": {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    "LoRA on 4 bits": {"per_device_train_batch_size": 1, "load_in_4bit": True},
    "LoRA in float32": {"per_device_train_batch_size": 2, "bf16": False},
    "all weights": {"per_device_train_batch_size": 4, "use_peft": False},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    shapes.make_model(folder, shapes.SHAPES["135M"])
    return folder


def rows(number):
    generator = random.Random(0)
    for _ in range(number):
        ids = [generator.randrange(3, 49152) for _ in range(ROW_TOKENS)]
        yield {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("case", CASES)
def test_the_planned_peak_is_the_measured_one(fettle, model, write_jsonl, tmp_path, case):
    options = {"model_name_or_path": model, "train_file": write_jsonl("rows.jsonl", rows(12)), "dataset_format": "tokenized",
               "packing": False, "max_seq_length": ROW_TOKENS, "max_steps": 3, "save_strategy": "no", "do_eval": False,
               "verify_saved_model": False, "output_dir": tmp_path / "out", **CASES[case]}
    planned = re.search(r"^memory +([\d.]+) GB", fettle("check", num_threads=2, **options).stdout, re.M)
    fettle("train", **options)
    measured = json.loads((tmp_path / "out/all_results.json").read_text())["peak_memory_bytes"] / 1e9
    print(f"{case}: planned {planned[1]} GB, measured {measured:.2f} GB")
    assert float(planned[1]) == pytest.approx(measured, rel=TOLERANCE)


def test_a_run_that_cannot_fit_is_refused_before_it_begins(fettle, model, write_jsonl, tmp_path):
    done = fettle("check", num_threads=2, model_name_or_path=model, train_file=write_jsonl("rows.jsonl", rows(4096)),
                  dataset_format="tokenized", packing=False, max_seq_length=ROW_TOKENS, per_device_train_batch_size=4096,
                  output_dir=tmp_path / "out", expect=71)
    assert re.search(r"the run needs \d+\.\d+ GB of memory, and there are", done.stderr), done.stderr
    assert "gradient_checkpointing" in done.stderr
    assert not (tmp_path / "out").exists()
