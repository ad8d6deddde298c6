# SPDX-License-Identifier: Apache-2.0
"""Makes PEFT adapters for the tiny models: written by PEFT itself, B not zero, the same weights on every run."""

import pathlib
import zlib

import peft
import torch
import transformers

# name: changes to peft.LoraConfig's defaults
ADAPTERS = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all_linear": {"r": 3, "lora_alpha": 12, "target_modules": "all-linear"},
    "rslora": {"r": 6, "lora_alpha": 5, "use_rslora": True, "target_modules": "all-linear"},
    "regex": {"r": 4, "lora_alpha": 8, "target_modules": r".*layers\.[01]\.(mlp\.(gate|down)_proj|self_attn\.o_proj)"},
    "saved": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "up_proj"], "modules_to_save": ["lm_head"]},
    "saved_both": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
}


def make(name, model_folder, folder, initial=False):
    """Writes adapter `name` for the model in `model_folder` into `folder` and returns it.

    initial: as training begins, B zero and the saved modules equal to the base's; else all of it random.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    torch.manual_seed(zlib.crc32(name.encode()))  # PEFT draws A from the global generator
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name]))
    if not initial:
        with torch.no_grad():
            for parameter_name, weight in model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator)
                if "lora_B" in parameter_name:
                    weight.copy_(0.2 * noise)
                elif "modules_to_save" in parameter_name:
                    weight.add_(0.1 * noise / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    return pathlib.Path(folder)
