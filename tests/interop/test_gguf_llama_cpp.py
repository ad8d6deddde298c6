# SPDX-License-Identifier: Apache-2.0
"""llama.cpp on the files of `fettle export`: probabilities, stories, tokens, chats and adapters are Fettle's."""

import json
import shutil
import unicodedata

import make_adapters
import make_models
import numpy
import pytest
import reference
import torch
import transformers
from conftest import REPOSITORY, STORIES260K, read_jsonl
from gguf_support import BLOCKS, FAMILIES, export, fields, model_of, variant  # noqa: F401
from llama_cpp import LlamaCpp

GOLDEN_TOKENS = json.loads((REPOSITORY / "tests/golden/text/tokens.json").read_text())
PROMPTS = ["Once upon a time", "Tom and Lily went to the", "The dog was very", "One day, a little bird", "She said, \"I"]


# ---------------------------------------------------------------------------------------------------------------------
# Models


def next_log_probabilities(folder, ids, adapter=None):
    with torch.no_grad():
        return reference.load(folder, adapter)(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def prompt_of(folder, length, adapter=None):
    """Ids after which the likeliest token is whole text: of others llama.cpp tells no probabilities. And what follows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    for seed in range(20):
        ids = numpy.random.default_rng(seed).integers(3, min(vocabulary, 3968), length).tolist()
        expected = next_log_probabilities(folder, ids, adapter)
        text = tokenizer.decode([expected.argmax().item()], skip_special_tokens=True)
        if text and "\N{REPLACEMENT CHARACTER}" not in text:
            return ids, expected
    raise AssertionError("every answer is empty")


# Largest difference of log-probabilities, whose standard deviation is 1. llama.cpp rounds activations, too, before it
# multiplies them by a matrix of fewer bits.
NEAR = {"f32": 2e-5, "f16": 2e-2, "bf16": 0.2}


@pytest.mark.parametrize("kind", NEAR)
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_the_same(export, tiny_models, family, kind):
    folder = tiny_models(family)
    ids, expected = prompt_of(folder, 14)  # within mistral's window
    with LlamaCpp(export(folder, kind)) as model:
        found = torch.tensor(model.log_probabilities(ids, len(expected)))
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR[kind])


@pytest.mark.parametrize("attention", [{"attention_factor": 0.7}, {"mscale": 1.0, "mscale_all_dim": 0.5}])
def test_llama_cpp_applies_yarns_attention_factor(export, tiny_models, variant, attention):
    config = json.loads((tiny_models("llama_yarn") / "config.json").read_text())
    folder = variant(tiny_models("llama_yarn"), rope_scaling=config["rope_scaling"] | attention)
    ids, expected = prompt_of(folder, 40)
    with LlamaCpp(export(folder)) as model:
        found = torch.tensor(model.log_probabilities(ids, len(expected)))
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR["f32"])


def greedy(fettle, prompt, count, **options):
    done = fettle("generate", model_name_or_path=STORIES260K, prompt=prompt, raw_prompt=True, max_new_tokens=count, bf16=False,
                  num_threads=1, **options)  # fmt: skip
    return done.stdout.removesuffix("\n")


@pytest.fixture(scope="session")
def stories(fettle):
    """Prompt → what Fettle tells after it, in 128 tokens."""
    return {prompt: greedy(fettle, prompt, 128) for prompt in PROMPTS}


def told(text):
    """An answer as transformers and Fettle write it: without the space in its first token."""
    return text.removeprefix(" ")


@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_llama_cpp_tells_the_same_stories(export, stories, kind):
    with LlamaCpp(export(STORIES260K, kind)) as model:
        for prompt, expected in stories.items():
            text, ids = model.answer(prompt, 128)
            assert len(ids) >= 64
            assert told(text) == expected, prompt


def test_llama_cpp_ends_a_story_where_fettle_does(fettle, export):
    with LlamaCpp(export(STORIES260K), context=2048) as model:
        text, ids = model.answer("Once upon a time", 450)
    assert len(ids) < 450
    assert told(text) == greedy(fettle, "Once upon a time", 450)


@pytest.mark.parametrize("kind", BLOCKS)
def test_llama_cpp_loads_every_block_type(export, kind):
    with LlamaCpp(export(STORIES260K, kind)) as model:
        text, ids = model.answer("Once upon a time", 48)
    assert text.startswith(", there was a little") and len(ids) == 48


# ---------------------------------------------------------------------------------------------------------------------
# Tokens


def is_beyond_llama_cpp(name, text):
    """Texts that llama.cpp splits in its own way, whatever the file says."""
    spelled = any(token in text for token in ("<s>", "</s>", "[INST]", "[TOOL_CALLS]"))
    if name in ("llama2", "mistral-v3", "stories260K"):
        # One space more before a text that begins with one, and after special tokens.
        return spelled or text.startswith((" ", "▁"))
    # Qwen's text in NFC; its ordinary token </s> ends an answer there.
    return name == "qwen3" and (spelled or unicodedata.normalize("NFC", text) != text)


@pytest.mark.parametrize("name", list(GOLDEN_TOKENS["tokenizers"]))
def test_llama_cpp_splits_texts_alike(export, model_of, name, tmp_path):
    """Against what transformers makes of these texts, and Fettle (tests/text)."""
    folder = model_of(name)
    if name == "mistral-v3":  # with a chat template no space is put before a text
        folder = shutil.copytree(folder, tmp_path / name)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": None}))
    compared = 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with LlamaCpp(export(folder, "f16")) as model:
        for text, case in zip(GOLDEN_TOKENS["strings"], GOLDEN_TOKENS["tokenizers"][name]["cases"], strict=True):
            if not is_beyond_llama_cpp(name, text):
                assert model.tokens(text) == case["ids"], text
                compared += 1
        for record in read_jsonl(REPOSITORY / "examples/data/tinystories_valid_350.jsonl")[:20]:
            assert model.tokens(record["text"]) == tokenizer(record["text"])["input_ids"]
    assert compared >= 120


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(("pre", "name"), [("smollm", "smollm2"), ("smaug-bpe", "llama3-style-4k"), ("tekken", "llama3-style-4k")])
def test_llama_cpp_knows_the_other_splits(export, model_of, tmp_path, pre, name):
    folder = shutil.copytree(model_of(name), tmp_path / pre)
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text())
    definition["model"]["ignore_merges"] = pre == "tekken"
    if pre == "tekken":
        definition["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": TEKKEN}
    path.write_text(json.dumps(definition))
    path = folder / "tokenizer_config.json"  # of a class that transformers loads as the file says
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    file = export(folder, "f16")
    assert fields(file)["tokenizer.ggml.pre"] == pre
    with LlamaCpp(file) as model:
        for text in GOLDEN_TOKENS["strings"]:
            assert model.tokens(text) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("name", ["smollm2", "llama3-style-4k", "qwen3", "mistral-v3"])
def test_llama_cpp_reads_chats_alike(export, model_of, name):
    """The template in the file, rendered and split by llama.cpp, gives the tokens that Fettle trains with."""
    messages = [{"role": "user", "content": "Hello, who are you?"}, {"role": "assistant", "content": "A model."},
                {"role": "user", "content": "What is 12 + 30? Über 3.14!"}]  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_of(name))
    settings = {"date_string": "1 Jan 2024", "enable_thinking": False}
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False, **settings)
    with LlamaCpp(export(model_of(name), "f16"), context=256) as model:
        prompt = model.post("/apply-template", messages=messages, chat_template_kwargs=settings)["prompt"]
        assert model.tokens(prompt) == expected


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


@pytest.mark.parametrize("name", ["attention", "all_linear", "rslora", "regex"])
@pytest.mark.parametrize("family", ["llama2", "llama3", "qwen2", "qwen3", "mistral"])
def test_llama_cpp_applies_the_adapter(export, tiny_models, tmp_path, family, name):
    folder = tiny_models(family)
    adapter = make_adapters.make(name, folder, tmp_path / "adapter")
    file = export(folder, "f32", adapter_name_or_path=adapter)
    ids, expected = prompt_of(folder, 14, adapter)
    with LlamaCpp(export(folder), adapters=[file]) as model:
        found = torch.tensor(model.log_probabilities(ids, len(expected)))
    torch.testing.assert_close(found, expected, rtol=0, atol=NEAR["f32"])
    assert (next_log_probabilities(folder, ids) - expected).abs().max() > 100 * NEAR["f32"]


def test_llama_cpp_continues_with_a_trained_adapter(fettle, export, tmp_path):
    adapter = tmp_path / "trained"
    fettle("train", model_name_or_path=STORIES260K, output_dir=adapter, max_steps=12, learning_rate=5e-3, bf16=False,
           train_file=REPOSITORY / "examples/data/tinystories_valid_350.jsonl", max_train_samples=40,
           per_device_train_batch_size=4, max_seq_length=128, save_strategy="no")  # fmt: skip
    file = export(STORIES260K, "f16", adapter_name_or_path=adapter)
    with LlamaCpp(export(STORIES260K, "f32"), adapters=[file]) as model:
        for prompt in PROMPTS[:3]:
            text, _ = model.answer(prompt, 64)
            assert told(text) == greedy(fettle, prompt, 64, adapter_name_or_path=adapter), prompt
