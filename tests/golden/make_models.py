# SPDX-License-Identifier: Apache-2.0
"""Makes tiny models of each family with random weights, at most 1 MB each, the same bytes on every run.

    python tests/golden/make_models.py FAMILY FOLDER

The weights are no trained model's, but they exercise every term of the mathematics: norm weights are not 1, biases not
0, the attention is not uniform, and the logits have a standard deviation of about 1. `save_pretrained` of transformers
writes the files, so they look as those of a real model do.
"""

import json
import pathlib
import shutil
import sys
import zlib

import torch
import transformers

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TOKENIZERS = {
    "llama3-style-4k": REPOSITORY / "tests/data/tokenizers/llama3-style-4k",
    "stories260K": REPOSITORY / "examples/stories260K",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

BASE = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "bos_token_id": 3968,
    "eos_token_id": [3969, 3977],
    "pad_token_id": 3972,
    "rms_norm_eps": 1e-5,
    # Head dimension 8: wavelengths 6, 167, 4443, …, so each of the three frequency bands is met.
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}

# family: (model_type, changes to BASE, tokenizer). Sequences in the tests have up to 64 tokens.
FAMILIES = {
    "llama2": ("llama", {"num_key_value_heads": 4}, "stories260K"),
    "llama3": ("llama", {**LLAMA3, "tie_word_embeddings": True}, "llama3-style-4k"),
    "llama3_untied": ("llama", {**LLAMA3, "hidden_size": 24, "head_dim": 8, "num_hidden_layers": 2}, "llama3-style-4k"),
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}, "stories260K"),
    # Rows of whole quantization blocks: bitsandbytes expands others wrongly on a CPU.
    "llama_blocks": ("llama", {"hidden_size": 64, "intermediate_size": 128}, "stories260K"),
    "qwen2_blocks": ("qwen2", {"hidden_size": 64, "intermediate_size": 128}, "stories260K"),
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        "stories260K",
    ),
    "llama_dynamic": (  # documents beyond max_position_embeddings change the base
        "llama",
        {
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
        "stories260K",
    ),
    "llama_yarn": (
        "llama",
        {
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        "stories260K",
    ),
    "mistral": ("mistral", {"sliding_window": 16, "head_dim": 16}, "stories260K"),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, "stories260K"),
    "qwen2_window": (  # full attention in the first layer only
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "stories260K",
    ),
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, "stories260K"),
    "qwen3_untied": ("qwen3", {"head_dim": 8, "attention_bias": True}, "stories260K"),
}
# Written with the keys of transformers 4 (rope_theta, rope_scaling), as most models on the hub are.
TRANSFORMERS_4_KEYS = {"llama3", "llama_linear", "llama_yarn"}


def randomize(model, generator):
    """Fills every weight. A matrix gets a standard deviation that keeps the size of what passes through it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif "q_proj" in name or "k_proj" in name:
                weight.copy_(noise * 1.4 / weight.shape[1] ** 0.5)
            else:
                weight.copy_(noise / weight.shape[1] ** 0.5)


def use_transformers_4_keys(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")  # the oldest spelling
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2) + "\n")


def make(family, folder, dtype="float32", sharded=False):
    """Writes the model of `family` and its tokenizer into `folder` and returns it.

    dtype: of the weights in the file, float32 or bfloat16 (those, rounded). sharded: several files and an index.
    """
    model_type, changes, tokenizer = FAMILIES[family]
    config = transformers.AutoConfig.for_model(model_type, **{**BASE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, torch.Generator().manual_seed(zlib.crc32(family.encode())))
    folder = pathlib.Path(folder)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size="100KB" if sharded else "5GB")
    if family in TRANSFORMERS_4_KEYS:
        use_transformers_4_keys(folder)
    for name in TOKENIZER_FILES:
        if (TOKENIZERS[tokenizer] / name).exists():
            shutil.copy(TOKENIZERS[tokenizer] / name, folder / name)
    return folder


if __name__ == "__main__":
    print(make(sys.argv[1], sys.argv[2]))
