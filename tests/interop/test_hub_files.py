# SPDX-License-Identifier: Apache-2.0
"""Files of the hub room against the reference libraries: safetensors, huggingface_hub's shards, PEFT, GGUF."""

import filecmp
import json
import pathlib
import shutil
import warnings

import conftest
import make_gguf
import peft
import pytest
import safetensors.torch
import torch
import transformers

GOLDENS = conftest.REPOSITORY / "tests/data/gguf"
MODELS = [GOLDENS / f"{name}.gguf" for name in make_gguf.MODELS]
SMOLLM2 = conftest.REPOSITORY / ".downloads/SmolLM2-135M-Instruct.Q4_1.gguf"
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool]  # fmt: skip


@pytest.fixture(scope="session")
def hub_files(program_cache):
    """Our test program that reads and writes files with the hub room."""
    return conftest.Program(conftest.find_program("fettle_hub_files"), program_cache)


@pytest.fixture(scope="session")
def every_dtype():
    """Tensors of every type, of shapes from scalar to empty, with names that JSON has to escape."""
    random = torch.Generator().manual_seed(3)
    shapes = [(), (7,), (2, 3), (0, 5), (1, 2, 3, 4)]
    return {
        f"{dtype}.{i}.\"é\\\n": (torch.randn(shape, generator=random) * 9).to(dtype)
        for dtype in DTYPES
        for i, shape in enumerate(shapes)
    }


def equal(left, right):
    """Same names, types, shapes and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].shape == right[name].shape
        and left[name].numpy(force=True).tobytes() == right[name].numpy(force=True).tobytes()
        if left[name].dtype != torch.bfloat16
        else torch.equal(left[name].view(torch.int16), right[name].view(torch.int16))
        for name in left
    )  # fmt: skip


def test_safetensors_file_is_the_references_byte_for_byte(hub_files, every_dtype, tmp_path):
    safetensors.torch.save_file(every_dtype, tmp_path / "reference.safetensors", metadata={"format": "pt"})
    hub_files("copy", tmp_path / "reference.safetensors", tmp_path / "ours.safetensors")
    assert equal(safetensors.torch.load_file(tmp_path / "ours.safetensors"), every_dtype)
    assert filecmp.cmp(tmp_path / "reference.safetensors", tmp_path / "ours.safetensors", shallow=False)


def test_shards_and_index_are_those_of_transformers(hub_files, tiny_models, tmp_path):
    single = tiny_models("qwen3")
    model = transformers.AutoModelForCausalLM.from_pretrained(single)
    order = dict(model.state_dict())
    for limit in (20_000, 300_000):
        reference, ours = tmp_path / f"reference-{limit}", tmp_path / f"ours-{limit}"
        ours.mkdir()
        # Our program splits in a file's order: by name, as all tensors are of one type.
        model.save_pretrained(reference, state_dict={name: order[name] for name in sorted(order)}, max_shard_size=limit)
        hub_files("split", single / "model.safetensors", ours, str(limit))
        names = sorted(path.name for path in reference.glob("model*"))
        assert sorted(path.name for path in ours.iterdir()) == names and len(names) > 2
        for name in names:
            assert filecmp.cmp(reference / name, ours / name, shallow=False), name


def test_shards_of_transformers_are_read(hub_files, tiny_models, tmp_path):
    single = tiny_models("llama2")
    transformers.AutoModelForCausalLM.from_pretrained(single).save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    hub_files("join", tmp_path, tmp_path / "joined.safetensors")
    joined = safetensors.torch.load_file(tmp_path / "joined.safetensors")
    assert equal(joined, safetensors.torch.load_file(single / "model.safetensors"))


LORA = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "lora_alpha": 32, "target_modules": r".*\.(gate|up)_proj", "use_rslora": True, "lora_dropout": 0.1},
    {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head"], "exclude_modules": [r"layers.0.mlp"]},
]


@pytest.mark.parametrize("options", LORA, ids=["names", "pattern", "saved-modules"])
def test_adapter_config_is_the_one_that_peft_writes(hub_files, tiny_models, tmp_path, options):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_models("llama2"))
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    adapted.save_pretrained(tmp_path / "reference")
    ours = tmp_path / "ours"
    shutil.copytree(tmp_path / "reference", ours)
    (ours / "adapter_config.json").unlink()
    hub_files("adapter", tmp_path / "reference", ours)

    def read(folder):
        return json.loads((folder / "adapter_config.json").read_text())

    assert read(ours) == read(tmp_path / "reference")
    assert list(read(ours)) == list(read(tmp_path / "reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_models("llama2"))
        loaded = peft.PeftModel.from_pretrained(base, ours)
    assert equal(loaded.state_dict(), adapted.state_dict())


@pytest.mark.parametrize("path", [*MODELS, SMOLLM2], ids=lambda path: path.stem)
def test_gguf_weights_are_those_of_transformers(hub_files, tmp_path, path):
    if path == SMOLLM2 and not path.exists():
        pytest.skip("SmolLM2's GGUF file is not there: `make demo` fetches it")
    hub_files("floats", path, tmp_path / "floats.safetensors")
    floats = safetensors.torch.load_file(tmp_path / "floats.safetensors")
    assert equal(floats, make_gguf.dequantized(pathlib.Path(path)))


def test_gguf_goldens_are_what_their_script_makes(tmp_path):
    make_gguf.main(tmp_path)
    names = sorted(path.name for path in GOLDENS.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert filecmp.cmp(GOLDENS / name, tmp_path / name, shallow=False), name
