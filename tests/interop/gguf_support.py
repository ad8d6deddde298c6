# SPDX-License-Identifier: Apache-2.0
"""What the tests of exported GGUF files share."""

import json
import pathlib
import shutil

import gguf
import make_models
import pytest
import torch
import transformers

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
    "q5_0": (gguf.GGMLQuantizationType.Q5_0, gguf.LlamaFileType.MOSTLY_Q5_0),
    "q5_1": (gguf.GGMLQuantizationType.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
}
BLOCKS = [name for name, (kind, _) in TYPES.items() if gguf.GGML_QUANT_SIZES[kind][0] > 1]
FAMILIES = ["llama2", "llama3", "llama3_untied", "llama_bias", "llama_linear", "llama_yarn", "mistral", "qwen2", "qwen3"]


@pytest.fixture
def export(fettle, tmp_path):
    """`export(folder, "q8_0")` → the file; the keywords are more options."""

    def run(model, kind="f32", **options):
        output = tmp_path / f"{pathlib.Path(model).name}-{kind}{'-adapter' if options else ''}.gguf"
        done = fettle("export", model_name_or_path=model, gguf_type=kind, output=output, **options)
        assert done.stdout == f"output: {output}\n"
        run.log = done.stderr
        return output

    return run


@pytest.fixture
def variant(tmp_path):
    """A copy of a model's folder whose config.json has other values."""

    def make(folder, **changes):
        copy = shutil.copytree(folder, tmp_path / f"variant-{len(list(tmp_path.iterdir()))}")
        path = copy / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return copy

    return make


@pytest.fixture(scope="session")
def model_of(tmp_path_factory, tokenizer_folders):
    """Name of a tokenizer → a tiny random model with it, three embeddings more than tokens."""
    made = {}

    def make(name):
        if name in made:
            return made[name]
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders[name])
        config = transformers.AutoConfig.for_model("qwen3" if name == "qwen3" else "llama", **{
            **make_models.BASE, "hidden_size": 32, "num_hidden_layers": 1, "head_dim": 8, "tie_word_embeddings": True,
            "vocab_size": max(tokenizer.get_vocab().values()) + 4, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None})  # fmt: skip
        folder = tmp_path_factory.mktemp("tokenizer") / name
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for file in tokenizer_folders[name].iterdir():
            if file.suffix in (".json", ".model", ".jinja") and file.name != "config.json" and "model.safe" not in file.name:
                shutil.copy(file, folder / file.name)
        made[name] = folder
        return folder

    return make


def fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def permuted(weights, heads):
    """LlamaModel.permute of llama.cpp's converter."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
