# SPDX-License-Identifier: Apache-2.0
"""`fettle export`: the gguf package reads its files, Fettle computes the same with them, and what is refused."""

import ctypes
import json
import shutil

import gguf
import make_adapters
import make_models
import numpy
import pytest
import safetensors.torch
import torch
import transformers
from conftest import STORIES260K
from gguf_support import BLOCKS, FAMILIES, TYPES, export, fields, model_of, permuted, variant  # noqa: F401

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}


def expected_tensors(folder):
    """GGUF name → float32 values in llama.cpp's order, by the gguf package's table of names."""
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    names = gguf.get_tensor_name_map(ARCHITECTURES.get(model_type, gguf.MODEL_ARCH.LLAMA), config["num_hidden_layers"])
    tensors = {}
    for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        values = tensor.float().numpy()
        if model_type in ("llama", "mistral") and (".q_proj." in name or ".k_proj." in name):
            values = permuted(values, config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"])
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# The file


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_gguf_package_reads_the_tensors(export, tiny_models, family, kind):
    folder = tiny_models(family)
    expected = expected_tensors(folder)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(export(folder, kind)).tensors}
    factors = tensors.pop("rope_freqs.weight", None)
    assert (factors is not None) == ("llama3" in family)
    assert set(tensors) == set(expected)
    for name, values in expected.items():
        stored = TYPES[kind][0] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        assert tensors[name].tensor_type == stored, name
        assert tensors[name].data.tobytes() == gguf.quants.quantize(values, stored).tobytes(), name
        assert tuple(tensors[name].shape) == values.shape[::-1], name


def ggml_quantize(values, kind):
    """By the function that made ggml's own files, from the library that llama.cpp runs in."""
    import xllamacpp.xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    function = library[f"quantize_row_{kind}_ref"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    values = numpy.ascontiguousarray(values)
    out = numpy.empty(gguf.quant_shape_to_byte_shape(values.shape, TYPES[kind][0]), dtype=numpy.uint8)
    function(values.ctypes.data, out.ctypes.data, values.size)
    return out


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("family", ["llama_blocks", "stories260K"])
def test_blocks_are_those_of_ggml(export, tiny_models, family, kind):
    folder = STORIES260K if family == "stories260K" else tiny_models(family)
    file = export(folder, kind)
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.file_type"].contents() == TYPES[kind][1]
    ragged = {tensor.name for tensor in reader.tensors if tensor.shape[0] % 32 and len(tensor.shape) > 1}
    assert bool(ragged) == (family == "stories260K") == (f"f16 instead of {kind}" in export.log)
    output = "token_embd.weight" if family == "stories260K" else "output.weight"  # tied there
    expected = expected_tensors(folder)
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        values = expected[tensor.name]
        if values.ndim < 2:
            assert tensor.tensor_type.name == "F32"
        elif tensor.name in ragged:
            assert tensor.tensor_type.name == "F16"
        else:
            stored = "q8_0" if tensor.name == output else kind
            assert tensor.tensor_type == TYPES[stored][0]
            assert tensor.data.tobytes() == ggml_quantize(values, stored).tobytes(), tensor.name
            assert tensor.data.tobytes() == gguf.quants.quantize(values, TYPES[stored][0]).tobytes(), tensor.name


def test_metadata_of_a_llama(export, tmp_path):
    found = fields(export(STORIES260K, "f16"))
    vocabulary = [found.pop(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "scores")]
    assert [len(part) for part in vocabulary] == [512, 512, 512]
    assert {name: value for name, value in found.items() if not name.startswith("GGUF.")} == {
        "general.architecture": "llama", "general.type": "model", "general.name": "stories260K",
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16, "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.vocab_size": 512, "llama.context_length": 512, "llama.embedding_length": 64, "llama.block_count": 5,
        "llama.feed_forward_length": 172, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4,
        "llama.attention.key_length": 8, "llama.attention.value_length": 8, "llama.rope.dimension_count": 8,
        "llama.attention.layer_norm_rms_epsilon": numpy.float32(1e-5), "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.eot_token_id": 1,  # generation_config.json: a story ends with <s>, too
    }  # fmt: skip


def test_metadata_of_rope_scaling(export, tiny_models):
    yarn = fields(export(tiny_models("llama_yarn")))
    assert {name: value for name, value in yarn.items() if ".rope.scaling." in name} == {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 32, "llama.rope.scaling.yarn_beta_fast": 32.0,
        "llama.rope.scaling.yarn_beta_slow": 1.0,
    }  # fmt: skip
    linear = fields(export(tiny_models("llama_linear")))
    assert linear["llama.rope.scaling.type"] == "linear" and linear["llama.rope.scaling.factor"] == 4.0
    assert fields(export(tiny_models("mistral")))["llama.attention.sliding_window"] == 16
    assert "longer texts differ" in export.log
    export(tiny_models("llama_dynamic"))
    assert "beyond 24 tokens llama.cpp computes otherwise" in export.log


@pytest.mark.parametrize("name", ["qwen3", "llama3-style-4k", "smollm2", "gpt2", "mistral-v3"])
def test_chat_templates_and_special_tokens(export, model_of, name):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_of(name))
    found = fields(export(model_of(name), "f16"))
    assert found.get("tokenizer.chat_template") == tokenizer.chat_template
    assert found.get("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert found.get("tokenizer.ggml.padding_token_id") == tokenizer.pad_token_id
    assert found["tokenizer.ggml.add_bos_token"] == (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
    assert found["tokenizer.ggml.add_eos_token"] is False


# ---------------------------------------------------------------------------------------------------------------------
# Fettle reads it back


@pytest.fixture
def logits(fettle, tmp_path):
    def evaluate(model, bf16, **options):
        return our_logits(fettle, tmp_path, model, bf16, **options)

    return evaluate


def our_logits(fettle, tmp_path, model, bf16, **options):
    records = tmp_path / "records.jsonl"
    ids = numpy.random.default_rng(1).integers(3, 500, (6, 40)).tolist()
    records.write_text("".join(json.dumps({"input_ids": row, "labels": row}) + "\n" for row in ids))
    fettle("eval", model_name_or_path=model, validation_file=records, dataset_format="tokenized", bf16=bf16,
           logits_file=tmp_path / "logits.safetensors", **options)  # fmt: skip
    return safetensors.torch.load_file(tmp_path / "logits.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fettle_reads_back_the_same_model(logits, export, tiny_models, family, dtype):
    folder = tiny_models(family, dtype=dtype)
    kind = "f32" if dtype == "float32" else "bf16"
    before = logits(folder, dtype == "bfloat16")
    after = logits(export(folder, kind), dtype == "bfloat16", tokenizer_name=folder)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        assert torch.equal(after[name], expected), name


@pytest.mark.parametrize("kind", BLOCKS)
def test_fettle_reads_back_what_it_quantized(logits, export, tmp_path, kind):
    """Against the same model whose weights the gguf package dequantized."""
    file = export(STORIES260K, kind)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 5)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    plain = shutil.copytree(STORIES260K, tmp_path / "plain")
    weights = safetensors.torch.load_file(plain / "model.safetensors")
    for name, weight in weights.items():
        tensor = stored[names.get_name(name, try_suffixes=(".weight",))]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        heads = {"q_proj": 8, "k_proj": 4}.get(name.split(".")[-2])
        if heads:  # the inverse of `permuted`
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        weights[name] = torch.from_numpy(values.copy())
    safetensors.torch.save_file(weights, plain / "model.safetensors", metadata={"format": "pt"})
    expected = logits(plain, False)
    for name, found in logits(file, False, tokenizer_name=STORIES260K).items():
        assert torch.equal(found, expected[name]), name


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def test_adapter_file(export, tiny_models, tmp_path):
    folder = tiny_models("llama2")
    adapter = make_adapters.make("rslora", folder, tmp_path / "adapter")
    file = export(folder, "f16", adapter_name_or_path=adapter)
    found = fields(file)
    assert found["general.type"] == "adapter" and found["adapter.type"] == "lora"
    assert found["general.architecture"] == "llama"
    assert found["adapter.lora.alpha"] == pytest.approx(5 * 6**0.5)  # alpha/√r = (alpha·√r)/r
    weights = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert len(stored) == len(weights) == 2 * 7 * 3
    for name, weight in weights.items():
        base, _, part = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        values = weight.float().numpy()
        if part == "B" and base.endswith(("q_proj", "k_proj")):
            values = permuted(values, 4)
        tensor = stored[f"{names.get_name(base)}.weight.lora_{part.lower()}"]
        assert tensor.data.tobytes() == values.astype(numpy.float16).tobytes(), name


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def refused(fettle, code, words, **options):
    done = fettle("export", expect=code, **options)
    assert words in done.stderr, done.stderr
    assert done.stderr.count("error: ") == 1 and done.stdout == ""


def test_what_is_not_exported(fettle, tiny_models, variant, tmp_path):
    llama, qwen3 = tiny_models("llama2"), tiny_models("qwen3")
    output = tmp_path / "m.gguf"
    for model, words in (
        (variant(llama, quantization_config={"quant_method": "gptq"}), "is quantized already (quantization_config)"),
        (tiny_models("qwen2_window"), "sliding windows in some layers only"),
        (tiny_models("qwen3_untied"), "'attention_bias' is not known to llama.cpp for qwen3"),
        (variant(qwen3, rope_parameters=make_models.LLAMA3["rope_parameters"]), "rope_type 'llama3' is known"),
        (variant(tiny_models("llama_yarn"), rope_scaling={"rope_type": "yarn", "factor": 4.0, "truncate": False,
                 "original_max_position_embeddings": 32}), "'truncate' false"),
    ):  # fmt: skip
        refused(fettle, 78, words, model_name_or_path=model, output=output)
    assert not output.exists()


def test_an_output_that_is_there_stays(fettle, tmp_path):
    output = tmp_path / "m.gguf"
    output.write_text("mine")
    refused(fettle, 78, f"{output} is there already", model_name_or_path=STORIES260K, output=output)
    assert output.read_text() == "mine"
    fettle("export", model_name_or_path=STORIES260K, output=output, overwrite_output=True)
    assert fields(output)["general.name"] == "stories260K"
    onto = {"output": output, "overwrite_output": True}
    refused(fettle, 64, f"{output} is read by this command", model_name_or_path=output, **onto)
    refused(fettle, 64, "does not end in .gguf", model_name_or_path=STORIES260K, output=tmp_path / "m.bin")
    refused(fettle, 66, "No such file or directory", model_name_or_path=STORIES260K, output=tmp_path / "no" / "such" / "m.gguf")


@pytest.mark.parametrize(("value", "kind", "words"), [
    (float("nan"), "f32", "holds nan"), (float("inf"), "q8_0", "holds inf"), (70000.0, "f16", "too large for f16"),
    (70000.0, "q4_1", "too large for q4_1; write f32 or bf16")])  # fmt: skip
def test_weights_that_no_file_holds(fettle, tmp_path, value, kind, words):
    folder = shutil.copytree(STORIES260K, tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][7, 5] = value
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "m.gguf"
    refused(fettle, 65, words, model_name_or_path=folder, output=output, gguf_type=kind)
    assert not output.exists() and not list(tmp_path.glob(".fettle*"))


def test_adapters_that_are_not_exported(fettle, tiny_models, tmp_path):
    folder = tiny_models("llama2")
    options = {"model_name_or_path": folder, "output": tmp_path / "m.gguf"}
    saved = make_adapters.make("saved", folder, tmp_path / "saved")
    refused(fettle, 78, "merge the adapter into the model with fettle merge", adapter_name_or_path=saved, **options)
    adapter = make_adapters.make("attention", folder, tmp_path / "attention")
    refused(fettle, 78, "an adapter is not written as q4_0", adapter_name_or_path=adapter, gguf_type="q4_0", **options)
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 0'))
    refused(fettle, 78, "lora_alpha is 0", adapter_name_or_path=adapter, **options)
