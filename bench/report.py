# SPDX-License-Identifier: Apache-2.0
"""The report of bench.py as Markdown: only numbers that were measured in that run."""


def memory(size):
    return f"{size / 2**30:.2f} GiB"


def row(name, result, note):
    return (
        f"| {name} | {result['reference']:.0f} | {result['fettle']:.0f} | **{result['ratio']:.2f}** "
        f"| {memory(result['reference_memory'])} | {memory(result['fettle_memory'])} | {note} |"
    )


def markdown(results):
    machine, equal = results["machine"], results["equal"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; every number was measured in one run on one machine.",
        "",
        f"Machine: {machine['cpu']}, {machine['threads']} threads for either side, {memory(machine['memory'])}, "
        f"{' '.join(machine['instructions'])}. Reference: {versions}. {machine['date']}.",
        "",
        "Model: Llama with the shape of SmolLM2-135M, LoRA r 8 on all linear layers, bfloat16. Each measurement is a "
        "process of its own, one at a time; the sides take turns; a number is the median over "
        f"{equal['turns']} turn(s) of tokens per second over the steps after the first. Memory is the process's VmHWM.",
        "",
        "| work | reference, tokens/s | Fettle, tokens/s | ratio | reference memory | Fettle memory | unit |",
        "|---|---|---|---|---|---|---|",
        row("equal tokens", equal, "all tokens"),
    ]
    lines += [row(f"500 records of {name}", result, "target tokens") for name, result in results["records"].items()]
    lines += [
        "",
        "- **Equal tokens**: four rows of 512 tokens a step on both sides. Reference: transformers + peft in a plain loop, "
        "sdpa attention, weights and adapter in bfloat16, fused AdamW, no padding.",
        "- **Records**: only the answers are targets. Reference: TRL's SFTTrainer, 8 records a step, padded, bfloat16, at most "
        "1024 tokens, without activation checkpointing (TRL's default, slower). Fettle: its defaults, two packed rows of 1024 "
        "tokens a step.",
        f"- **Share of the machine**: a bfloat16 matrix product at the model's shapes reaches "
        f"{equal['gemm_peak'] / 1e9:.0f} GFLOP/s here (torch, the best of five of each shape). Of that, counting 4 FLOP a weight "
        f"and token and the attention: reference {equal['reference_share']:.0%}, Fettle {equal['fettle_share']:.0%}.",
    ]
    lines += own(results)
    return "\n".join([*lines, ""])


def own(results):
    """Fettle against itself, where that was measured."""
    lines = []
    if ranks := results.get("ranks"):
        lines.append(
            f"- **Several processes**: one process of one thread {ranks['one']:.0f} tokens/s, {ranks['processes']} of them, each "
            f"with the same rows a step, {ranks['several']:.0f}: {ranks['efficiency']:.0%} of {ranks['processes']} times one."
        )
    for name, saving in results.get("saving", {}).items():
        lines.append(
            f"- **A checkpoint in the background**, {name} ({saving['bytes'] / 1e6:.0f} MB): training loses "
            f"{saving['first']:.2f} s for the first, {saving['further']:.2f} s for each further one: "
            f"{saving['further'] / 60:.1%} of the time at one a minute."
        )
    return lines
