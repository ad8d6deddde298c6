# SPDX-License-Identifier: Apache-2.0
"""Models that `fettle quantize` made, read by the programs that the formats belong to: compressed-tensors and gptqmodel,
through transformers, on a CPU, in float32. Their logits are Fettle's.

gptqmodel rounds each weight to float16 after scaling it; Fettle multiplies with the whole numbers and scales the sums.
"""

import os
import pathlib
import sys

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # or gptqmodel compiles for each shape
sys.path.insert(0, str(pathlib.Path(sys.executable).parent.parent / "loaders"))

import pytest
import reference
import safetensors.torch
import torch
import trainers
import transformers

RECORDS = 16
EVAL = {"dataset_format": "tokenized", "max_seq_length": 128, "bf16": False}
EXACT = 2e-5  # float32 sums in another order
HALF = 8e-3  # of logits of about 4


@pytest.fixture(scope="module")
def records_file(write_jsonl_in, tiny_models):
    records = trainers.random_records(RECORDS, 512)
    return records, write_jsonl_in("records.jsonl", records)


@pytest.fixture(scope="module")
def write_jsonl_in(tmp_path_factory):
    import json

    folder = tmp_path_factory.mktemp("records")

    def write(name, records):
        path = folder / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


def quantize(fettle, model, file, folder, **options):
    if options.get("woq_algo", "RTN") != "RTN":
        options |= {"calibration_samples": 8, "calibration_length": 128}
    fettle("quantize", model_name_or_path=model, train_file=file, output_dir=folder, max_perplexity_ratio=0, **EVAL,
           **options)
    return folder


def our_logits(fettle, model, file, path):
    fettle("eval", model_name_or_path=model, validation_file=file, logits_file=path, **EVAL)
    logits = safetensors.torch.load_file(path)
    return [logits[f"record.{number}"] for number in range(RECORDS)]


def their_logits(folder, records):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        return [model(input_ids=torch.tensor([record["input_ids"]])).logits[0].float() for record in records]


def assert_same(fettle, records_file, folder, tolerance):
    records, file = records_file
    ours = our_logits(fettle, folder, file, folder.parent / "logits.safetensors")
    for mine, theirs in zip(ours, their_logits(folder, records), strict=True):
        assert (mine - theirs).abs().max() <= tolerance


COMPRESSED = [
    *((bits, group, "sym") for bits in (2, 3, 4, 5, 8) for group in (-1, 32)),
    *((bits, group, "asym") for bits in (1, 4, 6, 7) for group in (-1, 64)),
]


@pytest.mark.parametrize("bits, group, scheme", COMPRESSED)
def test_compressed_tensors_reads_what_we_write(fettle, tiny_models, records_file, tmp_path, bits, group, scheme):
    folder = quantize(fettle, tiny_models("qwen2_blocks"), records_file[1], tmp_path / "quantized", woq_bits=bits,
                      woq_group_size=group, woq_scheme=scheme)
    assert_same(fettle, records_file, folder, EXACT)


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ"])
@pytest.mark.parametrize("family", ["llama_blocks", "qwen2_blocks"])
def test_what_calibration_changed_is_in_the_file(fettle, tiny_models, records_file, tmp_path, family, algorithm):
    folder = quantize(fettle, tiny_models(family), records_file[1], tmp_path / "quantized", woq_bits=4,
                      woq_group_size=32, woq_algo=algorithm)
    assert_same(fettle, records_file, folder, EXACT)


GPTQ = [
    *((bits, 32, "sym", {}) for bits in (2, 3, 4, 8)),
    (4, -1, "sym", {}),
    (4, 64, "asym", {}),
    (8, -1, "asym", {}),
    (4, 32, "sym", {"woq_algo": "GPTQ", "act_order": True}),
    (4, 32, "asym", {"woq_algo": "GPTQ", "act_order": True, "static_groups": True}),
]


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits, group, scheme, options", GPTQ)
def test_gptqmodel_reads_gptq(fettle, tiny_models, records_file, tmp_path, version, bits, group, scheme, options):
    folder = quantize(fettle, tiny_models("qwen2_blocks"), records_file[1], tmp_path / "quantized", woq_bits=bits,
                      woq_group_size=group, woq_scheme=scheme, woq_format=version, **options)
    assert_same(fettle, records_file, folder, HALF)


@pytest.mark.parametrize("group, scheme", [(32, "sym"), (32, "asym"), (64, "asym")])
def test_gptqmodel_reads_awq(fettle, tiny_models, records_file, tmp_path, group, scheme):
    folder = quantize(fettle, tiny_models("llama_blocks"), records_file[1], tmp_path / "quantized", woq_bits=4,
                      woq_group_size=group, woq_scheme=scheme, woq_format="awq", woq_algo="AWQ")
    assert_same(fettle, records_file, folder, HALF)
