# SPDX-License-Identifier: Apache-2.0
"""`fettle quantize`: what it refuses, what it reports, and how it goes on after it was stopped."""

import json
import shutil
import signal
import subprocess
import time

import conftest
import pytest
import safetensors.torch
import torch
import trainers

EVAL = {"dataset_format": "tokenized", "max_seq_length": 128, "bf16": False}
CALIBRATION = {"calibration_samples": 8, "calibration_length": 128}


@pytest.fixture
def records(write_jsonl):
    return write_jsonl("records.jsonl", trainers.random_records(16, 512))


@pytest.fixture
def quantize(fettle, tiny_models, records, tmp_path):
    def run(expect=0, **options):
        return fettle("quantize", expect=expect, **{"output_dir": tmp_path / "quantized", **run.options, **options})

    run.options = {"model_name_or_path": tiny_models("llama_blocks"), "train_file": records, "max_perplexity_ratio": 0,
                   **EVAL}
    return run


@pytest.mark.parametrize("options, code, message", [
    ({"woq_bits": 0}, 64, "woq_bits"),
    ({"woq_bits": 9}, 64, "woq_bits"),
    ({"woq_group_size": 48}, 78, "woq_group_size 48 does not divide the 64 inputs of model.layers.0.self_attn.q_proj"),
    ({"woq_group_size": 0}, 64, "woq_group_size"),
    ({"woq_bits": 1}, 78, "woq_scheme is sym"),
    ({"woq_bits": 5, "woq_format": "gptq"}, 78, "that format has 2, 3, 4 and 8"),
    ({"woq_bits": 8, "woq_format": "awq"}, 78, "that format has 4"),
    ({"act_order": False}, 78, "woq_algo is RTN"),
    ({"woq_algo": "GPTQ", "woq_group_size": 32, "static_groups": False, "gptq_clip": False}, 78, "static_groups is false"),
    ({"woq_algo": "GPTQ", "woq_format": "awq", "woq_bits": 4, "woq_group_size": 32, "static_groups": False}, 78, "act_order is true"),
    ({"woq_algo": "GPTQ", "awq_clip": False}, 78, "woq_algo is GPTQ"),
    ({"woq_algo": "AWQ", "train_file": []}, 64, "train_file"),
    ({"woq_algo": "nearest"}, 64, "woq_algo"),
    ({"output_dir": ""}, 64, "output_dir"),
    ({"adapter_name_or_path": "x"}, 64, "does not use --adapter_name_or_path"),
    ({"model_name_or_path": "no/such/folder"}, 66, "no/such/folder"),
])
def test_refuses(quantize, options, code, message):
    done = quantize(expect=code, **options)
    assert message in done.stderr
    assert done.stderr.count("error:") == 1


def test_refuses_a_calibration_that_is_too_short(quantize, write_jsonl):
    few = write_jsonl("few.jsonl", trainers.random_records(1, 512)[:1])
    line = json.loads(few.read_text())
    short = write_jsonl("short.jsonl", [{key: value[:20] for key, value in line.items()}])
    done = quantize(expect=65, woq_algo="GPTQ", train_file=short)
    assert "the calibration records have 20 tokens" in done.stderr


def test_refuses_a_model_with_numbers_that_are_not_finite(quantize, tiny_models, tmp_path):
    model = shutil.copytree(tiny_models("llama_blocks"), tmp_path / "model")
    weights = safetensors.torch.load_file(model / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        broken = {**weights, name: weights[name].clone()}
        broken[name][3, 5] = float("inf")
        safetensors.torch.save_file(broken, model / "model.safetensors", {"format": "pt"})
        options = {"train_file": [], "validation_file": []}  # whose perplexity would be none
        assert name in quantize(expect=76, model_name_or_path=model, **options).stderr
        assert not (tmp_path / "quantized/config.json").exists()


@pytest.mark.parametrize(("factor", "said"), [(1e8, "too large"), (1e-12, "too small")])
def test_refuses_weights_beyond_the_scales_of_a_layout(quantize, tiny_models, tmp_path, factor, said):
    model = shutil.copytree(tiny_models("llama_blocks"), tmp_path / "model")
    weights = safetensors.torch.load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    weights[f"{name}.weight"] *= factor
    safetensors.torch.save_file(weights, model / "model.safetensors", {"format": "pt"})
    options = {"model_name_or_path": model, "train_file": [], "validation_file": []}
    message = quantize(expect=78, woq_format="gptq", **options).stderr
    assert f"{name}: its weights are {said} for scales in F16" in message
    assert "woq_format: compressed-tensors" in message
    quantize(**options)


def test_the_same_command_makes_nothing_anew(quantize, tmp_path):
    quantize(woq_bits=2, woq_algo="GPTQ")
    files = {path: path.stat() for path in (tmp_path / "quantized").iterdir()}

    def is_untouched():
        return {path: path.stat().st_mtime_ns for path in files} == {path: files[path].st_mtime_ns for path in files}

    assert "is that model already" in quantize(woq_bits=2, woq_algo="GPTQ").stderr and is_untouched()
    quantize(expect=76, woq_bits=2, woq_algo="GPTQ", max_perplexity_ratio=1e-9)
    assert is_untouched()
    weights = tmp_path / "quantized/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    quantize(expect=78, woq_bits=2, woq_algo="GPTQ")
    quantize(woq_bits=2, woq_algo="GPTQ", overwrite_output_dir=True)
    assert weights.read_bytes() == whole


def test_a_model_that_was_not_finished_is_made_anew(quantize, tmp_path):
    quantize(woq_bits=4)
    folder = tmp_path / "quantized"
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "all_results.json"}
    (folder / ".unfinished").touch()  # as if it had been killed while the weights were written
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    quantize(woq_bits=4)
    assert not (folder / ".unfinished").exists()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "probe.safetensors"):
        assert (folder / name).read_bytes() == whole[name]


def test_refuses_to_write_into_what_it_reads_or_another_result(quantize, tiny_models, tmp_path):
    model = shutil.copytree(tiny_models("llama_blocks"), tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(model)
    for folder in (model, tmp_path / "link"):
        done = quantize(expect=78, model_name_or_path=model, output_dir=folder, overwrite_output_dir=True)
        assert "is read by this command" in done.stderr
    assert (model / "model.safetensors").read_bytes() == before
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "holds a training run" in quantize(expect=78, output_dir=adapter, overwrite_output_dir=True).stderr


def test_what_is_beside_the_weights_makes_another_model(quantize, tiny_models, tmp_path):
    model = shutil.copytree(tiny_models("llama_blocks"), tmp_path / "model")
    quantize(model_name_or_path=model, woq_bits=8)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 3e-5}))
    assert "is not empty" in quantize(expect=78, model_name_or_path=model, woq_bits=8).stderr
    quantize(model_name_or_path=model, woq_bits=8, overwrite_output_dir=True)
    assert json.loads((tmp_path / "quantized/config.json").read_text())["rms_norm_eps"] == 3e-5


def test_refuses_what_is_quantized_or_there_already(quantize, tmp_path):
    quantize(woq_bits=4)
    assert "is not empty" in quantize(expect=78, woq_bits=3).stderr
    quantize(woq_bits=3, overwrite_output_dir=True)
    done = quantize(expect=78, model_name_or_path=tmp_path / "quantized", output_dir=tmp_path / "twice")
    assert "is quantized already" in done.stderr


def test_reports_and_refuses_a_perplexity_that_explodes(fettle, tmp_path):
    done = fettle("quantize", expect=76, model_name_or_path=conftest.STORIES260K, woq_bits=2,
                  validation_file=conftest.REPOSITORY / "examples/data/tinystories_valid_350.jsonl", max_eval_samples=8,
                  output_dir=tmp_path / "quantized")
    assert "max_perplexity_ratio" in done.stderr
    results = json.loads((tmp_path / "quantized/all_results.json").read_text())
    assert results["perplexity_ratio"] == pytest.approx(results["eval_perplexity"] / results["eval_perplexity_before"])
    assert results["perplexity_ratio"] > 1.5
    card = (tmp_path / "quantized/README.md").read_text()
    assert str(results["eval_perplexity"]) in card


@pytest.fixture
def start(program_cache):
    """Starts the program, and does not wait for it."""
    def start(*arguments, **options):
        program = conftest.Program(conftest.find_program("fettle"), program_cache)
        command = [str(program.path), *arguments, *(conftest.option(key, value) for key, value in options.items())]
        return subprocess.Popen(command, env=program.environment, stderr=subprocess.PIPE)

    return start


SLOW = {"woq_algo": "AWQ", "woq_bits": 4, "woq_group_size": 32, **CALIBRATION}


def stop_after_first_layer(quantize, start, folder):
    process = start("quantize", **quantize.options, **{**SLOW, "output_dir": folder})
    first = folder / ".layers/layer-00000.safetensors"
    deadline = time.monotonic() + 120
    while not first.with_name(first.name + ".b3").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not (folder / "config.json").exists()
    return first


def flip(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])


@pytest.mark.parametrize("damage", [None, flip, lambda file: file.write_bytes(b"")], ids=["whole", "flipped", "empty"])
def test_a_stopped_quantization_goes_on(quantize, start, damage, tmp_path):
    """Stopped after its first layer, and started again: the same bytes as without a stop, by less work."""
    quantize(output_dir=tmp_path / "whole", **SLOW)
    first = stop_after_first_layer(quantize, start, tmp_path / "stopped")
    if damage:
        damage(first)
    done = quantize(output_dir=tmp_path / "stopped", **SLOW)
    assert ("layer 1 of 3 is there already" in done.stderr) == (damage is None)
    assert ("is damaged: the layer is quantized again" in done.stderr) == (damage is not None)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "stopped/.layers").exists()


def test_layers_of_another_quantization_are_not_taken(quantize, tmp_path):
    quantize(output_dir=tmp_path / "three", woq_bits=3)
    layers = tmp_path / "four/.layers"
    layers.mkdir(parents=True)
    weights = safetensors.torch.load_file(tmp_path / "three/model.safetensors")
    layer = {name: tensor for name, tensor in weights.items() if name.startswith("model.layers.0.")}
    safetensors.torch.save_file(layer, layers / "layer-00000.safetensors", {"identity": "another"})
    quantize(output_dir=tmp_path / "four", woq_bits=4)
    quantize(output_dir=tmp_path / "plain", woq_bits=4)
    assert (tmp_path / "four/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_an_adapter_trains_on_a_quantized_base(quantize, fettle, records, tmp_path):
    quantize(woq_bits=4, woq_group_size=32)
    train = {"model_name_or_path": tmp_path / "quantized", "train_file": records, "output_dir": tmp_path / "adapter",
             "max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, **EVAL}
    fettle("train", **train)
    losses = [line["loss"] for line in conftest.read_jsonl(tmp_path / "adapter/metrics.jsonl") if "loss" in line]
    assert losses[-1] < losses[0]
    done = fettle("train", expect=78, **{**train, "use_peft": False, "output_dir": tmp_path / "full"})
    assert "is quantized" in done.stderr
    done = fettle("train", expect=78, **{**train, "load_in_4bit": True, "output_dir": tmp_path / "twice"})
    assert "has 4 bits already" in done.stderr


def test_a_damaged_quantized_model_is_refused(quantize, fettle, records, tmp_path):
    quantize(woq_bits=4)
    file = tmp_path / "quantized/model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = "model.layers.0.mlp.up_proj.weight_packed"

    def evaluate(changed):
        safetensors.torch.save_file(changed, file, {"format": "pt"})
        return fettle("eval", expect=65, model_name_or_path=tmp_path / "quantized", validation_file=records, **EVAL)

    assert name in evaluate({key: value for key, value in weights.items() if key != name}).stderr
    assert name in evaluate({**weights, name: weights[name][:, :-1].contiguous()}).stderr
    assert name in evaluate({**weights, name: weights[name].to(torch.int64)}).stderr
    scale = "model.layers.0.mlp.up_proj.weight_scale"
    assert scale in evaluate({**weights, scale: torch.full_like(weights[scale], float("nan"))}).stderr
