# SPDX-License-Identifier: Apache-2.0
"""`fettle train` with do_quantize and do_benchmark: what is there in the end, what is replaced, and what is refused before it begins."""

import json

import pytest
import trainers

TRAINING = {
    "dataset_format": "tokenized",
    "max_seq_length": 128,
    "bf16": False,
    "lora_r": 4,
    "max_steps": 2,
    "do_quantize": True,
    "woq_bits": 8,
    "woq_group_size": 32,
    "max_perplexity_ratio": 0,
}
BENCHMARK = {"do_benchmark": True, "benchmark_input_tokens": 8, "benchmark_output_tokens": 4, "benchmark_iterations": 1}


@pytest.fixture
def run(fettle, tiny_models, write_jsonl, tmp_path):
    records = write_jsonl("records.jsonl", trainers.random_records(16, 512))
    usual = {"model_name_or_path": tiny_models("llama_blocks"), "train_file": records, "output_dir": tmp_path / "out", **TRAINING}

    def run(command="train", expect=0, **options):
        return fettle(command, expect=expect, **{**usual, **options})

    return run


def method(folder):
    return json.loads((folder / "all_results.json").read_text())["method"]


def test_one_command_makes_all(run, fettle, tmp_path):
    run(**BENCHMARK)
    out = tmp_path / "out"
    for folder in (out, out / "merged", out / "quantized"):
        fettle("verify", folder)
    assert method(out / "quantized")["algorithm"] == "RTN"
    assert json.loads((out / "benchmark.json").read_text()).keys() == {"trained", "quantized"}
    weights = out / "quantized/model.safetensors"
    made = weights.stat().st_mtime_ns
    assert "is that model already" in run().stderr
    run(overwrite_output_dir=True, max_steps=4)
    assert weights.stat().st_mtime_ns > made, "of other weights now"


def test_a_model_that_was_quantized_otherwise_stays(run, tmp_path):
    run()
    weights = tmp_path / "out/quantized/model.safetensors"
    content = weights.read_bytes()
    for command in ("check", "train"):
        assert "holds a model that was quantized with other options" in run(command, expect=78, woq_bits=3).stderr
    assert weights.read_bytes() == content
    run(woq_bits=3, quantize_output_dir=tmp_path / "three")
    assert weights.read_bytes() == content and method(tmp_path / "three") != method(tmp_path / "out/quantized")


@pytest.mark.parametrize(("options", "said"), [
    ({"woq_group_size": 48}, "woq_group_size 48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"),
    ({"quantize_output_dir": "full"}, "full is not empty"),
])  # fmt: skip
def test_what_could_not_end_does_not_begin(run, tmp_path, options, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    if "quantize_output_dir" in options:
        options = {"quantize_output_dir": tmp_path / options["quantize_output_dir"]}
    for command in ("check", "train"):
        assert said in run(command, expect=78, **options).stderr
    assert not (tmp_path / "out").exists()


def test_a_quantized_base_is_refused_before(run, fettle, tiny_models, tmp_path):
    fettle("quantize", model_name_or_path=tiny_models("llama_blocks"), output_dir=tmp_path / "base", woq_group_size=32)
    assert "is quantized already" in run(expect=78, model_name_or_path=tmp_path / "base").stderr
