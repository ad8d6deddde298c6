# SPDX-License-Identifier: Apache-2.0
"""Writes optimizer.json: parameters after steps of torch.optim.AdamW with clip_grad_norm_ and transformers' decay groups.

Run it with the Python of the reference environment: python tests/golden/make_optimizer.py
"""

import json
import pathlib

import torch

NAMES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias"]
SHAPES = [(3, 4), (4,), (3,)]
BETAS = (0.9, 0.95)
EPSILON = 1e-6
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0
RATES = [1e-2, 5e-3, 0.0, 2e-2, 1e-3, 1e-2]


def main():
    generator = torch.Generator().manual_seed(7)
    initial = [torch.randn(shape, generator=generator) for shape in SHAPES]
    parameters = [torch.nn.Parameter(value.clone()) for value in initial]
    groups = [
        {"params": parameters[:1], "weight_decay": WEIGHT_DECAY},
        {"params": parameters[1:], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATES[0], betas=BETAS, eps=EPSILON, fused=True)
    steps = []
    for index, rate in enumerate(RATES):
        scale = 2.0 if index % 2 == 0 else 0.05  # clipped, not clipped
        gradients = [scale * torch.randn(shape, generator=generator) for shape in SHAPES]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        steps.append(
            {
                "learning_rate": rate,
                "gradients": [g.flatten().tolist() for g in gradients],
                "norm": norm.item(),
                "parameters": [p.detach().flatten().tolist() for p in parameters],
            }
        )
    golden = {
        "torch": torch.__version__,
        "names": NAMES,
        "shapes": SHAPES,
        "initial": [value.flatten().tolist() for value in initial],
        "betas": BETAS,
        "epsilon": EPSILON,
        "weight_decay": WEIGHT_DECAY,
        "max_norm": MAX_NORM,
        "steps": steps,
    }
    pathlib.Path(__file__).with_name("optimizer.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
