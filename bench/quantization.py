# SPDX-License-Identifier: Apache-2.0
"""Measures `fettle quantize` and writes what docs/quantization.md says below its mark, and docs/quantization.json.

    python bench/quantization.py [--part table|reference|speed|decode] [--again]

table      perplexity in 1 to 8 bits, by every algorithm, in groups of several sizes
reference  the same records through gptqmodel, in 3 and 4 bits
speed      GPTQ of one layer of Llama 3.2 1B's shape against gptqmodel, and the memory of both
decode     tokens per second of a model of Llama 3.2 1B's shape before and after

Each measurement is a process of its own, one at a time. Those that docs/quantization.json has already are not made
again, except with --again: the whole takes hours on two cores.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import sys

import bench as benches
import quantization_models as models
import quantization_report as report
import runs
import shapes

REPOSITORY = benches.REPOSITORY
RESULTS = REPOSITORY / "docs/quantization.json"
PAGE = REPOSITORY / "docs/quantization.md"
REFERENCE = REPOSITORY / "bench/reference_quantization.py"
# 128 divides neither 64 inputs nor 576. AWQ and TEQ take SmolLM2 a minute and a half each time.
TABLE = [
    *(("stories260K", group, report.ALGORITHMS) for group in (-1, 64, 32)),
    ("SmolLM2-135M", 64, report.ALGORITHMS),
    *(("SmolLM2-135M", group, ["RTN", "GPTQ"]) for group in (-1, 32)),
]
TURNS = 2
BENCHMARK = {"benchmark_input_tokens": 128, "benchmark_output_tokens": 32, "benchmark_iterations": 3, "benchmark_warmup": 1}
# gptqmodel's AWQ has 4 bits.
COMPARED = [
    (algorithm, bits, scheme)
    for algorithm, all_bits in (("RTN", (4, 3)), ("GPTQ", (4, 3)), ("AWQ", (4,)))
    for bits in all_bits
    for scheme in (("asym",) if algorithm == "AWQ" else ("sym", "asym"))
]


class Quantization(benches.Bench):
    """Measurements that are kept as they are made."""

    def __init__(self, build, folder, again):
        super().__init__(build, folder)
        self.again = again
        self.results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def keep(self, part, key, measure):
        """What is known of `key`, or measured now."""
        known = self.results.setdefault(part, {})
        if self.again or key not in known:
            known[key] = measure()
            RESULTS.write_text(json.dumps(self.results, indent=1) + "\n")
            print(part, key, json.dumps(known[key]), flush=True)
        return known[key]

    def fettle_run(self, command, **options):
        options = {"num_threads": self.threads, "log_level": "warning", **options}
        return self.run([self.fettle, command, *(f"--{key}={value}" for key, value in options.items())])

    def quantize(self, model, output, **options):
        """Returns all_results.json and the most memory that was used."""
        shutil.rmtree(output, ignore_errors=True)
        options = {"dataset_format": "tokenized", "max_perplexity_ratio": 0, **options}
        _, memory = self.fettle_run("quantize", model_name_or_path=model, output_dir=output, **options)
        return json.loads((output / "all_results.json").read_text()) | {"memory": memory}

    def perplexity(self, model, file):
        options = {"dataset_format": "tokenized", "max_seq_length": models.ROW_TOKENS}
        said, _ = self.fettle_run("eval", model_name_or_path=model, validation_file=file, **options)
        return json.loads(said)["perplexity"]


def measure_table(bench):
    for name, group, algorithms in TABLE:
        model, rows, held_out = models.prepare(name, bench.folder)
        records = {"train_file": rows, "validation_file": held_out, "calibration_length": models.ROW_TOKENS}
        for bits in report.BITS:
            for algorithm in algorithms:
                options = {**records, "woq_bits": bits, "woq_algo": algorithm, "woq_group_size": group}
                options["woq_scheme"] = "asym" if bits == 1 else "sym"  # of two symmetric values one would be zero
                bench.keep("table", f"{name} {algorithm} {bits} {group}",
                           lambda: bench.quantize(model, bench.folder / "quantized", **options))  # fmt: skip


def measure_reference(bench):
    for name in models.MAKERS:
        model, rows, held_out = models.prepare(name, bench.folder)
        bench.keep("reference", f"{name} before", lambda: {"perplexity": bench.perplexity(model, held_out)})
        for algorithm, bits, scheme in COMPARED:
            key = f"{name} {algorithm} {bits} {scheme}"
            records = {"train_file": rows, "validation_file": held_out, "calibration_length": models.ROW_TOKENS}
            options = {"woq_bits": bits, "woq_algo": algorithm, "woq_group_size": models.GROUP, "woq_scheme": scheme}
            # Of the same kind: scales in float16, as the other program has them.
            options["woq_format"] = "awq" if algorithm == "AWQ" else "gptq"

            def theirs():
                output = bench.folder / "theirs"
                shutil.rmtree(output, ignore_errors=True)
                reference(bench, model, rows, output, algorithm.lower(), bits, models.GROUP, scheme)
                return bench.perplexity(output, held_out)

            def ours():
                bench.quantize(model, bench.folder / "quantized", **records, **options)
                return bench.perplexity(bench.folder / "quantized", held_out)

            bench.keep("reference", key, lambda: {"fettle": ours(), "reference": theirs()})


def reference(bench, *arguments):
    output, memory = bench.run([sys.executable, REFERENCE, *arguments])
    return {**json.loads(output.splitlines()[-1]), "memory": memory}


def measure_speed(bench):
    """One layer of the 1B shape; the sides take turns."""
    model = bench.model_of(shapes.SHAPES["1B, one layer"])
    rows = bench.folder / "random.jsonl"
    runs.write_rows(rows, models.CALIBRATION // models.ROW_TOKENS, models.ROW_TOKENS, 49152)
    options = {"train_file": rows, "calibration_length": models.ROW_TOKENS, "woq_bits": 4, "woq_group_size": 128}

    def ours():
        result = bench.quantize(model, bench.folder / "quantized", woq_algo="GPTQ", **options)
        return {"seconds": result["quantize_layers_runtime"], "memory": result["memory"]}

    def theirs():
        output = bench.folder / "theirs"
        shutil.rmtree(output, ignore_errors=True)
        return reference(bench, model, rows, output, "gptq", 4, 128, "sym")

    def measure():
        turns = [(ours(), theirs()) for _ in range(TURNS)]
        return {
            side: {what: statistics.median(turn[i][what] for turn in turns) for what in ("seconds", "memory")}
            for i, side in enumerate(("fettle", "reference"))
        }

    bench.keep("speed", "GPTQ 4 128", measure)


def measure_decode(bench):
    """The whole model before and after; `fettle benchmark` with a batch of one, in turns."""
    model = bench.model_of(shapes.SHAPES["1B"])
    forms = {"bf16": model}
    for bits, group in ((8, -1), (4, 128), (4, 32), (2, 64)):
        name = f"{bits} bits, group {group}"
        forms[name] = bench.folder / f"llama-1B-{bits}-{group}"
        # Which makes nothing anew that is there.
        options = {"output_dir": forms[name], "woq_bits": bits, "woq_group_size": group}
        bench.fettle_run("quantize", model_name_or_path=model, **options)

    def measure():
        turns = [{name: rates(bench, folder) for name, folder in forms.items()} for _ in range(TURNS)]
        return {name: {what: statistics.median(turn[name][what] for turn in turns) for what in turns[0][name]}
                for name in forms}  # fmt: skip

    bench.keep("decode", "1B", measure)


def rates(bench, model):
    said, memory = bench.fettle_run("benchmark", model_name_or_path=model, **BENCHMARK)
    figures = json.loads(said)
    rates = {what: figures[f"{what}_tokens_per_second"] for what in ("prefill", "decode")}
    return {**rates, "memory": memory}


PARTS = {"table": measure_table, "reference": measure_reference, "speed": measure_speed, "decode": measure_decode}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="measure only this")
    parser.add_argument("--again", action="store_true", help="measure what is known too")
    parser.add_argument("--build", type=pathlib.Path, default=REPOSITORY / "build/release", help="folder of fettle")
    arguments = parser.parse_args()
    folder = REPOSITORY / "build/bench"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Quantization(arguments.build, folder, arguments.again)
    bench.results["machine"] = benches.machine(bench)
    for name, measure in PARTS.items():
        if arguments.part in (None, name):
            measure(bench)
    report.write(PAGE, bench.results)


if __name__ == "__main__":
    main()
