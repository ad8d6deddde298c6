# SPDX-License-Identifier: Apache-2.0
"""QLoRA: a base in 4 bits is the base that bitsandbytes makes of it, and an adapter trains on it as transformers trains it.

Computed in float32 on both sides, so that only the quantization could differ. bitsandbytes' int8 also quantizes the
activations, and int4 it has not: those two are held against the full weights.
"""

import math

import make_adapters
import peft
import pytest
import reference
import safetensors.torch
import torch
import trainers
import transformers
from conftest import read_jsonl

FORMATS = {
    "nf4": {"load_in_4bit": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
    "int8": {"load_in_8bit": True},
}
RECORDS = 24
EVAL = {"dataset_format": "tokenized", "max_seq_length": 256, "bf16": False}


@pytest.fixture
def task(tiny_models, write_jsonl):
    model = tiny_models("llama_blocks")
    records = trainers.random_records(RECORDS, transformers.AutoConfig.from_pretrained(model).vocab_size)
    return model, records, write_jsonl("train.jsonl", records)


def quantized_by_bitsandbytes(model, quant_type):
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type,
                                             bnb_4bit_compute_dtype=torch.float32)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=config,
                                                               device_map={"": "cpu"})
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # or it rounds the scales to bfloat16 outside training
    return loaded


def our_logits(fettle, task, folder, **options):
    model, records, file = task
    path = folder / "logits.safetensors"
    fettle("eval", model_name_or_path=model, validation_file=file, logits_file=path, **EVAL, **options)
    logits = safetensors.torch.load_file(path)
    return [logits[f"record.{number}"] for number in range(len(records))]


def their_logits(model, records):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([record["input_ids"]])).logits[0] for record in records]


def largest_difference(ours, theirs):
    return max((mine - their).abs().max().item() for mine, their in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_logits_are_those_of_bitsandbytes(fettle, task, tmp_path, quant_type):
    model, records, _ = task
    full = their_logits(reference.load(model), records)
    theirs = their_logits(quantized_by_bitsandbytes(model, quant_type), records)
    ours = our_logits(fettle, task, tmp_path, **FORMATS[quant_type])
    assert largest_difference(ours, theirs) <= 1e-4
    assert largest_difference(theirs, full) > 1e-2, "the quantization changed nothing: a weaker test"


def test_an_adapter_trains_on_nf4_as_with_transformers(fettle, task, tmp_path):
    model, records, file = task
    settings = trainers.Settings(max_steps=12)
    initial = make_adapters.make("all_linear", model, tmp_path / "initial", initial=True)
    base = quantized_by_bitsandbytes(model, "nf4")
    adapted = peft.PeftModel.from_pretrained(base, initial, is_trainable=True)
    theirs = trainers.train_theirs(adapted, records, settings, tmp_path / "theirs")
    output = tmp_path / "ours"
    ours = trainers.train_ours(fettle, settings, output, model_name_or_path=model, adapter_name_or_path=initial,
                               train_file=file, **FORMATS["nf4"])
    assert len(ours) == len(theirs) == settings.max_steps
    for mine, their in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(their["loss"], rel=1e-4), f"step {mine['step']}"
        assert mine["grad_norm"] == pytest.approx(their["grad_norm"], rel=1e-3), f"step {mine['step']}"
    # PEFT reads the result onto the same base, and computes what we compute.
    loaded = peft.PeftModel.from_pretrained(quantized_by_bitsandbytes(model, "nf4"), output).eval()
    ours = our_logits(fettle, task, tmp_path, adapter_name_or_path=output, **FORMATS["nf4"])
    assert largest_difference(ours, their_logits(loaded, records)) <= 2e-4


def test_more_bits_are_nearer_to_the_full_weights(fettle, task, tmp_path):
    full = our_logits(fettle, task, tmp_path)
    errors = {}
    for name, options in FORMATS.items():
        ours = our_logits(fettle, task, tmp_path, **options)
        differences = torch.cat([(mine - whole).flatten() for mine, whole in zip(ours, full, strict=True)])
        errors[name] = differences.square().mean().sqrt().item()
    print(", ".join(f"{name}: {error:.4f}" for name, error in errors.items()))
    assert 0 < errors["int8"] < errors["nf4"] / 8
    assert errors["nf4"] < errors["int4"] and errors["nf4"] < errors["fp4"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_resumes_and_reads_its_result_back(fettle, task, tmp_path, name):
    """bfloat16, checkpointing of activations, and a stop half-way: the same losses as in one go."""
    model, _, file = task
    options = {"model_name_or_path": model, "train_file": file, "dataset_format": "tokenized", "learning_rate": 1e-2,
               "per_device_train_batch_size": 2, "max_seq_length": 256, "logging_steps": 1, "max_steps": 6,
               "lr_scheduler_type": "constant", "gradient_checkpointing": True, **FORMATS[name]}
    fettle("train", output_dir=tmp_path / "whole", save_steps=3, **options)
    fettle("train", output_dir=tmp_path / "rest", save_steps=3,
           resume_from_checkpoint=tmp_path / "whole/checkpoint-3", **options)
    whole, rest = ([line["loss"] for line in read_jsonl(tmp_path / folder / "metrics.jsonl")
                    if "loss" in line and line["step"] > 3] for folder in ("whole", "rest"))
    assert len(whole) == 3 and all(map(math.isfinite, whole))
    assert rest == whole
    other = {"load_in_4bit": not options.get("load_in_4bit", False), "load_in_8bit": False}
    refused = fettle("train", output_dir=tmp_path / "whole", expect=78, **{**options, **other, "save_steps": 3})
    assert "load_in" in refused.stderr
