# SPDX-License-Identifier: Apache-2.0
"""Twenty optimizer steps against TRL (LoRA) and transformers (full), and what a run leaves behind, read by them.

Both take the same records in the same order from the same initial weights, in float32, with accumulation, warm-up,
clipping and weight decay. transformers divides the loss of a step by the number of its targets, over all micro-batches
(num_items_in_batch); so does Fettle.
"""

import dataclasses
import logging
import pathlib
import warnings

import make_adapters
import peft
import pytest
import reference
import safetensors.torch
import torch
import trainers
import transformers

STEPS = 20
RECORDS = 45
EPOCH = 12  # steps of four records; the last has one
ADAPTED = [
    ("llama3", "all_linear"),
    ("mistral", "attention"),
    ("qwen2", "regex"),
    ("qwen3", "rslora"),
    ("llama2", "saved"),
]
WHOLE = ["llama2", "mistral", "qwen2", "qwen3"]


@dataclasses.dataclass
class Task:
    """One model and the records that both sides train it on."""

    model: pathlib.Path
    records: list
    train_file: pathlib.Path
    folder: pathlib.Path  # for what a test writes


@pytest.fixture
def make_task(tiny_models, write_jsonl, tmp_path):
    def make(family):
        model = tiny_models(family)
        vocabulary = transformers.AutoConfig.from_pretrained(model).vocab_size
        records = trainers.random_records(RECORDS, vocabulary)
        return Task(model, records, write_jsonl("train.jsonl", records), tmp_path)

    return make


def assert_same_steps(ours, theirs, settings):
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for mine, their in zip(ours, theirs, strict=True):
        where = f"step {mine['step']}: {mine} against {their}"
        assert mine["learning_rate"] == pytest.approx(their["learning_rate"], rel=1e-9, abs=1e-15), where
        assert mine["loss"] == pytest.approx(their["loss"], rel=1e-4), where
        assert mine["grad_norm"] == pytest.approx(their["grad_norm"], rel=1e-3), where
    assert all(line["grad_norm"] > settings.max_grad_norm for line in theirs), "clipping did not act: a weaker test"
    first, again = ([line["loss"] for line in theirs[start:][: STEPS - EPOCH]] for start in (0, EPOCH))
    assert sum(again) < 0.98 * sum(first), "nothing was learnt: a weaker test"


def assert_same_logits(fettle, model, task, **options):
    """`fettle eval` gives the logits of `model` for every record."""
    path = task.folder / "logits.safetensors"
    settings = {"dataset_format": "tokenized", "max_seq_length": 256, "bf16": False}
    fettle("eval", validation_file=task.train_file, logits_file=path, **settings, **options)
    logits = safetensors.torch.load_file(path)
    assert len(logits) == len(task.records)
    with torch.no_grad():
        for number, record in enumerate(task.records):
            theirs = model(input_ids=torch.tensor([record["input_ids"]])).logits[0]
            ours = logits[f"record.{number}"]
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max().item() <= 1e-4, f"record {number}"


def complaints(action):
    """What Python warnings and the libraries' loggers say during `action`, and its result."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda entry: messages.append(entry.getMessage())
    loggers = [logging.getLogger(name) for name in ("peft", "transformers", "accelerate", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    transformers.utils.logging.set_verbosity_warning()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = action()
    finally:
        reference.quiet()
        for logger in loggers:
            logger.removeHandler(handler)
    return messages + [str(warning.message) for warning in caught], result


@pytest.mark.parametrize(("family", "adapter"), ADAPTED)
def test_lora(fettle, make_task, family, adapter):
    task, settings = make_task(family), trainers.Settings(max_steps=STEPS)
    initial = make_adapters.make(adapter, task.model, task.folder / "initial", initial=True)
    model = trainers.load(task.model, initial)
    theirs = trainers.train_theirs(model, task.records, settings, task.folder / "theirs")
    output = task.folder / "ours"
    start = {"model_name_or_path": task.model, "adapter_name_or_path": initial, "train_file": task.train_file}
    ours = trainers.train_ours(fettle, settings, output, **start)
    assert_same_steps(ours, theirs, settings)

    # PEFT says nothing about our adapter that it does not say about its own, and computes what we compute.
    def load(folder):
        base = transformers.AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(base, folder).eval()

    usual, _ = complaints(lambda: load(initial))
    about_ours, loaded = complaints(lambda: load(output))
    assert set(about_ours) <= set(usual)
    assert_same_logits(fettle, loaded, task, model_name_or_path=task.model, adapter_name_or_path=output)


@pytest.mark.parametrize("family", WHOLE)
def test_full(fettle, make_task, family):
    task, settings = make_task(family), trainers.Settings(max_steps=STEPS, learning_rate=2e-3)
    model = trainers.load(task.model, None)
    theirs = trainers.train_theirs(model, task.records, settings, task.folder / "theirs")
    output = task.folder / "ours"
    start = {"model_name_or_path": task.model, "use_peft": False, "train_file": task.train_file}
    ours = trainers.train_ours(fettle, settings, output, **start, max_shard_size="100KB")
    assert_same_steps(ours, theirs, settings)
    assert (output / "model.safetensors.index.json").exists(), "100 KB a file is less than the model"

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)

    about_ours, (loaded, information) = complaints(load)
    assert not about_ours
    assert not any(information.values()), information
    assert loaded.dtype == torch.float32, "saved in the base's type"
    assert_same_logits(fettle, loaded.eval(), task, model_name_or_path=output)
    assert transformers.AutoTokenizer.from_pretrained(output).vocab_size > 0
