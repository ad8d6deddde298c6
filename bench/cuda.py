# SPDX-License-Identifier: Apache-2.0
"""Measures Fettle against transformers + peft on an NVIDIA GPU and writes docs/benchmarks-cuda.json and .md.

    python bench/cuda.py --build FOLDER [--case NAME ...] [--target FOLDER]

It needs torch with CUDA, transformers and peft. Models have known shapes and random weights, rows are full (no padding on
either side). The first steps do not count; two of them are profiled. See report_cuda.py for the tables.
"""

import argparse
import dataclasses
import gc
import gzip
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import report_cuda
import runs
import shapes

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
WARM_UP = 5  # steps, of which Fettle's profile takes the last two


@dataclasses.dataclass(frozen=True)
class Case:
    """A model's shape and how it is trained."""

    shape: shapes.Shape
    length: int  # tokens of a row
    rows: int  # of a micro-batch
    batches: int  # micro-batches of a step
    rank: int = 8  # of the adapter; 0: all weights
    bits: int = 16  # of the frozen weights; below 16 there is no reference (bitsandbytes is not part of this)
    kind: str = "LlamaConfig"
    published: str = ""

    @property
    def step_tokens(self):
        return self.length * self.rows * self.batches

    @property
    def flops_per_token(self):
        return self.shape.flops_per_token(self.length / 2, is_full=not self.rank)


LLAMA_1B = shapes.Shape("Llama 3.2 1B", 2048, 8192, 16, 32, 8, 64, 128256, True)
LLAMA_7B = shapes.Shape("Llama 2 7B", 4096, 11008, 32, 32, 32, 128, 32000, False)
LLAMA_8B = shapes.Shape("Llama 3.1 8B", 4096, 14336, 32, 32, 8, 128, 128256, False)
QWEN_HALF_B = shapes.Shape("Qwen2.5 0.5B", 896, 4864, 24, 14, 2, 64, 151936, True)
QWEN_1B = shapes.Shape("Qwen2.5 1.5B", 1536, 8960, 28, 12, 2, 128, 151936, True)
CASES = {
    "1B": Case(LLAMA_1B, length=1024, rows=8, batches=1),
    "7B": Case(LLAMA_7B, length=1024, rows=4, batches=2,
               published="A100: transformers + FA2 2,954, Unsloth 4,007 tok/s (LLaMA-Factory wiki, same set-up)"),
    "8B": Case(LLAMA_8B, length=2048, rows=2, batches=2),
    "8B, 4 bits": Case(LLAMA_8B, length=2048, rows=2, batches=4, rank=32, bits=4),
    "full 0.5B": Case(QWEN_HALF_B, length=1024, rows=16, batches=4, rank=0, kind="Qwen2Config",
                      published="H100, bf16 Adam: llmq 149k tok/s"),
    "full 1.5B": Case(QWEN_1B, length=1024, rows=8, batches=4, rank=0, kind="Qwen2Config",
                      published="H100, bf16 Adam: llmq 59k tok/s"),
}


def make_model(case, folder, dtype):
    """On the GPU, with random weights; saved into the folder unless it is there."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(shapes.configuration(case.shape, case.kind),
                                                              attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    if not (folder / "config.json").exists():
        shapes.save(model.to(torch.bfloat16), folder)
        model.to(dtype)
    return model


def reference(case, folder, rows, steps):
    """A plain loop: sdpa attention (torch's flash attention), fused AdamW, bfloat16 weights and adapter; with all weights
    float32 ones under autocast, as Fettle's."""
    import peft
    import torch

    model = make_model(case, folder, torch.bfloat16 if case.rank else torch.float32)
    if case.rank:
        settings = peft.LoraConfig(r=case.rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, fused=True)
    ids = torch.tensor([json.loads(line)["input_ids"] for line in open(rows)], device="cuda").split(case.rows)
    seconds, losses = [], []
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps):
        torch.cuda.synchronize()
        start, losses_of_step = time.perf_counter(), []
        for batch in ids[step * case.batches:(step + 1) * case.batches]:
            with torch.autocast("cuda", torch.bfloat16, enabled=not case.rank):
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            (loss / case.batches).backward()
            losses_of_step.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        losses.append(torch.stack(losses_of_step).mean().item())
    return {"tokens_per_second": case.step_tokens / statistics.median(seconds[WARM_UP:]),
            "memory": torch.cuda.max_memory_allocated(), "losses": losses}


def fettle(case, folder, rows, steps, program):
    output = folder.parent / "out"
    shutil.rmtree(output, ignore_errors=True)
    options = {"model_name_or_path": folder, "train_file": rows, "dataset_format": "tokenized", "packing": "false",
               "shuffle": "false", "max_seq_length": case.length, "per_device_train_batch_size": case.rows,
               "gradient_accumulation_steps": case.batches, "max_steps": steps, "output_dir": output, "device": "cuda",
               "learning_rate": 2e-4, "logging_steps": 1, "save_strategy": "no", "do_eval": "false",
               "verify_saved_model": "false", "profile_steps": WARM_UP - 3,
               **({"lora_r": case.rank, "lora_alpha": 16} if case.rank else {"use_peft": "false"}),
               **({"load_in_4bit": "true"} if case.bits == 4 else {})}
    command = [str(program), "train", *(f"--{key}={value}" for key, value in options.items())]
    began = time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    print(done.stderr[-6000:], file=sys.stderr, flush=True)
    if done.returncode != 0:
        return {"error": f"exit {done.returncode}: {done.stderr[-500:]}"}
    lines = runs.step_lines(output)
    results = json.loads((output / "all_results.json").read_text())
    rates = [line["tokens_per_second"] for line in lines][WARM_UP:]
    return {"tokens_per_second": statistics.median(rates), "memory": results["peak_memory_bytes"],
            "losses": [line["loss"] for line in lines],
            "seconds": time.perf_counter() - began, "profile": json.loads((output / "profile.json").read_text()),
            "trace": (output / "trace.json").read_bytes()}


def matrix_peak():
    """FLOP/s of an 8192³ product of bfloat16 random numbers: the best of ten."""
    import torch

    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * 8192**3 / best


def measure(case, steps, program, wants_reference):
    import torch

    with tempfile.TemporaryDirectory() as place:
        folder, rows = pathlib.Path(place) / "model", pathlib.Path(place) / "rows.jsonl"
        folder.mkdir()
        runs.write_rows(rows, steps * case.rows * case.batches, case.length, 32000)
        result = {"case": {**dataclasses.asdict(case), "model": case.shape.name}, "step_tokens": case.step_tokens,
                  "flops_per_token": case.flops_per_token}
        if case.bits == 16 and wants_reference:
            try:
                result["reference"] = reference(case, folder, rows, steps)
            except torch.cuda.OutOfMemoryError as error:
                result["reference"] = {"error": str(error).split(".")[0]}
        if not (folder / "config.json").exists():
            make_model(case, folder, torch.bfloat16)
        gc.collect()
        torch.cuda.empty_cache()
        result["fettle"] = fettle(case, folder, rows, steps, program)
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=REPOSITORY / "build/release", help="folder of fettle")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these; the other numbers stay")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--traces", type=pathlib.Path, help="keep Fettle's traces there, for a trace viewer")
    parser.add_argument("--target", type=pathlib.Path, default=REPOSITORY / "docs")
    arguments = parser.parse_args()
    import torch
    import transformers

    kept = arguments.target / "benchmarks-cuda.json"
    results = {"gpu": torch.cuda.get_device_name(), "peak": matrix_peak(), "cases": {},
               "versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
    if arguments.case and kept.exists():
        results["cases"] = json.loads(kept.read_text())["cases"]
    if arguments.traces:
        arguments.traces.mkdir(parents=True, exist_ok=True)
    for name in arguments.case or CASES:
        results["cases"][name] = measure(CASES[name], arguments.steps, arguments.build / "fettle",
                                         not arguments.no_reference)
        trace = results["cases"][name]["fettle"].pop("trace", None)
        if arguments.traces and trace:
            (arguments.traces / f"{name}.json.gz").write_bytes(gzip.compress(trace, 1))
        text = report_cuda.markdown(results)
        kept.write_text(json.dumps(results, indent=2) + "\n")
        (arguments.target / "benchmarks-cuda.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
