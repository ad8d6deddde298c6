# SPDX-License-Identifier: Apache-2.0
"""The report of bench.py as Markdown: only numbers that were measured in that run."""


def memory(size):
    return f"{size / 2**30:.2f} GiB"


def row(name, result, note):
    return (
        f"| {name} | {result['reference']:.0f} | {result['fettle']:.0f} | **{result['ratio']:.2f}** "
        f"| {memory(result['reference_memory'])} | {memory(result['fettle_memory'])} | {note} |"
    )


def title(result):
    return result["shape"] + (", full fine-tuning" if result["what"] == "full" else "")


def compared(results):
    """(label, result) of everything that both sides did."""
    rows = [(f"equal tokens, {title(result)}", result) for result in results["equal"]]
    return rows + [(f"500 records of {name}", result) for name, result in results["records"].items()]


def markdown(results):
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; every number was measured in one run on one machine.",
        "",
        f"Machine: {machine['cpu']}, {machine['threads']} threads for either side, {memory(machine['memory'])}, "
        f"{' '.join(machine['instructions'])}. Reference: {versions}. {machine['date']}.",
        "",
        "Models: Llamas with random weights in known shapes (135M and 360M: SmolLM2; 1B: Llama 3.2; 8B: one layer of Llama "
        "3.1), LoRA r 8 on all linear layers unless it says full fine-tuning, bfloat16. Each measurement is a process of "
        f"its own, one at a time; the sides take turns; a number is the median over {results['equal'][0]['turns']} turn(s) of tokens per second "
        "over the steps after the first. Memory is the process's VmHWM.",
        "",
        "| work | reference, tokens/s | Fettle, tokens/s | ratio | reference memory | Fettle memory | unit |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row(name, result, "target tokens" if "records" in name else "all tokens") for name, result in compared(results)]
    lines += [
        "",
        "![speed and memory](benchmarks.svg)",
        "",
        "- **Equal tokens**: four rows of 512 tokens a step on both sides (1B and 8B: two). Reference: transformers + peft in a "
        "plain loop, sdpa attention, weights and adapter in bfloat16, fused AdamW, no padding; full fine-tuning: float32 "
        "weights under bfloat16 autocast, as Fettle's.",
        "- **Records**: only the answers are targets. Reference: TRL's SFTTrainer, 8 records a step, padded, bfloat16, at most "
        "1024 tokens, without activation checkpointing (TRL's default, slower). Fettle: its defaults, two packed rows of 1024 "
        "tokens a step.",
        "- **Share of the machine**: of the rate of bfloat16 matrix products at the model's shapes (torch, the best of five of "
        "each), counting 4 FLOP a weight and token (full: 6) and the attention:",
        "",
        "| work | products, GFLOP/s | reference | Fettle |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {title(result)} | {result['gemm_peak'] / 1e9:.0f} | {result['reference_share']:.0%} | {result['fettle_share']:.0%} |"
        for result in results["equal"]
    ]
    lines += ["", *parts(results), ""]
    lines += own(results)
    return "\n".join([*lines, ""])


def parts(results):
    """Where a step's time goes: a column for each of the equal runs."""
    measured = [result for result in results["equal"] if "profile" in result]
    profiles = [result["profile"] for result in measured]
    if not profiles:
        return []
    shares = [{part["part"]: part["share"] for part in profile["parts"]} for profile in profiles]
    names = sorted({name for share in shares for name in share}, key=lambda name: -shares[0].get(name, 0))
    lines = [
        "- **Where a step's time goes** (`profile_steps`, a run of its own):",
        "",
        "| part | " + " | ".join(title(result) for result in measured) + " |",
        "|---" * (1 + len(profiles)) + "|",
    ]
    lines += [f"| {name} | " + " | ".join(f"{share.get(name, 0):.1%}" for share in shares) + " |" for name in names]
    lines.append("| nothing ran | " + " | ".join(f"{each['idle'] / each['seconds']:.1%}" for each in profiles) + " |")
    lines.append("| of these: products by torch | "
                 + " | ".join(f"{each['matrix_products'] / each['seconds']:.1%}" for each in profiles) + " |")
    return lines


def growth(measured):
    lines = [
        "## Growth",
        "",
        "Seconds of a step (the least of three). The same tokens in more documents (stories260K, so that a document's cost "
        "shows):",
        "",
        "| documents | tokens | seconds | memory |",
        "|---:|---:|---:|---:|",
    ]
    lines += [f"| {each['documents']} | {each['tokens']} | {each['seconds']:.3f} | {memory(each['memory'])} |"
              for each in measured["documents"]]
    lines += [
        "",
        "More tokens in documents of 512 (135M):",
        "",
        "| documents | tokens | seconds | seconds per 1,000 tokens | memory |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [f"| {each['documents']} | {each['tokens']} | {each['seconds']:.2f} "
              f"| {1000 * each['seconds'] / each['tokens']:.2f} | {memory(each['memory'])} |" for each in measured["tokens"]]
    return [*lines, "", "## Processes and checkpoints", ""]


def own(results):
    """Fettle against itself, where that was measured."""
    lines = growth(results["growth"]) if "growth" in results else []
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
