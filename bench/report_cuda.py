# SPDX-License-Identifier: Apache-2.0
"""The report of cuda.py as Markdown: only numbers that were measured."""


def gib(size):
    return f"{size / 2**30:.1f} GiB"


def title(case):
    what = f"LoRA r {case['rank']}" if case["rank"] else "all weights"
    bits = "" if case["bits"] == 16 else f", base in {case['bits']} bits"
    return f"{case['model']}, {what}{bits}, {case['batches']} × {case['rows']} × {case['length']} tokens"


def share(result, side, peak):
    return f"{result[side]['tokens_per_second'] * result['flops_per_token'] / peak:.0%}"


def row(result, peak):
    ours, theirs = result["fettle"], result.get("reference")
    cells = [title(result["case"])]
    if "error" in ours:
        error = " ".join(ours["error"].split()).replace("|", "/")
        return "| " + " | ".join([*cells, f"Fettle failed: {error}", *[""] * 7]) + " |"
    if theirs and "error" not in theirs:
        cells += [f"{theirs['tokens_per_second']:,.0f}", f"{ours['tokens_per_second']:,.0f}",
                  f"**{ours['tokens_per_second'] / theirs['tokens_per_second']:.2f}**",
                  gib(theirs["memory"]), gib(ours["memory"]), share(result, "reference", peak)]
    else:
        why = "out of memory" if theirs else "–"
        cells += [why, f"{ours['tokens_per_second']:,.0f}", "", "", gib(ours["memory"]), ""]
    return "| " + " | ".join([*cells, share(result, "fettle", peak), result["case"]["published"]]) + " |"


def parts(result):
    profile = result["fettle"].get("profile")
    if not profile:
        return []
    lines = [f"### {title(result['case'])}", "", "| part | forward | backward | all |", "|---|---:|---:|---:|"]
    seconds = profile["seconds"]
    lines += [f"| {part['part']} | {part['forward'] / seconds:.1%} | {part['backward'] / seconds:.1%} | {part['share']:.1%} |"
              for part in profile["parts"]]
    return [*lines, f"| nothing ran | | | {profile['idle'] / seconds:.1%} |", ""]


def markdown(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [
        "# Benchmarks on a GPU",
        "",
        f"Written by `bench/cuda.py` on one {results['gpu']}: {versions}; an 8192³ product of random bfloat16 numbers runs at "
        f"{results['peak'] / 1e12:.0f} TFLOP/s, of which the shares are.",
        "",
        "Random weights in known shapes, full rows, bfloat16. Reference: transformers + peft in a plain loop with sdpa "
        "attention and fused AdamW, adapter in bfloat16; all weights: float32 masters under autocast, on both sides. Median "
        "tokens per second of the steps after the fifth. Memory: the most that torch's allocator gave out.",
        "",
        *([results["note"], ""] if "note" in results else []),
        "| work | reference, tok/s | Fettle, tok/s | ratio | reference memory | Fettle memory | reference, of the peak "
        "| Fettle, of the peak | published |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [row(result, results["peak"]) for result in results["cases"].values()]
    lines += ["", "## Where a step's time goes", "", "On the GPU, from `profile_steps`.", ""]
    for result in results["cases"].values():
        lines += parts(result)
    return "\n".join(lines) + "\n"
