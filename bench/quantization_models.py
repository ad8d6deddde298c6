# SPDX-License-Identifier: Apache-2.0
"""The models and records that quantization.py measures with: (model folder, calibration rows, rows that are held out).

    python bench/quantization_models.py NAME FOLDER   makes one, in a process of its own
"""

import json
import pathlib
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
ROW_TOKENS = 512
CALIBRATION, HELD_OUT = 16_000, 32_000  # tokens
STORIES = REPOSITORY / "examples/stories260K"
SMOLLM2 = REPOSITORY / ".downloads/SmolLM2-135M-Instruct.Q4_1.gguf"
GROUP = 32  # the widest that the tiny models and gptqmodel have in common


def write_rows(pairs, tokenizer, folder):
    """(given, scored) texts, a row each, up to ROW_TOKENS of it; the first ones to calibrate with, the next are held out."""
    rows = ((tokenizer(given)["input_ids"] if given else [], tokenizer(given + scored)["input_ids"]) for given, scored in pairs)
    for name, wanted in (("rows", CALIBRATION), ("held-out", HELD_OUT)):
        tokens, lines = 0, []
        while tokens < wanted:
            given, row = next(rows)
            row = row[:ROW_TOKENS]
            if len(row) <= len(given):
                continue
            tokens += len(row)
            labels = [-100] * len(given) + row[len(given) :]
            lines.append(json.dumps({"input_ids": row, "labels": labels}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


def make_smollm2(folder):
    """SmolLM2-135M-Instruct and medical questions as it is tuned on them."""
    import torch
    import transformers

    if not SMOLLM2.exists():
        sys.exit(f"{SMOLLM2} is missing: tools/setup.sh model")
    packed = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2.parent, gguf_file=SMOLLM2.name, dtype=torch.float32)
    settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings), dtype=torch.float32)
    model.load_state_dict(packed.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(SMOLLM2.parent, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    records = json.loads((REPOSITORY / "examples/data/medical_meadow_wikidoc_patient_2000.json").read_text())
    pairs = []
    for record in records:
        question, answer = {"role": "user", "content": record["input"]}, {"role": "assistant", "content": record["output"]}
        given = tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        pairs.append((given, tokenizer.apply_chat_template([question, answer], tokenize=False).removeprefix(given)))
    write_rows(pairs, tokenizer, folder)


def copy_tokenizer(source, folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder)


def widened(state, config):
    """stories260K, its 172 intermediate columns made 192 with zeros and each of its 4 key heads twice: the same
    function, with shapes that gptqmodel takes."""
    import torch

    width = 192
    for name in list(state):
        if "gate_proj" in name or "up_proj" in name:
            state[name] = torch.cat([state[name], state[name].new_zeros(width - config["intermediate_size"], 64)])
        elif "down_proj" in name:
            state[name] = torch.cat([state[name], state[name].new_zeros(64, width - config["intermediate_size"])], 1)
        elif "k_proj" in name or "v_proj" in name:
            state[name] = state[name].view(4, 8, 64).repeat_interleave(2, 0).reshape(64, 64)
    return {**config, "intermediate_size": width, "num_key_value_heads": 8}


def make_stories(folder, kind="llama"):
    """stories260K and TinyStories."""
    import safetensors.torch
    import transformers

    state = safetensors.torch.load_file(STORIES / "model.safetensors")
    config = widened(state, json.loads((STORIES / "config.json").read_text()))
    if kind == "qwen2":
        config = {key: value for key, value in config.items() if not key.endswith("_bias")}
        config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        for name in list(state):
            if any(f"{part}_proj.weight" in name for part in "qkv"):
                state[name.replace("weight", "bias")] = state[name].new_zeros(len(state[name]))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()},
                                folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_tokenizer(STORIES, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (REPOSITORY / "examples/data/tinystories_valid_350.jsonl").read_text().splitlines()
    write_rows([("", json.loads(line)["text"]) for line in lines], tokenizer, folder)


def make_qwen2(folder):
    """The same as a Qwen2, trained on, so that it has biases."""
    untrained, trained = folder / "untrained", folder / "trained"
    make_stories(untrained, "qwen2")
    options = {"model_name_or_path": untrained, "train_file": untrained / "rows.jsonl", "output_dir": trained}
    options |= {"dataset_format": "tokenized", "use_peft": "false", "max_steps": 60, "learning_rate": 1e-3}
    options |= {"do_eval": "false", "save_strategy": "no", "log_level": "warning"}
    command = [REPOSITORY / "build/release/fettle", "train", *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(list(map(str, command)), check=True)
    for file in (*trained.glob("*.json"), *trained.glob("*.safetensors"), *untrained.glob("*.jsonl")):
        shutil.copy(file, folder)


MAKERS = {"stories260K": make_stories, "stories260K as a Qwen2": make_qwen2, "SmolLM2-135M": make_smollm2}


def prepare(name, folder):
    """Makes it where it is not there."""
    target = folder / name.replace(" ", "-")
    if not (target / "held-out.jsonl").exists():
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, name, target], check=True)
    return target, target / "rows.jsonl", target / "held-out.jsonl"


if __name__ == "__main__":
    MAKERS[sys.argv[1]](pathlib.Path(sys.argv[2]))
