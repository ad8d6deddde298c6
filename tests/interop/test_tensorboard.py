# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's own reader gets the numbers of metrics.jsonl from the event files, also of a run that was continued."""

import json

import pytest
from conftest import REPOSITORY, STORIES260K
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RECORDS = REPOSITORY / "examples/data/tinystories_valid_350.jsonl"


@pytest.fixture
def train(fettle, tmp_path):
    def run(**options):
        fettle("train", model_name_or_path=STORIES260K, train_file=RECORDS, max_train_samples=64, output_dir=tmp_path / "out",
               validation_split_percentage=10, per_device_train_batch_size=2, max_seq_length=128, logging_steps=1,
               save_steps=4, eval_strategy="steps", eval_steps=4, report_to="tensorboard", **options)
        return tmp_path / "out"
    return run


def scalars(folder):
    """{tag: [(step, value)]} as TensorBoard shows it."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def lines(output_dir, key):
    found = map(json.loads, (output_dir / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in found if key in line]


def test_the_numbers_are_those_of_metrics_jsonl(train):
    output_dir = train(max_steps=10)
    shown = scalars(output_dir / "runs")
    for tag, key in {"train/loss": "loss", "train/grad_norm": "grad_norm", "train/learning_rate": "learning_rate",
                     "train/tokens_per_second": "tokens_per_second", "eval/loss": "eval_loss",
                     "eval/perplexity": "eval_perplexity"}.items():
        assert shown[tag] == lines(output_dir, key), tag
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 11))


def test_a_run_that_begins_again_replaces_what_it_said(train):
    first = scalars(train(max_steps=10) / "runs")
    output_dir = train(max_steps=10, overwrite_output_dir=True, resume_from_checkpoint="none", learning_rate=1e-3)
    shown = scalars(output_dir / "runs")
    assert shown["train/loss"] == lines(output_dir, "loss")
    assert shown["train/loss"] != first["train/loss"]


def test_a_run_that_goes_on_continues_its_curves(train):
    output_dir = train(max_steps=10)
    train(max_steps=10, resume_from_checkpoint=output_dir / "checkpoint-8", overwrite_output_dir=True)
    assert len(list((output_dir / "runs").iterdir())) == 2
    assert scalars(output_dir / "runs")["train/loss"] == lines(output_dir, "loss")
