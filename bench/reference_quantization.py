# SPDX-License-Identifier: Apache-2.0
"""gptqmodel quantizes a model on a CPU, in a process of its own.

    python bench/reference_quantization.py MODEL ROWS.jsonl OUTPUT ALGORITHM BITS GROUP SCHEME

ALGORITHM: rtn, gptq, awq; SCHEME: sym, asym; otherwise gptqmodel's own defaults. Prints one JSON line: the seconds that
the quantization took, loading and saving left out. OMP_NUM_THREADS decides the threads.
"""

import json
import os
import pathlib
import sys
import time

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # or it compiles for each shape
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", os.environ.get("OMP_NUM_THREADS", "1"))
sys.path.insert(0, str(pathlib.Path(sys.executable).parent.parent / "loaders"))

import gptqmodel
import torch
from gptqmodel.quantization import config


def settings(algorithm, bits, group, scheme):
    common = {"bits": int(bits), "group_size": int(group), "sym": scheme == "sym", "offload_to_disk": False}
    if algorithm == "awq":
        return config.AWQConfig(**common)
    return config.RTNConfig(**common) if algorithm == "rtn" else config.GPTQConfig(**common)


def main(model_folder, rows_file, output, algorithm, *options):
    model_folder, output = (str(pathlib.Path(path).resolve()) for path in (model_folder, output))
    with open(rows_file) as lines:
        rows = [json.loads(line)["input_ids"] for line in lines]
    os.chdir(pathlib.Path(output).parent)  # it writes logs into the folder that it is run in
    calibration = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    model = gptqmodel.GPTQModel.load(
        model_folder, settings(algorithm, *options), device="cpu", dtype=torch.bfloat16
    )
    start = time.perf_counter()
    model.quantize(None if algorithm == "rtn" else calibration, batch_size=1)
    seconds = time.perf_counter() - start
    model.save(output)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
