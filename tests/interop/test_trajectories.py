# SPDX-License-Identifier: Apache-2.0
"""Twenty optimizer steps against TRL (LoRA) and transformers (full), and what a run leaves behind, read by them.

Both take the same records in the same order from the same initial weights, in float32, with accumulation, warm-up,
clipping and weight decay. transformers divides the loss of a step by the number of its targets, over all micro-batches
(num_items_in_batch); so does Fettle.
"""

import logging
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
ADAPTED = [("llama3", "all_linear"), ("mistral", "attention"), ("qwen2", "regex"), ("qwen3", "rslora"), ("llama2", "saved")]
WHOLE = ["llama2", "mistral", "qwen2", "qwen3"]


@pytest.fixture
def records(tiny_models):
    def make(family):
        vocabulary = transformers.AutoConfig.from_pretrained(tiny_models(family)).vocab_size
        return trainers.random_records(RECORDS, vocabulary)

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


def eval_logits(fettle, folder, records_file, **options):
    """The logits of every record, as `fettle eval` writes them, in float32."""
    path = folder / "logits.safetensors"
    fettle(
        "eval",
        validation_file=records_file,
        dataset_format="tokenized",
        max_seq_length=256,
        bf16=False,
        logits_file=path,
        **options,
    )
    return safetensors.torch.load_file(path)


def assert_same_logits(model, records, logits):
    assert len(logits) == len(records)
    with torch.no_grad():
        for number, record in enumerate(records):
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
def test_lora(fettle, tiny_models, records, write_jsonl, tmp_path, family, adapter):
    settings, data, model = trainers.Settings(max_steps=STEPS), records(family), tiny_models(family)
    initial = make_adapters.make(adapter, model, tmp_path / "initial", initial=True)
    theirs = trainers.train_theirs(trainers.load(model, initial), data, settings, tmp_path / "theirs")
    train_file = write_jsonl("train.jsonl", data)
    output = tmp_path / "ours"
    ours = trainers.train_ours(
        fettle, settings, output, model_name_or_path=model, adapter_name_or_path=initial, train_file=train_file
    )
    assert_same_steps(ours, theirs, settings)

    # PEFT says nothing about our adapter that it does not say about its own, and computes what we compute.
    def load(folder):
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        return peft.PeftModel.from_pretrained(base, folder).eval()

    usual, _ = complaints(lambda: load(initial))
    about_ours, loaded = complaints(lambda: load(output))
    assert set(about_ours) <= set(usual)
    logits = eval_logits(fettle, tmp_path, train_file, model_name_or_path=model, adapter_name_or_path=output)
    assert_same_logits(loaded, data, logits)


@pytest.mark.parametrize("family", WHOLE)
def test_full(fettle, tiny_models, records, write_jsonl, tmp_path, family):
    settings = trainers.Settings(max_steps=STEPS, learning_rate=2e-3)
    data, model = records(family), tiny_models(family)
    theirs = trainers.train_theirs(trainers.load(model, None), data, settings, tmp_path / "theirs")
    train_file = write_jsonl("train.jsonl", data)
    output = tmp_path / "ours"
    ours = trainers.train_ours(
        fettle, settings, output, model_name_or_path=model, use_peft=False, train_file=train_file, max_shard_size="100KB"
    )
    assert_same_steps(ours, theirs, settings)
    assert (output / "model.safetensors.index.json").exists(), "100 KB a file is less than the model"

    def load():
        return transformers.AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)

    about_ours, (loaded, information) = complaints(load)
    assert not about_ours
    assert not any(information.values()), information
    assert loaded.dtype == torch.float32, "saved in the base's type"
    logits = eval_logits(fettle, tmp_path, train_file, model_name_or_path=output)
    assert_same_logits(loaded.eval(), data, logits)
    assert transformers.AutoTokenizer.from_pretrained(output).vocab_size > 0
