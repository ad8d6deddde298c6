# SPDX-License-Identifier: Apache-2.0
"""One run of the reference in a process of its own, in bfloat16.

    python bench/reference.py lora MODEL TOKENS.jsonl STEPS ROWS   transformers + peft, a plain loop, no padding
    python bench/reference.py full MODEL TOKENS.jsonl STEPS ROWS   the same without peft: all weights
    python bench/reference.py trl  MODEL RECORDS.json STEPS        TRL's SFTTrainer as users run it: batch 8, padded
    python bench/reference.py gemm SHAPE                           the machine's bfloat16 matrix-product rate

LoRA has r 8 on all linear layers.

Prints one JSON line. OMP_NUM_THREADS decides the threads.
"""

import json
import os
import sys
import time

import shapes
import torch
import transformers


def load(model_folder, dtype=torch.bfloat16):
    """bfloat16 weights and sdpa attention: of the settings tried the fastest on a CPU."""
    settings = {"dtype": dtype, "attn_implementation": "sdpa"}
    return transformers.AutoModelForCausalLM.from_pretrained(model_folder, **settings)


def adapter():
    import peft

    return peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def lora(model_folder, tokens_file, steps, rows):
    """Rows of equal length. The adapter is bfloat16 too, which is faster than PEFT's float32."""
    import peft

    model = peft.get_peft_model(load(model_folder), adapter(), autocast_adapter_dtype=False)
    return train(model, tokens_file, int(steps), int(rows))


def full(model_folder, tokens_file, steps, rows):
    """float32 weights computed with in bfloat16: what the Trainer's bf16 means, and Fettle's too."""
    model = load(model_folder, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        return train(model, tokens_file, int(steps), int(rows))


def train(model, tokens_file, steps, count):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, fused=True)
    with open(tokens_file) as lines:
        rows = [json.loads(line)["input_ids"] for line in lines]
    measured = []
    for step in range(steps):
        start = time.perf_counter()
        ids = torch.tensor(rows[step * count : (step + 1) * count])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds = time.perf_counter() - start
        measured.append({"seconds": seconds, "tokens": ids.numel(), "target_tokens": ids.numel() - count})
    return {"steps": measured}


class Clock(transformers.TrainerCallback):
    """Seconds and tokens of each step. It wraps the collator, which runs in this process just before its step."""

    def __init__(self, collate):
        self.collate, self.batches, self.ends = collate, [], []

    def __call__(self, examples):
        batch = self.collate(examples)
        targets = (batch["labels"][:, 1:] != -100).sum().item()
        self.batches.append({"tokens": batch["attention_mask"].sum().item(), "target_tokens": targets})
        return batch

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    def steps(self):
        """From the second step on: the first has no step before it to measure from."""
        times = [end - start for start, end in zip(self.ends, self.ends[1:])]
        return [{"seconds": seconds, **batch} for seconds, batch in zip(times, self.batches[1:])]


def trl(model_folder, records_file, steps):
    """Conversational prompt and completion, answers as targets. Without activation checkpointing, TRL's slow default."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    def chat(record):
        question = "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": record["output"]}],
        }

    with open(records_file) as file:
        data = datasets.Dataset.from_list([chat(record) for record in json.load(file)])
    arguments = SFTConfig(
        output_dir=os.path.join(os.path.dirname(records_file), "trl"),
        per_device_train_batch_size=8,
        max_steps=int(steps),
        max_length=1024,
        learning_rate=2e-4,
        activation_checkpointing=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    trainer = SFTTrainer(
        load(model_folder), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=adapter()
    )
    clock = Clock(trainer.data_collator)
    trainer.data_collator = clock
    trainer.add_callback(clock)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    return {"steps": clock.steps()}


def gemm(name):
    """FLOP/s of the matrix products of a shape's forward, each in the share it has in the model, the best of five."""
    shape = shapes.SHAPES[name]
    flops = seconds = 0.0
    for (inputs, outputs), count in shape.products.items():
        x = torch.randn(512 * shape.rows, inputs).bfloat16()
        weight = torch.randn(outputs, inputs).bfloat16()
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - start)
        flops += count * 2 * x.numel() * outputs
        seconds += count * best
    return {"flops_per_second": flops / seconds}


if __name__ == "__main__":
    print(json.dumps({"lora": lora, "full": full, "trl": trl, "gemm": gemm}[sys.argv[1]](*sys.argv[2:])))
