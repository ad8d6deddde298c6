# SPDX-License-Identifier: Apache-2.0
"""`fettle … --device=hpu` on a stand-in of a Gaudi card (stand_in/README.md), which counts what a card would suffer from.

With FETTLE_TEST_CARD set, on this machine's own card: `kinds`, `resumed` and `uses` then say whether its numbers are
right (tools/hpu_check.sh); the others need what the stand-in counts and pretends.

  steps      two marks a micro-batch and update, no reading but for a metrics line, one graph for all data
  kinds      every kind of run: nothing falls back to the processor, and the result is the processor's
  operators  schemas of two releases, other arguments, no operators of the bridge's own: the same losses
  resumed    stopped and killed runs end with the bytes of the uninterrupted one, also on the processor
  ranks      one, two and eight processes, each with a card of its own, agree
  mistakes   every failure of the card and its software has its own message and exit code
  uses       check, eval and generate
  graphs     a graph that is compiled after the warm-up is warned of
  check      the first thing to run on a machine with cards
"""

import json
import os
import pathlib
import random
import re
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults"))
import harness
from harness import DONE, require

SITE = harness.BUILD / "tests/hpu/site"
BRIDGE = {"FETTLE_HPU_BRIDGE": str(SITE / "habana_frameworks/torch"), "LD_LIBRARY_PATH": str(SITE / "habanalabs"),
          "GC_KERNEL_PATH": str(SITE / "habanalabs/libtpc_kernels.so")}
IS_CARD = "FETTLE_TEST_CARD" in os.environ
ACCUMULATION = 3
ROUNDED = 4e-3  # one rounding of bfloat16 is 2^-9
IN_8_BITS = 5e-2  # inputs of every product rounded to 2^-4, which a base in fp8 on a processor is not
EXACT = ROUNDED if IS_CARD else 1e-5  # float32 in another order; a card's products may round their inputs
USAGE, UNAVAILABLE, OUT_OF_MEMORY, DIVERGED = 64, 69, 71, 76


def write_records(place, lengths, seed=1):
    """Tokenized records of these lengths, of which two thirds of the tokens are targets."""
    rng = random.Random(seed)
    file = place / "train.jsonl"
    with open(file, "w") as lines:
        for length in lengths:
            ids = [rng.randrange(3, 500) for _ in range(length)]
            labels = [-100 if i % 3 == 0 else token for i, token in enumerate(ids)]
            print(json.dumps({"input_ids": ids, "labels": labels}), file=lines)
    return file


def command(output_dir, records, device="hpu", **options):
    every = {"model_name_or_path": harness.ROOT / "examples/stories260K", "train_file": records, "dataset_format": "tokenized",
             "output_dir": output_dir, "device": device, "num_threads": 1, "max_seq_length": 64, "bf16": False,
             "per_device_train_batch_size": 2, "gradient_accumulation_steps": ACCUMULATION, "learning_rate": 1e-2,
             "logging_steps": 1, "max_steps": 6, "do_eval": False, "save_strategy": "no", **options}
    return ["train", *(f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in every.items())]


class Card:
    """A stand-in of a card, and what it has counted."""

    def __init__(self, place, *switches, **variables):
        self.report_file = place / "report.json"
        stand_in = {**BRIDGE, "FETTLE_STAND_IN": ",".join(switches), "FETTLE_STAND_IN_REPORT": str(self.report_file)}
        own = {name: value for name, value in os.environ.items() if re.match("PT_|GC_|HABANA_|HLS_|LOG_", name)}
        self.environment = {**(own if IS_CARD else stand_in), **variables}

    def run(self, line, place):
        return harness.run(line, place, environment=self.environment)

    @property
    def report(self):
        return json.loads(self.report_file.read_text())

    def counted(self, name):
        return self.report["counts"].get(name, 0)

    @property
    def step_marks(self):
        """Without those that the host waits for: of the products whose speed is measured at the start."""
        return self.counted("marks") - self.counted("event_synchronizations")


def lines_of(output_dir):
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def require_same_losses(ours, theirs, tolerance, what):
    """Every loss and gradient norm of two runs."""
    ours, theirs = lines_of(ours), lines_of(theirs)
    require([line["step"] for line in ours] == [line["step"] for line in theirs], f"{what}: other lines")
    for mine, their in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "eval_loss"):
            require((key in mine) == (key in their), f"{what}: {key} is in one of {mine} and {their}")
            if key in mine:
                require(abs(mine[key] - their[key]) <= tolerance * abs(their[key]), f"{what}: {key} {mine} against {their}")


def trained(workplace, name, *switches, device="hpu", records=None, **options):
    """A run that has to succeed: its folder and its card."""
    place = workplace.new(re.sub(r"\W+", "-", name))
    records = records or write_records(place, [2 + 7 * i % 60 for i in range(40)])
    card = Card(place, *switches)
    outcome = card.run(command(place / "out", records, device, **options), place)
    require(outcome.code == DONE, name, outcome)
    require(f"info {device}:" in outcome.log, "where did it run?", outcome)
    require(("stand-in: this is not" in outcome.log) == (device == "hpu" and not IS_CARD), "where did it run?", outcome)
    return place / "out", card


def steps(workplace, summary, _):
    """Two marks a micro-batch and update, no reading but for a metrics line, one graph for all data."""
    records = write_records(workplace.new("records"), [2, 62, 3, 40, 64, 5, 17, 33] * 12)
    for packing in (True, False):
        short, long = (trained(workplace, f"{count} steps", records=records, packing=packing, logging_steps=4,
                               max_steps=count, verify_saved_model=False, throughput_warmup_steps=0)[1] for count in (8, 16))
        graphs = long.counted("compilations") - short.counted("compilations")
        marks = long.step_marks - short.step_marks
        require(marks == 8 * (ACCUMULATION + 1), f"{marks} marks in 8 steps of {ACCUMULATION} micro-batches")
        require(graphs == 0, f"{graphs} graphs were compiled after step 8")
        # What is read of a step (its micro-batches' losses and a norm) is read where a line of metrics is due, and there
        # no graph is pending that it would cut in two.
        first = long.counted("marks") - 16 * (ACCUMULATION + 1)
        due = {str(first + (ACCUMULATION + 1) * step) for step in (1, 4, 8, 12, 16)}
        reads = {mark: number for mark, number in long.report["device_to_host_after_marks"].items() if int(mark) > first}
        require(set(reads) <= due, f"read in the middle of a step: {reads}, where {due} was allowed")
        require(sum(reads.values()) >= 12 * (ACCUMULATION + 1), f"the losses were not read: {reads}")
        require(long.counted("forced") == short.counted("forced"), "a graph was cut in two")
        require(long.counted("cpu_fallbacks") == 0, f"on the processor: {long.report['fallbacks']}")
        summary.count("steps whose marks, graphs and readings were counted", 16)


KINDS = {
    "LoRA": ({}, EXACT),
    "LoRA, one document a row": ({"packing": False}, EXACT),
    "LoRA, dropout": ({"lora_dropout": 0.1}, None),  # a card draws other numbers than the processor
    "LoRA, weight decay, no clipping": ({"weight_decay": 0.1, "max_grad_norm": 0}, EXACT),
    "LoRA, recomputed": ({"gradient_checkpointing": True}, EXACT),
    "LoRA, bf16": ({"bf16": True, "learning_rate": 1e-3}, ROUNDED),
    "LoRA, a base in 4 bits": ({"load_in_4bit": True, "learning_rate": 1e-3}, EXACT),
    "LoRA, a base in fp8": ({"load_in_fp8": True, "learning_rate": 1e-3}, IN_8_BITS),
    "LoRA, evaluated": ({"do_eval": True, "validation_split_percentage": 20, "eval_strategy": "steps", "eval_steps": 2}, EXACT),
    "LoRA, spikes watched": ({"grad_spike_limit": 1000}, EXACT),
    "all weights": ({"use_peft": False, "learning_rate": 1e-3}, EXACT),
    "all weights, bf16": ({"use_peft": False, "bf16": True, "learning_rate": 1e-4}, ROUNDED),
}


def kinds(workplace, summary, _):
    """Every kind of run: nothing falls back to the processor, and the result is the processor's."""
    for name, (options, tolerance) in KINDS.items():
        ours, card = trained(workplace, name, **options)
        require(IS_CARD or card.counted("cpu_fallbacks") == 0, f"{name}: on the processor: {IS_CARD or card.report}")
        if not IS_CARD:
            products = card.counted("fused:fp8_gemm_v2")
            require((products > 0) == ("load_in_fp8" in options), f"{name}: {products} products in fp8")
        if tolerance:
            require_same_losses(ours, trained(workplace, name, device="cpu", **options)[0], tolerance, name)
        summary.count("kinds of runs")


def operators(workplace, summary, _):
    """Schemas of two releases, other arguments, no operators of the bridge's own: the same losses."""
    expected, card = trained(workplace, "newest")
    fused = [name for name in card.report["counts"] if name.startswith("fused:")]
    require(len(fused) == 6, f"fused operators that ran: {fused}")
    for switch, has_fused in (("schema=1.19", True), ("no_fused_ops", False)):
        ours, card = trained(workplace, switch, switch)
        require(any(name.startswith("fused:") for name in card.report["counts"]) == has_fused, f"{switch}: {card.report}")
        require(card.counted("cpu_fallbacks") == 0, f"{switch}: on the processor: {card.report['fallbacks']}")
        require_same_losses(ours, expected, EXACT, switch)
        summary.count("releases of the bridge")
    ours, card = trained(workplace, "plain", fused_ops=False)
    require(not any(name.startswith("fused:") for name in card.report["counts"]), "fused_ops=false is not heard")
    require_same_losses(ours, expected, EXACT, "fused_ops=false")


def resumed(workplace, summary, _):
    """Stopped and killed runs end with the bytes of the uninterrupted one, also on the processor."""
    records = write_records(workplace.new("records"), [2 + 7 * i % 60 for i in range(60)])
    options = {"records": records, "save_strategy": "steps", "save_steps": 2, "max_steps": 12, "lora_dropout": 0.1}
    whole, _ = trained(workplace, "whole", **options)
    del options["records"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        place = workplace.new("stopped")
        card = Card(place)
        line = command(place / "out", records, **options)
        program = harness.Program(line, place, environment=card.environment)
        program.wait_for(lambda running=program: any(int(step) >= 5 for step in harness.STEP.findall(running.log)))
        program.send(number)
        stopped = program.finish()
        require(stopped.code in (harness.PREEMPTED, -number), "it was not stopped", stopped)
        outcome = card.run(line, place)
        require(outcome.resumed, "it began anew", outcome)
        harness.require_same(whole, place / "out", outcome)
        summary.count("interrupted runs with the same bytes")
    # The files know nothing of the device: the processor goes on from them, and computes the same from the result.
    place = workplace.new("elsewhere")
    del options["lora_dropout"]
    here, _ = trained(workplace, "here", records=records, **options)
    rest = command(place / "out", records, "cpu", resume_from_checkpoint=here / "checkpoint-10", **options)
    require(harness.run(rest, place).code == DONE, "the processor does not continue")
    ours = {line["step"]: line["loss"] for line in lines_of(place / "out")}
    for line in lines_of(here)[-2:]:
        require(abs(ours[line["step"]] - line["loss"]) <= EXACT * line["loss"], f"{ours} against {line}")
    summary.count("runs continued on the processor")


def ranks(workplace, summary, _):
    """One, two and eight processes, each with a card of its own, agree."""
    folders = {}
    for size, more in ((1, {}), (2, {}), (8, {}), (2, {"zero_stage": 1}), (2, {"zero_stage": 2}), (2, {"zero_stage": 3})):
        name = f"{size} ranks {more}"
        place = workplace.new("ranks")
        cards = place / "cards"
        cards.mkdir()
        records = write_records(place, [2 + 7 * i % 60 for i in range(80)])
        card = Card(place, FETTLE_STAND_IN_CARDS="8", FETTLE_STAND_IN_FOLDER=str(cards))
        outcome = card.run(command(place / "out", records, nproc_per_node=size, per_device_train_batch_size=1,
                                   gradient_accumulation_steps=8 // size, max_steps=4, **more), place)
        require(outcome.code == DONE, name, outcome)
        folders[name] = place / "out"
        if size > 1:
            card.report_file = place / "report.json.rank1"
        require(card.counted("cpu_fallbacks") == 0, f"{name}: on the processor: {card.report['fallbacks']}")
        require_same_losses(folders[name], next(iter(folders.values())), EXACT, name)
        summary.count("numbers of ranks and stages")
    # Two processes that are told the same card.
    place = workplace.new("same")
    (place / "cards").mkdir()
    card = Card(place, FETTLE_STAND_IN_CARDS="8", FETTLE_STAND_IN_FOLDER=str(place / "cards"), HLS_MODULE_ID="3")
    outcome = card.run(command(place / "out", write_records(place, [9] * 8), nproc_per_node=2), place)
    require(outcome.code == UNAVAILABLE, "two processes have one card", outcome)


def mistakes(workplace, summary, _):
    """Every failure of the card and its software has its own message and exit code."""
    place = workplace.new("mistakes")
    records = write_records(place, [9] * 24)

    def tried(code, words, *switches, without=(), options=None, **variables):
        card = Card(place, *switches, **variables)
        for name in without:
            del card.environment[name]
        out = workplace.new("out")
        outcome = card.run(command(out / "out", records, **(options or {})), out)
        require(outcome.code == code, f"{switches} {variables}: not {code}", outcome)
        said = "\n".join(line for line in outcome.log.splitlines() if "error: " in line)
        require(words in said, f"{switches} {variables}: says nothing of '{words}'", outcome)
        require("backtrace" not in outcome.log and "frame #" not in outcome.log, "a stack is printed", outcome)
        summary.count("failures with their messages")
        return outcome

    tried(UNAVAILABLE, "no Gaudi driver", "no_card")
    tried(UNAVAILABLE, "no Gaudi card can be acquired", "busy_card")
    tried(UNAVAILABLE, "synStatus=26", without=["GC_KERNEL_PATH"])
    tried(USAGE, "Gaudi's runtime library cannot be loaded", without=["LD_LIBRARY_PATH"])
    tried(USAGE, "there is no Gaudi bridge", FETTLE_HPU_BRIDGE=str(place / "nowhere"))
    for text, words in (("2.13.0+cpu", "not the vendor's build"), ("1.13.1+hpu", "holds torch 1.13.1+hpu")):
        site = workplace.new("site")
        (site / "torch").mkdir()
        (site / "torch/version.py").write_text(f"__version__ = '{text}'\n")
        (site / "habana_frameworks").symlink_to(SITE / "habana_frameworks")
        tried(USAGE, words, FETTLE_HPU_BRIDGE=f"{site}/habana_frameworks/torch")
    tried(70, "aten::nll_loss_forward", "refuse=aten::nll_loss_forward")
    tried(UNAVAILABLE, "synStatus=17", "fail_at_graph=40")
    tried(OUT_OF_MEMORY, "out of memory", options={"per_device_train_batch_size": 64, "max_seq_length": 8192})
    tried(78, "Gaudi cards to offer", options={"nproc_per_node": 4}, HABANA_VISIBLE_MODULES="0,1")
    tried(78, "HABANA_VISIBLE_MODULES is '1,x'", options={"nproc_per_node": 2}, HABANA_VISIBLE_MODULES="1,x")
    # Wrong numbers show some steps later, but nothing of them is saved.
    diverged = tried(DIVERGED, "training diverged at step", options={"learning_rate": 1e30, "max_grad_norm": 0, "logging_steps": 3,
                                                                    "save_strategy": "steps", "save_steps": 2, "max_steps": 12})
    require("a checkpoint, if there is one, is from before that step" in diverged.log, "what is saved?", diverged)
    # No huge pages are a matter of speed; whoever sets another mode is overruled.
    for switches, variables in ((["no_hugepages"], {}), ([], {"PT_HPU_LAZY_MODE": "0"})):
        out = workplace.new("out")
        outcome = Card(place, *switches, **variables).run(command(out / "out", records, max_steps=1), out)
        require(outcome.code == DONE, f"{switches} {variables}", outcome)


def uses(workplace, summary, _):
    """check, eval and generate."""
    out, _ = trained(workplace, "uses")
    records = next(out.parent.glob("train.jsonl"))
    model = [f"--model_name_or_path={harness.ROOT / 'examples/stories260K'}", f"--adapter_name_or_path={out}", "--bf16=false",
             "--num_threads=1"]
    data = [f"--validation_file={records}", "--dataset_format=tokenized", "--max_seq_length=64"]
    results = {}
    for device in ("hpu", "cpu"):
        place = workplace.new("eval")
        per_record, logits = place / "records.jsonl", place / "logits.safetensors"
        line = ["eval", *model, *data, f"--device={device}", f"--per_record={per_record}", f"--logits_file={logits}"]
        require(Card(place).run(line, place).code == DONE, f"eval on {device}")
        results[device] = [json.loads(row) for row in per_record.read_text().splitlines()], logits.stat().st_size
    require(results["hpu"][1] == results["cpu"][1], "the logits have another shape")
    for ours, theirs in zip(results["hpu"][0], results["cpu"][0], strict=True):
        require(abs(ours["loss"] - theirs["loss"]) <= EXACT * theirs["loss"], f"{ours} against {theirs}")
    answers = {}
    for device in ("hpu", "cpu"):
        place = workplace.new("generate")
        environment = {**os.environ, **Card(place).environment, "XDG_CACHE_HOME": str(place)}
        line = [harness.PROGRAM, "generate", *model, "--prompt=Once upon a time", "--max_new_tokens=40", f"--device={device}"]
        answers[device] = harness.subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    require(answers["hpu"] == answers["cpu"], f"answers differ: {answers}")
    place = workplace.new("check")
    line = ["check", *command(place / "out", records)[1:]]
    require(Card(place).run(line, place).code == DONE, "fettle check")
    summary.count("other commands", 3)


def graphs(workplace, summary, _):
    """A graph that is compiled after the warm-up is warned of."""
    place = workplace.new("graphs")
    recipes = place / "recipes"
    card = Card(place, PT_HPU_RECIPE_CACHE_CONFIG=f"{recipes},false,100")
    records = write_records(place, [9] * 400)
    program = harness.Program(command(place / "out", records, max_steps=40), place, environment=card.environment)
    program.wait_for(lambda: any(int(step) >= 6 for step in harness.STEP.findall(program.log)))
    (recipes / "another.recipe").write_text("compiled by another run")
    outcome = program.finish()
    require(outcome.code == DONE, "with a cache of its own", outcome)
    warnings = [line for line in outcome.warnings if "graphs were compiled" in line]
    require(len(warnings) == 1 and re.search(r"\b1 graphs were compiled", warnings[0]), f"warned of: {warnings}", outcome)
    counts = [line["compiled_graphs"] for line in lines_of(place / "out")]
    require(counts[-1] == counts[4] + 1 == max(counts), f"the graphs that were counted: {counts}", outcome)
    summary.count("warnings of new graphs")


def check(workplace, summary, _):
    """What is run first on a machine with cards (tools/hpu_check.py), on a small model."""
    place = workplace.new("check")
    environment = {**os.environ, **Card(place).environment, "XDG_CACHE_HOME": str(place)}
    line = [sys.executable, harness.ROOT / "tools/hpu_check.py", harness.BUILD, "--folder", place, "--layers", "2", "--hidden",
            "256", "--steps", "8"]
    done = harness.subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{done.stdout}{done.stderr}")
    for words in ("6 of 6 operators", "tokens/s", "graphs compiled after the warm-up: 0", "of the peak"):
        require(words in done.stdout, f"it does not say '{words}': {done.stdout}")
    summary.count("runs of the check")


ON_A_CARD = [kinds, resumed, uses]

if __name__ == "__main__":
    sys.exit(harness.main("hpu", ON_A_CARD if IS_CARD else [steps, operators, ranks, mistakes, graphs, check, *ON_A_CARD]))
