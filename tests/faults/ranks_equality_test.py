# SPDX-License-Identifier: Apache-2.0
"""N ranks compute what one process computes: the same gradients, losses and weights, to the rounding of float32.

  shares        1, 2 and 4 ranks, packed or not, with dropout or not; the first gradient, 12 losses, the final adapter
  uneven        ranks with very unequal token counts, and last steps of an epoch in which some have no batch
  full_training all weights, in buckets of 1 MiB
  repeated      the same number of ranks twice: the same bytes
  logs          rank 0 speaks for all
  other_sizes   a run that began with one number of ranks goes on with another

Tolerances. A sum in another order differs by the rounding of its parts, 2^-24 = 6e-8 of each, and relative to the norm
about as much: GRADIENT is ten times that. Adam divides by the gradient's own size, so without a limit it would make a
whole step of a parameter whose gradient is nothing but rounding; adam_epsilon, well above the rounding and well below
the gradients (0.02), is that limit. LOSS and WEIGHTS are a hundred times the rounding: 12 to 24 steps feed it to each other.
"""

import itertools
import json
import shutil
import signal
import sys

import harness
import ranks
from harness import require
from ranks import Ranks, Start, command

GRADIENT, LOSS, WEIGHTS = 1e-6, 1e-5, 1e-5
BATCHES, STEPS = 4, 12  # micro-batches a step, and steps
SIZES = (1, 2, 4)
EXACT = {"max_grad_norm": 0, "adam_epsilon": 1e-5}
EVERY_STEP = EXACT | {"save_steps": 1, "save_total_limit": 0}


def train(workplace, size, **options):
    place = workplace.new(f"{size}-ranks")
    return ranks.train(command(place / "out", **options), place, size)


def weights(output_dir, name="adapter_model.safetensors"):
    return ranks.read_tensors(output_dir / name)


def compare(summary, what, one, many):
    """`one`: output folder of one process; `many`: of several ranks."""
    newest = f"checkpoint-{max(harness.whole_checkpoints(one))}"
    file = next(path.name for path in (one / newest).glob("*model.safetensors"))
    gradients = [ranks.read_gradient(folder / "checkpoint-1") for folder in (one, many)]
    found = {"gradient": (ranks.distance(*gradients), GRADIENT), "losses": (ranks.loss_distance(one, many), LOSS),
             "weights": (ranks.distance(weights(one / newest, file), weights(many / newest, file)), WEIGHTS)}
    print(f"  {what}: " + ", ".join(f"{name} {value:.1e}" for name, (value, _) in found.items()), flush=True)
    for name, (value, limit) in found.items():
        require(value <= limit, f"{what}: the {name} differ by {value:.3g}, allowed are {limit:.3g}")
    summary.count("runs of several ranks that equal one process")


def compare_sizes(workplace, summary, what, **options):
    """Trains with each number of ranks; all take the same micro-batches a step."""
    folders = {size: train(workplace, size, gradient_accumulation_steps=BATCHES // size, **EVERY_STEP, **options)
               for size in SIZES}
    for size in SIZES[1:]:
        compare(summary, f"{what}, {size} ranks", folders[1], folders[size])
    return folders


def shares(workplace, summary, _):
    """The same step, dealt to 1, 2 and 4 ranks."""
    for packing, dropout in itertools.product((True, False), (0, 0.1)):
        compare_sizes(workplace, summary, f"packing {packing}, dropout {dropout}", packing=packing, lora_dropout=dropout,
                      max_seq_length=256, max_steps=STEPS)


def write_records(workplace, lengths):
    """A file of texts with about so many words each."""
    words = "Once upon a time there was a small daisy and a big dog in the yard who liked to play with the sun".split()
    file = workplace.new("records") / "train.jsonl"
    texts = [" ".join(words[(17 * number + i) % len(words)] for i in range(length)) for number, length in enumerate(lengths)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def uneven(workplace, summary, _):
    """A mean of the ranks' means would be wrong here, and so would waiting for a rank that has no batch."""
    alternating = write_records(workplace, [2, 40] * 4)  # in order: rank 0 of 2 has the short ones alone
    compare_sizes(workplace, summary, "alternating lengths", train_file=alternating, packing=False, shuffle=False,
                  max_steps=STEPS)
    odd = write_records(workplace, [2, 40, 5, 30, 1, 38, 2, 25, 9])  # 4 + 4 + 1 micro-batches an epoch
    folders = compare_sizes(workplace, summary, "steps of 4, 4 and 1 micro-batches", train_file=odd, packing=False,
                            num_train_epochs=4)
    require(len(ranks.losses(folders[4])) == STEPS, f"it took {len(ranks.losses(folders[4]))} steps")
    summary.count("steps in which ranks had no batch", 4)


def full_training(workplace, summary, _):
    """All weights of the model; the gradients fill two buckets of 1 MiB, and one of 25."""
    options = EVERY_STEP | {"use_peft": False, "lora_dropout": None, "lora_r": None, "max_steps": STEPS}
    folders = {(size, bucket): train(workplace, size, gradient_accumulation_steps=BATCHES // size,
                                     ddp_bucket_cap_mb=bucket, **options)
               for size, bucket in ((1, 25), (2, 1), (2, 25), (4, 1))}
    for size in SIZES[1:]:
        compare(summary, f"full, {size} ranks, buckets of 1 MiB", folders[1, 25], folders[size, 1])
    found = harness.differences(folders[2, 1], folders[2, 25])  # a sum of two is the same in any bucket
    require(not found, f"buckets of 1 and 25 MiB differ: {found}")
    summary.count("sizes of buckets with the same bytes", 2)


def repeated(workplace, summary, _):
    """The same command with the same number of ranks: every byte of the result."""
    for size in SIZES[1:]:
        options = {"gradient_accumulation_steps": BATCHES // size, "max_steps": STEPS, "packing": False}
        first, second = (train(workplace, size, **options) for _ in range(2))
        found = harness.differences(first, second)
        require(not found, f"{size} ranks, twice: {found}")
        summary.count("repeated runs with the same bytes")


def logs(workplace, summary, _):
    """Rank 0 alone tells of the run; what the others warn of, it warns of too."""
    place = workplace.new("logs")
    outcomes = ranks.run(command(place / "out", max_steps=3), place, Start(4))
    ranks.require_done(outcomes)
    for rank in range(1, 4):
        require(outcomes[rank].log == "", f"rank {rank} logs", outcomes[rank])
    require(any("rank 0: " in warning for warning in outcomes[0].warnings), "rank 0 warns of nothing", outcomes[0])
    summary.count("ranks that were silent", 3)


def other_sizes(workplace, summary, _):
    """The same command with more or fewer ranks continues, and keeps the micro-batches a step of its beginning."""
    for began in (1, 2):
        options = EXACT | {"max_steps": 2 * STEPS, "gradient_accumulation_steps": BATCHES // began}
        whole = train(workplace, began, **options)
        place = workplace.new("begun")
        with Ranks(command(place / "out", **options), place, Start(began)) as running:
            require(running.wait_for_step(5), f"it ended before step 5\n{running.log}")
            running.processes[began - 1].send(signal.SIGTERM)
            stopped = ranks.require_stopped(running.finish(), place / "out")
        for size in (1, 2, 3, 4):
            other = workplace.new("continued")
            shutil.copytree(place / "out", other / "out")
            outcomes = ranks.run(command(other / "out", **options), other, Start(size))
            ranks.require_done(outcomes)
            require(outcomes[0].resumed == stopped, f"it went on from {outcomes[0].resumed}, not {stopped}", outcomes[0])
            what = f"begun by {began}, continued by {size} from step {stopped}"
            found = (ranks.loss_distance(whole, other / "out"), ranks.distance(weights(whole), weights(other / "out")))
            print(f"  {what}: losses {found[0]:.1e}, weights {found[1]:.1e}", flush=True)
            require(found[0] <= LOSS and found[1] <= WEIGHTS, f"{what}: {found}")
            if size == began:
                ranks.require_same(whole, other / "out", outcomes)
            summary.count("runs continued by another number of ranks" if size != began else "runs continued by the same")


if __name__ == "__main__":
    sys.exit(harness.main("ranks_equality", [shares, uneven, full_training, repeated, logs, other_sizes]))
