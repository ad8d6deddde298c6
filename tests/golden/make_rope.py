# SPDX-License-Identifier: Apache-2.0
"""Writes rope.json: inverse frequencies and attention scaling of transformers for every kind of rope scaling.

    python tests/golden/make_rope.py
"""

import json
import pathlib

import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# name: rope_parameters, document length (0: the initial frequencies)
CASES = {
    "default": ({"rope_type": "default", "rope_theta": 500000.0}, 0),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 0),
    "dynamic_short": ({"rope_type": "dynamic", "factor": 2.0}, 100),
    "dynamic_equal": ({"rope_type": "dynamic", "factor": 2.0}, 2048),
    "dynamic_long": ({"rope_type": "dynamic", "factor": 2.0}, 5000),
    "llama3": (LLAMA3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192}, 0),
    "llama3_without_length": (LLAMA3, 0),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 0),
    "yarn_betas": (
        {"rope_type": "yarn", "factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        0,
    ),
    "yarn_attention_factor": ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}, 0),
    "yarn_mscale": ({"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}, 0),
}


def golden(parameters, length):
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0} | parameters,
    )
    embedding = LlamaRotaryEmbedding(config)
    if length:
        embedding(torch.zeros(1), torch.arange(length)[None])
    return {
        "rope_parameters": {"rope_theta": 10000.0} | parameters,
        "length": length,
        "inverse_frequencies": [float(value) for value in embedding.inv_freq],
        "attention_scaling": float(embedding.attention_scaling),
    }


def main():
    results = {name: golden(dict(parameters), length) for name, (parameters, length) in CASES.items()}
    file = pathlib.Path(__file__).with_name("rope.json")
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
