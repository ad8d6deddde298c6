# SPDX-License-Identifier: Apache-2.0
"""`fettle eval` and `fettle generate` against transformers, and what must not change the numbers of a run."""

import copy
import json
import math

import make_adapters
import make_models
import pytest
import reference
import safetensors.torch
import torch
import trainers
import transformers
from conftest import REPOSITORY, STORIES260K, read_jsonl

STORIES = REPOSITORY / "examples/data/tinystories_valid_350.jsonl"
# What llama2.c documents for this model, started with "Once upon a time".
KNOWN_TEXT = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. "
    "She wanted to play with it, but it was too high."
)


def stories(count):
    """Real text as pre-tokenised records: the first half of each is the prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES260K)
    records = []
    for record in read_jsonl(STORIES)[:count]:
        ids = tokenizer(record["text"])["input_ids"][:384]
        prompt = len(ids) // 2
        records.append({"input_ids": ids, "labels": [reference.IGNORE] * prompt + ids[prompt:]})
    return records


def run_eval(fettle, tmp_path, **options):
    """What `fettle eval` prints, its lines per record and its logits."""
    files = {"per_record": tmp_path / "records.jsonl", "logits_file": tmp_path / "logits.safetensors"}
    done = fettle("eval", dataset_format="tokenized", bf16=False, max_seq_length=512, **files, **options)
    printed = json.loads(done.stdout)
    return printed, read_jsonl(files["per_record"]), safetensors.torch.load_file(files["logits_file"])


@pytest.mark.parametrize("adapted", [False, True])
def test_eval_equals_transformers(fettle, write_jsonl, tmp_path, adapted):
    data = stories(12)
    adapter = make_adapters.make("all_linear", STORIES260K, tmp_path / "adapter") if adapted else None
    model = reference.load(STORIES260K, adapter)
    options = {"adapter_name_or_path": adapter} if adapted else {}
    printed, lines, logits = run_eval(
        fettle,
        tmp_path,
        model_name_or_path=STORIES260K,
        validation_file=write_jsonl("validation.jsonl", data),
        **options,
    )
    assert [line["record"] for line in lines] == list(range(len(data)))
    exact_model = copy.deepcopy(model).double()
    errors, their_errors = [], []
    total = targets = 0
    for number, record in enumerate(data):
        document = reference.Document(**record)
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([document.input_ids])).logits[0]
            exact = exact_model(input_ids=torch.tensor([document.input_ids])).logits[0]
        errors.append((logits[f"record.{number}"] - exact).abs().max().item())
        their_errors.append((theirs - exact).abs().max().item())
        loss = torch.nn.functional.cross_entropy(theirs[:-1], torch.tensor(document.labels[1:])).item()
        assert lines[number]["loss"] == pytest.approx(loss, rel=1e-5)
        assert lines[number]["target_tokens"] == document.targets()
        total += loss * document.targets()
        targets += document.targets()
    # A random adapter on a trained model amplifies rounding: transformers in float32 itself ends up to 2e-4 from float64.
    assert max(errors) <= (1.5 * max(their_errors) if adapted else 1e-4)
    assert printed["records"] == len(data)
    assert printed["target_tokens"] == targets
    assert printed["eval_loss"] == pytest.approx(total / targets, rel=1e-5)
    assert printed["perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-4)


def generate_theirs(folder, prompt, adapter=None, **options):
    """The text that transformers continues `prompt` with, special tokens left out."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    model = reference.load(folder, adapter)
    with torch.no_grad():
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def generate_ours(fettle, folder, prompt, **options):
    """What `fettle generate` prints, without the newline at the end."""
    done = fettle("generate", model_name_or_path=folder, prompt=prompt, raw_prompt=True, bf16=False, **options)
    assert done.stdout.endswith("\n")
    return done.stdout[:-1]


def test_stories260k_tells_the_known_story(fettle):
    ours = generate_ours(fettle, STORIES260K, "Once upon a time", max_new_tokens=100)
    assert ours.startswith(KNOWN_TEXT)
    assert ours == generate_theirs(STORIES260K, "Once upon a time", max_new_tokens=100)


def test_stories260k_stops_where_its_story_ends(fettle):
    theirs = generate_theirs(STORIES260K, "Once upon a time", max_new_tokens=500)
    assert len(theirs) < 1200, "the model ends its story long before 500 tokens"
    assert generate_ours(fettle, STORIES260K, "Once upon a time", max_new_tokens=500) == theirs


def test_repetition_penalty(fettle):
    options = {"max_new_tokens": 60, "repetition_penalty": 1.3}
    theirs = generate_theirs(STORIES260K, "Lily and Tom went to the park", **options)
    assert theirs != generate_theirs(STORIES260K, "Lily and Tom went to the park", max_new_tokens=60)
    assert generate_ours(fettle, STORIES260K, "Lily and Tom went to the park", **options) == theirs


@pytest.mark.parametrize("family", make_models.FAMILIES)
def test_greedy_text_of_each_family(fettle, tiny_models, family):
    """48 tokens: far past the windows of 16, and past the length at which the dynamic rope begins to change."""
    prompt = "Tom saw a big dog in the garden"
    theirs = generate_theirs(tiny_models(family), prompt, max_new_tokens=48)
    assert generate_ours(fettle, tiny_models(family), prompt, max_new_tokens=48) == theirs


def test_greedy_text_with_an_adapter(fettle, tiny_models, tmp_path):
    model = tiny_models("qwen3")
    adapter = make_adapters.make("rslora", model, tmp_path / "adapter")
    theirs = generate_theirs(model, "One day", adapter, max_new_tokens=32)
    assert theirs != generate_theirs(model, "One day", max_new_tokens=32)
    assert generate_ours(fettle, model, "One day", max_new_tokens=32, adapter_name_or_path=adapter) == theirs


@pytest.mark.parametrize("stops", [["ball"], ["big, r", "zebra"], [" she", " play"], ["ll"]])
def test_stop_strings(fettle, stops):
    """transformers keeps what its last token holds after the stop string; the text that is printed ends with it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(STORIES260K)
    options = {"stop_strings": stops, "tokenizer": tokenizer, "max_new_tokens": 100}
    theirs = generate_theirs(STORIES260K, "Once upon a time", **options)
    end = min(theirs.find(stop) + len(stop) for stop in stops if stop in theirs)
    assert len(theirs) - end < 8, "they have ended with that token"
    ours = generate_ours(fettle, STORIES260K, "Once upon a time", max_new_tokens=100, stop_strings=stops)
    assert ours == theirs[:end]


@pytest.mark.parametrize("family", ["llama3", "mistral", "qwen3"])
def test_a_file_of_prompts(fettle, tiny_models, write_jsonl, tmp_path, family):
    """20 prompts in batches of 8, of lengths on both sides of the window: what transformers says to each alone."""
    words = "Tom saw a big dog in the garden and it ran to him so he was very happy all day long".split()
    prompts = [" ".join(words[i % 7 : i % 7 + 1 + i * 5 % 13]) for i in range(20)]
    output = tmp_path / "answers.jsonl"
    file = write_jsonl("prompts.jsonl", [{"prompt": prompt} for prompt in prompts])
    options = {"max_new_tokens": 24, "raw_prompt": True, "bf16": False}
    fettle("generate", model_name_or_path=tiny_models(family), prompts_file=file, output=output, **options)
    answers = read_jsonl(output)
    assert [answer["prompt"] for answer in answers] == prompts
    for answer in answers:
        assert answer["answer"] == generate_theirs(tiny_models(family), answer["prompt"], max_new_tokens=24)


def test_sampling_follows_the_seed(fettle):
    def text(**options):
        return generate_ours(fettle, STORIES260K, "Once upon a time", max_new_tokens=60, do_sample=True, **options)

    assert text(seed=1) == text(seed=1)
    assert text(seed=1) != text(seed=2)
    assert text(seed=1, top_k=1) == generate_theirs(STORIES260K, "Once upon a time", max_new_tokens=60)


@pytest.fixture
def losses(fettle, write_jsonl, tmp_path):
    """Trains stories260K on 16 real records and returns the lines of metrics.jsonl."""
    file = write_jsonl("train.jsonl", stories(16))

    def run(name, **options):
        settings = trainers.Settings(max_steps=options.pop("max_steps"), warmup_steps=1, learning_rate=1e-3)
        model = {"model_name_or_path": STORIES260K, "max_seq_length": 512, "train_file": file, "seed": 7}
        return trainers.train_ours(fettle, settings, tmp_path / name, **model, **options)

    return run


def assert_same_run(one, other):
    assert len(one) == len(other) > 0
    for mine, their in zip(one, other, strict=True):
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(their[key], rel=1e-6), f"{key} of step {mine['step']}"
        assert mine["target_tokens"] == their["target_tokens"]


@pytest.mark.parametrize("trained", [{"lora_r": 4}, {"use_peft": False}])
def test_accumulation_changes_nothing(losses, trained):
    def run(rows, steps):
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        return losses(f"{rows}x{steps}", shuffle=True, max_steps=4, **options, **trained)

    whole = run(8, 1)
    assert_same_run(run(1, 8), whole)
    assert_same_run(run(2, 4), whole)


def test_packing_changes_nothing(losses):
    """A step holds all 16 records in either case: as 16 rows, or packed into fewer rows of 512 tokens."""
    options = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 3, "lora_r": 4}
    assert_same_run(losses("packed", packing=True, **options), losses("unpacked", packing=False, **options))


@pytest.mark.parametrize("bf16", [False, True])
def test_checkpointing_changes_no_bit(losses, bf16):
    def run(checkpointing):
        lines = losses(f"{checkpointing}", gradient_checkpointing=checkpointing, bf16=bf16, max_steps=3, lora_r=4)
        return [(line["loss"], line["grad_norm"]) for line in lines]

    assert run(True) == run(False)
