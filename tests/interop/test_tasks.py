# SPDX-License-Identifier: Apache-2.0
"""`fettle eval --task_file` against the rules of lm-evaluation-harness 0.4.13, and `--compare` against itself.

The reference here is transformers with the harness's rules written out. Where lm-eval itself is installed (it pins an
older python-dateutil than the reference environment has, so it is not part of it) its own code is compared too.
"""

import importlib.util
import json
import math
import random

import make_adapters
import pytest
import reference
import torch
import transformers
from conftest import REPOSITORY, STORIES260K, read_jsonl

STORIES = REPOSITORY / "examples/data/tinystories_valid_350.jsonl"
ITEMS = 60


def story_items(count=ITEMS):
    """Real stories: how the beginning goes on, in its own words or in those of three others; a few odd ones too."""
    texts = [record["text"] for record in read_jsonl(STORIES)]
    chosen = random.Random(7)
    items = []
    for number in range(count):
        words = texts[number].split(" ")
        cut = min(10 + number, len(words) // 2)
        length = chosen.choice([1, 2, 8])
        ends = [" ".join(words[cut : cut + length])]
        for other in chosen.sample(range(count, len(texts)), 3):
            ends.append(" ".join(texts[other].split(" ")[cut : cut + length]) or "é 東京")
        gold = chosen.randrange(4)
        ends[0], ends[gold] = ends[gold], ends[0]
        items.append({"context": " ".join(words[:cut]) + " ", "choices": ends, "gold": gold})
    items[0]["context"] = ""
    items[1]["context"] = "<s>" + items[1]["context"]
    items[2]["context"] = items[2]["context"].rstrip() + "\n\n \u3000"
    items[3]["context"] = " ".join(texts[3:9]) + " "  # longer than the model reads
    return items


def write_items(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


class Harness:
    """TemplateLM.loglikelihood, HFLM.tok_encode and HFLM._loglikelihood_tokens for one request at a time."""

    def __init__(self, folder, adapter=None):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = reference.load(folder, adapter)
        self.max_length = self.model.config.max_position_embeddings
        bos = self.tokenizer.bos_token_id
        self.prefix = bos if bos is not None else self.tokenizer.eos_token_id

    def encode(self, text, **options):
        if not options and text.startswith(self.tokenizer.decode(self.prefix)):
            options = {"add_special_tokens": False}
        return self.tokenizer.encode(text, **options)

    def encode_pair(self, context, continuation):
        if context == "":
            ids = self.encode(continuation, add_special_tokens=False)
            return ([self.prefix], ids) if ids[0] != self.prefix else (ids[:1], ids[1:])
        spaces = len(context) - len(context.rstrip())
        if spaces > 0:
            continuation = context[-spaces:] + continuation
            context = context[:-spaces]
        before = self.encode(context)
        return before, self.encode(context + continuation)[len(before) :]

    def loglikelihood(self, context, continuation):
        before, after = self.encode_pair(context, continuation)
        inputs = (before + after)[-(self.max_length + 1) :][:-1]
        with torch.no_grad():
            logits = self.model(torch.tensor([inputs])).logits[0, -len(after) :].float().log_softmax(-1)
        targets = torch.tensor(after)
        likelihood = logits.gather(1, targets[:, None]).sum().item()
        return likelihood, bool((logits.argmax(-1) == targets).all())


def mean_and_error(values):
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def expected_results(items, likelihoods):
    """acc, acc_norm and acc_bytes with their errors, as ConfigurableTask.process_results and mean_stderr have them."""
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for item, values in zip(items, likelihoods, strict=True):
        lengths = {
            "acc": [1.0] * len(values),
            "acc_norm": [float(len(choice)) for choice in item["choices"]],
            "acc_bytes": [float(len(choice.encode())) for choice in item["choices"]],
        }
        for name, by in lengths.items():
            scores = [value / length for value, length in zip(values, by, strict=True)]
            right[name].append(float(scores.index(max(scores)) == item["gold"]))
    results = {"items": len(items)}
    for name, values in right.items():
        results[name], results[f"{name}_stderr"] = mean_and_error(values)
    return results


def run_task(fettle, tmp_path, items, **options):
    """What `fettle eval` prints of the task, its lines, and its log."""
    done = fettle(
        "eval",
        task_file=write_items(tmp_path / "task.jsonl", items),
        task_output=tmp_path / "items.jsonl",
        bf16=False,
        **options,
    )
    return json.loads(done.stdout), read_jsonl(tmp_path / "items.jsonl"), done.stderr


def assert_equal_scores(printed, lines, items, expected):
    assert [line["gold"] for line in lines] == [item["gold"] for item in items]
    for line, scores in zip(lines, expected, strict=True):
        assert line["log_likelihoods"] == pytest.approx([score for score, _ in scores], abs=2e-4, rel=1e-5)
        assert line["is_greedy"] == [greedy for _, greedy in scores]
    results = expected_results(items, [[score for score, _ in scores] for scores in expected])
    assert printed["task"] == pytest.approx(results, rel=1e-9)
    assert 0 < printed["task"]["acc"] < 1, "a task that says something"


@pytest.mark.parametrize("adapted", [False, True])
def test_task_equals_the_harness_on_transformers(fettle, tmp_path, adapted):
    items = story_items()
    adapter = make_adapters.make("rslora", STORIES260K, tmp_path / "adapter") if adapted else None
    options = {"adapter_name_or_path": adapter} if adapted else {}
    printed, lines, log = run_task(fettle, tmp_path, items, model_name_or_path=STORIES260K, **options)
    harness = Harness(STORIES260K, adapter)
    expected = [[harness.loglikelihood(item["context"], choice) for choice in item["choices"]] for item in items]
    assert_equal_scores(printed, lines, items, expected)
    assert "4 choices lose their beginning" in log


def test_task_with_a_tokenizer_without_bos_and_in_any_batch(fettle, tmp_path, tiny_models):
    """llama3-style: byte-level, BOS added by its post-processor."""
    items = story_items(12)
    items[1]["context"] = items[1]["context"].removeprefix("<s>")
    items[3]["context"] = items[4]["context"]
    folder = tiny_models("llama3")
    harness = Harness(folder)
    expected = [[harness.loglikelihood(item["context"], choice) for choice in item["choices"]] for item in items]
    for batch in (1, 16):
        printed, lines, _ = run_task(
            fettle,
            tmp_path,
            items,
            model_name_or_path=folder,
            per_device_eval_batch_size=batch,
            max_seq_length=64,
        )
        assert_equal_scores(printed, lines, items, expected)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval 0.4.13 is not installed")
def test_task_equals_lm_eval_itself(fettle, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    items = story_items()
    printed, lines, _ = run_task(fettle, tmp_path, items, model_name_or_path=STORIES260K)
    task = {
        "task": "stories",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "task.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes")],
    }
    model = HFLM(pretrained=reference.load(STORIES260K), tokenizer=str(STORIES260K), batch_size=1)
    done = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0, log_samples=True)
    theirs = done["results"]["stories"]
    for sample in done["samples"]["stories"]:
        scores = [response[0] for response in sample["filtered_resps"]]
        assert lines[sample["doc_id"]]["log_likelihoods"] == pytest.approx(scores, abs=2e-4, rel=1e-5)
        assert lines[sample["doc_id"]]["is_greedy"] == [response[1] for response in sample["filtered_resps"]]
    for name in ("acc", "acc_norm", "acc_bytes"):
        assert printed["task"][name] == pytest.approx(theirs[f"{name},none"], rel=1e-9)


def test_compare_gives_each_model_its_own_numbers(fettle, write_jsonl, tmp_path):
    adapter = make_adapters.make("all_linear", STORIES260K, tmp_path / "adapter")
    options = {
        "model_name_or_path": STORIES260K,
        "validation_file": write_jsonl("validation.jsonl", read_jsonl(STORIES)[:8]),
        "task_file": write_items(tmp_path / "task.jsonl", story_items(12)),
        "bf16": False,
    }
    base = json.loads(fettle("eval", **options).stdout)
    adapted = json.loads(fettle("eval", adapter_name_or_path=adapter, **options).stdout)
    models = json.loads(fettle("eval", f"--compare={adapter}", **options).stdout)["models"]
    assert [model["name"] for model in models] == [str(STORIES260K), str(adapter)]
    for model, alone in zip(models, (base, adapted), strict=True):
        assert model["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
        assert model["task"] == alone["task"]
    assert models[1]["perplexity_ratio"] == pytest.approx(adapted["perplexity"] / base["perplexity"], rel=1e-5)
