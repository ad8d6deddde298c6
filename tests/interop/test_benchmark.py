# SPDX-License-Identifier: Apache-2.0
"""`fettle benchmark`: several real processes, each on cores of its own."""

import json
import os

import pytest
from conftest import STORIES260K

COUNTS = {
    "benchmark_warmup": 1,
    "benchmark_iterations": 4,
    "benchmark_input_tokens": 16,
    "benchmark_output_tokens": 6,
}


def run(fettle, **options):
    options = {"bf16": False, "num_threads": 0, **COUNTS, **options}
    done = fettle("benchmark", model_name_or_path=STORIES260K, **options)
    return json.loads(done.stdout), done.stderr


def test_figures_of_one_instance(fettle, tmp_path):
    output = tmp_path / "benchmark.json"
    figures, log = run(fettle, benchmark_batch_size=3, benchmark_output=output)
    assert json.loads(output.read_text()) == figures
    assert figures["instances"] == 1
    assert figures["batch_size"] == 3
    assert figures["machine"]["dtype"] == "float32"
    # 64 x 512 embeddings, tied, and five layers: what the safetensors file holds, in float32
    assert figures["model_bytes"] == sum(
        4 * count for count in (512 * 64, 64, 5 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64 + 2 * 64))
    )
    for latency in (figures["prefill_latency_ms"], figures["decode_latency_ms"]):
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert 0 < latency["mean"] <= latency["p99"] * 2
    # four runs of three sequences, six tokens each
    seconds = 4 * (figures["prefill_latency_ms"]["mean"] + 5 * figures["decode_latency_ms"]["mean"]) / 1e3
    assert figures["tokens_per_second"] == pytest.approx(4 * 3 * 6 / seconds, rel=1e-6)
    assert figures["peak_memory_bytes"] > figures["model_bytes"]
    assert "p99" in log and "tokens a second" in log


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two instances need two cores")
def test_two_instances_share_the_cores(fettle):
    figures, _ = run(fettle, benchmark_num_instances=2, benchmark_cores_per_instance=1)
    each = figures["of_each_instance"]
    assert len(each) == figures["instances"] == 2
    assert figures["cores_per_instance"] == 1
    assert figures["machine"]["threads"] == 1
    for rate in ("tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"):
        assert figures[rate] == pytest.approx(sum(instance[rate] for instance in each))


def test_an_instance_that_fails_says_why_once(fettle, tmp_path):
    done = fettle(
        "benchmark", model_name_or_path=STORIES260K, adapter_name_or_path=tmp_path / "absent", expect=66, **COUNTS
    )
    assert done.stderr.count("error: ") == 1
    assert "absent" in done.stderr
    assert done.stdout == ""


def test_quantized_and_half_precision(fettle):
    full, _ = run(fettle)
    half, _ = run(fettle, bf16=True)
    few, _ = run(fettle, load_in_8bit=True)
    assert half["machine"]["dtype"] == "bfloat16"
    assert half["model_bytes"] * 2 == full["model_bytes"]
    assert few["model_bytes"] < full["model_bytes"]
