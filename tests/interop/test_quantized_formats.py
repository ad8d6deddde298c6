# SPDX-License-Identifier: Apache-2.0
"""Models that `fettle quantize` made, read by the programs that the formats belong to: compressed-tensors and gptqmodel,
through transformers, on a CPU, in float32. Their logits are Fettle's.

gptqmodel rounds each weight to float16 after scaling it; Fettle multiplies with the whole numbers and scales the sums.
"""

import json
import os
import pathlib
import sys

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # or gptqmodel compiles for each shape
sys.path.insert(0, str(pathlib.Path(sys.executable).parent.parent / "loaders"))

import pytest
import safetensors.torch
import torch
import trainers
import transformers

RECORDS = 16
EVAL = {"dataset_format": "tokenized", "max_seq_length": 128, "bf16": False}
EXACT = 2e-5  # float32 sums in another order
# float16 has 2^-11 between 1 and a neighbour, so that a rounded weight is wrong by 2.8e-4 of it in the mean square, and
# so is a product's result; the logits come after 21 products, one behind the other: 1.3e-3.
HALF = 2e-3


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    records = trainers.random_records(RECORDS, 512)
    file = tmp_path_factory.mktemp("records") / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records, file


@pytest.fixture
def logits(fettle, tiny_models, task, tmp_path):
    """`logits(family, woq_bits=…)` quantizes that tiny model and returns our logits of the records and the loader's."""
    records, file = task

    def ours(folder):
        path = tmp_path / "logits.safetensors"
        fettle("eval", model_name_or_path=folder, validation_file=file, logits_file=path, **EVAL)
        ours = safetensors.torch.load_file(path)
        return torch.cat([ours[f"record.{number}"] for number in range(RECORDS)])

    def theirs(folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
        with torch.no_grad():
            return torch.cat([model(input_ids=torch.tensor([record["input_ids"]])).logits[0] for record in records])

    def both(family, **options):
        if options.get("woq_algo", "RTN") != "RTN":
            options |= {"calibration_samples": 8, "calibration_length": 128}
        fettle("quantize", model_name_or_path=tiny_models(family), train_file=file, output_dir=tmp_path / "quantized",
               max_perplexity_ratio=0, **EVAL, **options)
        return ours(tmp_path / "quantized"), theirs(tmp_path / "quantized").float()

    return both


COMPRESSED = [
    *((bits, group, "sym") for bits in (2, 3, 4, 5, 8) for group in (-1, 32)),
    *((bits, group, "asym") for bits in (1, 4, 6, 7) for group in (-1, 64)),
]


@pytest.mark.parametrize("bits, group, scheme", COMPRESSED)
def test_compressed_tensors_reads_what_we_write(logits, bits, group, scheme):
    ours, theirs = logits("qwen2_blocks", woq_bits=bits, woq_group_size=group, woq_scheme=scheme)
    assert (ours - theirs).abs().max() <= EXACT


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ"])
@pytest.mark.parametrize("family", ["llama_blocks", "qwen2_blocks"])
def test_what_calibration_changed_is_in_the_file(logits, family, algorithm):
    ours, theirs = logits(family, woq_bits=4, woq_group_size=32, woq_algo=algorithm)
    assert (ours - theirs).abs().max() <= EXACT


def relative_difference(ours, theirs):
    return ((ours - theirs).square().mean() / theirs.square().mean()).sqrt()


GPTQ = [
    *({"woq_bits": bits, "woq_group_size": 32} for bits in (2, 3, 4, 8)),
    {"woq_bits": 4, "woq_group_size": 64, "woq_scheme": "asym"},
    {"woq_bits": 4, "woq_group_size": -1, "woq_scheme": "asym"},
    {"woq_bits": 8, "woq_group_size": -1, "woq_scheme": "asym"},
    {"woq_bits": 4, "woq_group_size": 32, "woq_algo": "GPTQ", "static_groups": False},
    {"woq_bits": 4, "woq_group_size": 32, "woq_scheme": "asym", "woq_algo": "GPTQ"},
]


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("options", GPTQ, ids=str)
def test_gptqmodel_reads_gptq(logits, version, options):
    ours, theirs = logits("qwen2_blocks", woq_format=version, **options)
    assert relative_difference(ours, theirs) <= HALF


@pytest.mark.parametrize("group, scheme", [(32, "sym"), (32, "asym"), (64, "asym")])
def test_gptqmodel_reads_awq(logits, group, scheme):
    ours, theirs = logits("llama_blocks", woq_bits=4, woq_group_size=group, woq_scheme=scheme, woq_format="awq",
                          woq_algo="AWQ")
    assert relative_difference(ours, theirs) <= HALF
