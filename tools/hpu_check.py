#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How Fettle does on this machine's Gaudi cards: the bridge's operators, and a few steps of LoRA on a model of Llama-2-7B's
shape with random weights, in the setting that figures are published for (docs/gaudi.md). Needs only Python itself.

  hpu_check.py BUILD [--folder DIR] [--layers N --hidden C --steps N] [--cards N]

BUILD: folder of fettle and tests/tools/fettle_hpu_operators. DIR (default: a temporary one) gets 13.5 GB of weights.
"""

import argparse
import array
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile

KNOWN = ("rms_norm", "rms_norm_backward", "rotary_pos_embedding", "rotary_pos_embedding_backward", "sdpa_recomp_bwd",
         "sdpa_recomp_fwd")
PEAKS = {"GAUDI2": 432e12, "GAUDI3": 1835e12}  # bfloat16, FLOP/s
VOCABULARY, HEAD, LENGTH, ROWS = 32000, 128, 512, 8
TOKENS = 512  # of the tokenizer that lies in the repository; the model's other rows are only computed with
WARM_UP = 3


def bfloat16(values):
    return array.array("H", (bits >> 16 for bits in memoryview(array.array("f", values)).cast("B").cast("I")))


def write_model(folder, layers, hidden):
    """A model folder with the tokenizer of examples/stories260K. Its weights repeat: no step's time depends on them."""
    heads, inner = max(1, hidden // HEAD), hidden * 43 // 16
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (hidden, inner), f"{prefix}input_layernorm.weight": (hidden,),
                   f"{prefix}post_attention_layernorm.weight": (hidden,)}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    rng = random.Random(1)
    noise = bfloat16([rng.gauss(0, 0.02) for _ in range(1 << 18)]).tobytes()
    ones = bfloat16([1.0] * hidden).tobytes()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "model.safetensors", "wb") as file:
        text = json.dumps(header).encode()
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            block = ones if len(entry["shape"]) == 1 else noise
            for begin in range(0, size, len(block)):
                file.write(block[: size - begin])
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}))
    tokenizer = pathlib.Path(__file__).resolve().parents[1] / "examples/stories260K"
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())


def write_records(file, count):
    """Full rows, in which every token is a target."""
    rng = random.Random(2)
    with open(file, "w") as lines:
        for _ in range(count):
            ids = [rng.randrange(3, TOKENS) for _ in range(LENGTH)]
            print(json.dumps({"input_ids": ids, "labels": ids}), file=lines)


def show_operators(build):
    """Whether the bridge has what src/ops/hpu looks for. Its own comparison of arguments is in the program's log."""
    listed = subprocess.run([build / "tests/tools/fettle_hpu_operators"], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(listed)
    names = set(re.findall(r"^hpu::(\w+)", listed, re.MULTILINE))
    print(f"{len(names & set(KNOWN))} of {len(KNOWN)} operators that Fettle looks for: {', '.join(sorted(names & set(KNOWN)))}")


def card_type():
    for pattern in ("sys/class/accel/*/device/device_type", "sys/class/accel/*/device_type", "sys/class/habanalabs/*/device_type"):
        for file in pathlib.Path("/").glob(pattern):
            return file.read_text().strip()
    return ""


def train(options, folder):
    """The lines of metrics of the steps."""
    output = folder / "output"
    line = [options.build / "fettle", "train", f"--model_name_or_path={folder / 'model'}", f"--train_file={folder / 'train.jsonl'}",
            "--dataset_format=tokenized", f"--output_dir={output}", "--overwrite_output_dir=true", "--device=hpu",
            f"--max_seq_length={LENGTH}", f"--per_device_train_batch_size={ROWS}", f"--max_steps={options.steps}",
            "--logging_steps=5", "--lora_r=8", "--lora_target_modules=q_proj,v_proj", "--save_strategy=no", "--do_eval=false",
            "--verify_saved_model=false", f"--nproc_per_node={options.cards}"]
    # What the bridge would compute on the processor is an error here: it would cut every step in two.
    subprocess.run(line, check=True, env={"PT_HPU_PLACE_ON_CPU": "none", **os.environ})
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


def report(lines, cards):
    last = lines[-1]
    print(f"loss {lines[0]['loss']:.4f} at the first line, {last['loss']:.4f} at the last")
    print(f"{last['tokens_per_second']:.0f} tokens/s, {last['tokens_per_second'] / cards:.0f} a card "
          f"(published for this setting: 9,478 a Gaudi2, 14,063 to 15,247 a Gaudi3)")
    warm = [line for line in lines if line["step"] > WARM_UP]
    print(f"graphs compiled after the warm-up: {warm[-1]['compiled_graphs'] - warm[0]['compiled_graphs']}")
    card = card_type()
    peak = next((peak for name, peak in PEAKS.items() if card.startswith(name)), None)
    rate = last["model_flops_per_second"] / cards
    share = f"{100 * rate / peak:.0f} % of the peak of a {card}" if peak else "which share of the peak is not known: no Gaudi is seen"
    print(f"{rate / 1e12:.1f} TFLOP/s a card of the model, {share}; {100 * last.get('mfu', 0):.0f} % of a large matrix product")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cards", type=int, default=1)
    options = parser.parse_args()
    show_operators(options.build)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = pathlib.Path(name)
        write_model(folder / "model", options.layers, options.hidden)
        write_records(folder / "train.jsonl", ROWS * options.steps * options.cards)
        report(train(options, folder), options.cards)


if __name__ == "__main__":
    sys.exit(main())
