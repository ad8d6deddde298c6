# SPDX-License-Identifier: Apache-2.0
"""What docs/quantization.md says below its mark: only numbers that quantization.py measured."""

from report import memory

MARK = "<!-- bench/quantization.py writes what follows -->\n"
ALGORITHMS = ["RTN", "GPTQ", "AWQ", "TEQ"]
BITS = range(8, 0, -1)


def machine(results):
    facts = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['cpu']}, {facts['threads']} threads, {memory(facts['memory'])}, {' '.join(facts['instructions'])}; "
        f"{versions}. {facts['date']}."
    )


def table(measured):
    """Bits down, algorithms across, one part for each model and group size."""
    lines = [
        "### Bits, algorithms, groups",
        "",
        "Perplexity on records that the model was not calibrated on: stories260K on TinyStories, SmolLM2-135M-Instruct on the answers to medical "
        "questions. Calibrated on records of 16,000 tokens; symmetric ranges. (stories260K is widened: no group divides its 172 inputs, so they "
        "are 192, the rest zeros, and each of its 4 key heads is there twice; the function is the same. SmolLM2's weights come from a file of 4 bits in groups of 32, so "
        "that 5 to 8 bits in such groups lose less than they would elsewhere.)",
        "",
    ]
    parts = dict.fromkeys((key.rsplit(" ", 3)[0], key.rsplit(" ", 3)[3]) for key in measured)
    for name, group in parts:
        cells = {
            (algorithm, bits): measured.get(f"{name} {algorithm} {bits} {group}")
            for algorithm in ALGORITHMS
            for bits in BITS
        }
        algorithms = [each for each in ALGORITHMS if any(cells[each, bits] for bits in BITS)]
        before = next(cell for cell in cells.values() if cell)["eval_perplexity_before"]
        of = "whole rows" if group == "-1" else f"groups of {group}"
        lines += [f"| {name}, {of} | " + " | ".join(algorithms) + " |", "|---" * (len(algorithms) + 1) + "|"]
        lines.append(f"| before | {before:.3f} |" + " |" * (len(algorithms) - 1))
        for bits in BITS:
            found = [cells[each, bits] for each in algorithms]
            if any(found):
                head = f"{bits} bits" if bits > 1 else "1 bit, asymmetric"
                lines.append(f"| {head} | " + " | ".join(number(cell) for cell in found) + " |")
        lines.append("")
    return lines


def number(result):
    """Perplexities that say something; a model that is broken has others."""
    if not result:
        return "–"
    value = result["eval_perplexity"]
    return "over 10,000" if value is None or value > 1e4 else f"{value:.4g}" if value >= 1000 else f"{value:.3f}"


def reference(measured):
    lines = [
        "### Against gptqmodel",
        "",
        "The same model and the same calibration records through gptqmodel with its own settings; both write the same "
        "kind of file, and Fettle evaluates both on the same records that were held out. Perplexity; less is better.",
        "",
        "| model | algorithm | bits | ranges | before | gptqmodel | Fettle |",
        "|---|---|---|---|---|---|---|",
    ]
    before = {key.removesuffix(" before"): value for key, value in measured.items() if key.endswith(" before")}
    for key, value in measured.items():
        if key.endswith(" before"):
            continue
        name, algorithm, bits, scheme = key.rsplit(" ", 3)
        lines.append(
            f"| {name} | {algorithm} | {bits} | {scheme} | {before[name]['perplexity']:.4f} "
            f"| {value['reference']:.4f} | {value['fettle']:.4f} |"
        )
    return [*lines, ""]


def speed(measured):
    lines = [
        "### Time and memory",
        "",
        "GPTQ, 4 bits, groups of 128, one layer of Llama 3.2 1B's shape (2048 wide, 8192 within), 31 rows of 512 tokens; everything from the "
        "records to the packed numbers. Memory is the process's VmHWM, of which the model has 0.6 GiB.",
        "",
        "| | seconds | memory |",
        "|---|---|---|",
    ]
    names = {"reference": "gptqmodel", "fettle": "Fettle"}
    for result in measured.values():
        lines += [f"| {names[side]} | {result[side]['seconds']:.1f} | {memory(result[side]['memory'])} |" for side in names]
        lines += ["", f"Ratio: **{result['reference']['seconds'] / result['fettle']['seconds']:.1f}**.", ""]
    return lines


def decode(measured):
    lines = [
        "### Speed of what came out",
        "",
        "`fettle benchmark`, one sequence of 128 + 32 tokens, a model of Llama 3.2 1B's shape (random weights); tokens a second.",
        "",
        "| weights | decode | against bf16 | prefill | memory |",
        "|---|---|---|---|---|",
    ]
    for rows in measured.values():
        plain = rows["bf16"]["decode"]
        lines += [
            f"| {name} | {row['decode']:.1f} | {row['decode'] / plain:.2f} | {row['prefill']:.0f} | {memory(row['memory'])} |"
            for name, row in rows.items()
        ]
    return [*lines, ""]


PARTS = {"table": table, "reference": reference, "speed": speed, "decode": decode}


def write(page, results):
    lines = ["## Measured", "", machine(results), ""]
    for name, part in PARTS.items():
        if results.get(name):
            lines += part(results[name])
    said = page.read_text().partition(MARK)[0]
    page.write_text(said + MARK + "\n".join(lines).rstrip() + "\n")
