# SPDX-License-Identifier: Apache-2.0
"""Tokens and targets of real records: `fettle preprocess` against the dataset that TRL's SFTTrainer prepares.

Equality is exact, id for id and label for label. Only what a record means is written twice (the alpaca text below);
templates, BOS and EOS, masks and truncation are TRL's and transformers' own.
"""

import itertools
import json
import random
import shutil

import datasets
import pytest
import transformers
import trl
from conftest import DATASETS, REPOSITORY, STORIES260K, read_jsonl
from marked_templates import marked

FAMILIES = ["llama2", "smollm2", "llama3-style-4k", "qwen3", "mistral-v3"]
CHAT_FAMILIES_WITH_TOOLS = ["qwen3"]
IGNORE = -100

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def alpaca_records():
    """540 records of three kinds: short answers, medical prose, tables; with and without input."""
    medical = json.loads((REPOSITORY / "examples/data/medical_meadow_wikidoc_patient_2000.json").read_text())
    tables = json.loads((DATASETS / "tatqa_dev_alpaca_1000.json").read_text())
    chosen = read_jsonl(DATASETS / "dolly_finqa_500.jsonl")[::2] + medical[::12] + tables[::8]
    return [
        {key: record.get(key) or "" for key in ("instruction", "input", "output")}
        for record in chosen
        if record["output"].strip()
    ]


def conversations():
    """160 chats of two to ten turns."""
    chats = [record["messages"] for record in read_jsonl(DATASETS / "oasst_en_chat_messages_60.jsonl")]
    roles = {"human": "user", "gpt": "assistant"}
    for record in json.loads((DATASETS / "fastchat_dummy_sharegpt_400.json").read_text())[::4]:
        chats.append([{"role": roles[turn["from"]], "content": turn["value"]} for turn in record["conversations"]])
    return chats


def alpaca_pairs(records):
    """The records as TRL takes them when the alpaca text is written out."""
    return [
        {"prompt": (WITH_INPUT if record["input"] else WITHOUT_INPUT).format(**record), "completion": record["output"]}
        for record in records
    ]


class Trl:
    """What SFTTrainer makes of records; the model is only there because it wants one."""

    def __init__(self, folder, output):
        self.folder = folder
        self.output = output
        config = transformers.LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        self.model = transformers.LlamaForCausalLM(config)

    def prepare(self, records, chat_template=None, **settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
        if chat_template:
            tokenizer.chat_template = chat_template
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        arguments = trl.SFTConfig(
            output_dir=str(self.output), report_to="none", use_cpu=True, bf16=False, shuffle_dataset=False, **settings
        )
        trainer = trl.SFTTrainer(
            model=self.model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=tokenizer,
        )
        return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


@pytest.fixture
def reference(tokenizer_folders, tmp_path):
    return lambda family: Trl(tokenizer_folders[family], tmp_path / "trl")


@pytest.fixture
def preprocess(fettle, tokenizer_folders, tmp_path):
    """`preprocess("llama2", file, prompt_template=…)` → [(input_ids, labels)]."""

    number = itertools.count()

    def run(family, file, **options):
        output = tmp_path / f"documents-{next(number)}.jsonl"
        fettle(
            "preprocess",
            model_name_or_path=STORIES260K,
            tokenizer_name=tokenizer_folders[family],
            train_file=file,
            output=output,
            **{"max_seq_length": 4096, "preprocessing_num_workers": 2, **options},
        )
        return [(line["input_ids"], line["labels"]) for line in read_jsonl(output)]

    return run


def assert_same(ours, theirs, at_least):
    assert len(ours) == len(theirs) >= at_least
    for number, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
        assert mine[0] == their[0], f"tokens of document {number}"
        assert mine[1] == their[1], f"targets of document {number}"
    targets = sum(label != IGNORE for _, labels in theirs for label in labels)
    assert targets > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_alpaca_template(family, reference, preprocess, write_jsonl):
    records = alpaca_records()
    theirs = reference(family).prepare(alpaca_pairs(records), max_length=4096)
    ours = preprocess(family, write_jsonl("alpaca.jsonl", records), prompt_template="alpaca")
    assert_same(ours, theirs, 500)


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_template(family, reference, preprocess, write_jsonl):
    records = alpaca_records()
    pairs = [
        {
            "prompt": [{"role": "user", "content": r["instruction"] + ("\n\n" + r["input"] if r["input"] else "")}],
            "completion": [{"role": "assistant", "content": r["output"]}],
        }
        for r in records
    ]
    theirs = reference(family).prepare(pairs, max_length=4096)
    ours = preprocess(family, write_jsonl("chat.jsonl", records))
    assert_same(ours, theirs, 500)
    assert_same(preprocess(family, write_jsonl("pairs.jsonl", pairs)), theirs, 500)


@pytest.fixture
def assert_turns(reference, preprocess, write_jsonl, tokenizer_folders):
    """Compares the targets of conversations, each a list of messages, with TRL's, which needs a marked template."""

    def compare(family, conversations, least):
        chats = [{"messages": messages} for messages in conversations]
        template = json.loads((tokenizer_folders[family] / "tokenizer_config.json").read_text())["chat_template"]
        theirs = reference(family).prepare(
            chats, chat_template=marked(family, template), assistant_only_loss=True, max_length=4096
        )
        assert_same(preprocess(family, write_jsonl("messages.jsonl", chats)), theirs, least)

    return compare


@pytest.mark.parametrize("family", FAMILIES)
def test_every_assistant_turn(family, assert_turns):
    assert_turns(family, conversations(), 160)


WORDS = ["end", "a", "user", "assistant", "im_start", "yes ", "line\n\nend\n", "<p>x\n<p>y", "é日本🙂", "1", " no"]
RESPONSE = "<tool_response>\nend\n</tool_response>"


def thoughtful_conversations():
    """Chats whose answers hold thoughts, which Qwen3 cuts up, and lines that are also part of the template."""
    generator = random.Random(0)

    def answer():
        thought = generator.choice(["<think>\n{}\n</think>\n\n", "<think>\n\n</think>\n\n", "{}</think>", "", ""])
        return thought.format(generator.choice(WORDS)) + generator.choice(WORDS)

    def turns():
        question = generator.choice([*WORDS, RESPONSE])
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer()}]

    chats = []
    for _ in range(200):
        system = [{"role": "system", "content": generator.choice(WORDS)}] if generator.random() < 0.3 else []
        first = [{"role": "user", "content": generator.choice(WORDS)}, {"role": "assistant", "content": answer()}]
        chats.append(system + first + sum((turns() for _ in range(generator.randint(0, 3))), []))
    ruby = "<think>\nEasy.\n</think>\n\ndef add(a, b)\n  a + b\nend"
    contents = ["Write a Ruby method that adds.", ruby, "Thanks!", "You are welcome."]
    roles = ["user", "assistant"] * 2
    return [*chats, [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]]


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts(family, assert_turns):
    assert_turns(family, thoughtful_conversations(), 200)


@pytest.mark.parametrize("family", ["qwen3", "smollm2"])
def test_forged_tokens_are_text(family, preprocess, write_jsonl, tokenizer_folders):
    """The same chats with and without <|im_end|> in contents and roles: the template's own tokens stay, and no other."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders[family])
    specials = set(tokenizer.all_special_ids)
    chats = thoughtful_conversations()
    forged = [
        [{**message, "content": message["content"] + "<|im_end|>\n<|im_start|>end"} for message in chat] for chat in chats
    ]
    files = [write_jsonl(name, [{"messages": chat} for chat in c]) for name, c in [("a.jsonl", chats), ("b.jsonl", forged)]]
    clean, disarmed = (preprocess(family, file) for file in files)
    for (ids, _), (forged_ids, labels), chat in zip(clean, disarmed, forged, strict=True):
        assert [t for t in ids if t in specials] == [t for t in forged_ids if t in specials]
        assert tokenizer.decode(forged_ids) == tokenizer.apply_chat_template(chat, tokenize=False)
        assert any(label in specials for label in labels)


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_training_templates_of_trl(family, reference, preprocess, write_jsonl):
    folder = {"qwen3": "qwen3", "llama3": "llama3-style-4k"}[family]
    path = trl.chat_template_utils._CHAT_TEMPLATES_DIR / f"{family}_training.jinja"
    chats = [{"messages": messages} for messages in conversations()]
    theirs = reference(folder).prepare(
        chats, chat_template=path.read_text(), assistant_only_loss=True, max_length=4096
    )
    assert_same(preprocess(folder, write_jsonl("messages.jsonl", chats), prompt_template=path), theirs, 160)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_truncation_and_whole_loss(family, reference, preprocess, write_jsonl):
    texts = read_jsonl(DATASETS / "mlx_wikisql_valid.jsonl") + read_jsonl(
        REPOSITORY / "examples/data/tinystories_valid_350.jsonl"
    )
    file = write_jsonl("text.jsonl", texts)
    theirs = reference(family).prepare(texts, max_length=64)
    ours = preprocess(family, file, max_seq_length=64, packing=False)
    assert_same(ours, theirs, 450)
    assert max(len(ids) for ids, _ in ours) == 64


def test_truncated_prompts_are_dropped(reference, preprocess, write_jsonl):
    records = alpaca_records()
    theirs = reference("smollm2").prepare(alpaca_pairs(records), max_length=128)
    ours = preprocess("smollm2", write_jsonl("alpaca.jsonl", records), prompt_template="alpaca", max_seq_length=128)
    assert_same(ours, theirs, 100)
    assert len(ours) < len(records)


def test_pieces_of_bfd_split(reference, preprocess, write_jsonl):
    texts = read_jsonl(REPOSITORY / "examples/data/tinystories_valid_350.jsonl")
    theirs = reference("smollm2").prepare(texts, max_length=4096)
    ours = preprocess("smollm2", write_jsonl("text.jsonl", texts), max_seq_length=32, packing_strategy="bfd_split")
    pieces = [
        (ids[begin : begin + 32], labels[begin : begin + 32])
        for ids, labels in theirs
        for begin in range(0, len(ids), 32)
        if len(ids) - begin > 1  # one token alone predicts nothing
    ]
    assert_same(ours, pieces, 1000)


def test_tokenized_records(reference, preprocess, write_jsonl):
    rows = [
        {"input_ids": list(range(5 + n, 25 + n)), "completion_mask": [int(t > n) for t in range(20)]} for n in range(10)
    ]
    theirs = reference("smollm2").prepare(rows, completion_only_loss=True)
    assert_same(preprocess("smollm2", write_jsonl("ids.jsonl", rows)), theirs, 10)


@pytest.mark.parametrize("family", CHAT_FAMILIES_WITH_TOOLS)
def test_tool_calls(family, reference, preprocess, tokenizer_folders):
    file = DATASETS / "glaive_toolcall_sharegpt_200.json"
    template = json.loads((tokenizer_folders[family] / "tokenizer_config.json").read_text())["chat_template"]
    rows = [tool_conversation(record) for record in json.loads(file.read_text())]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders[family])
    ours = preprocess(family, file, max_seq_length=8192)
    assert len(ours) == len(rows) == 200
    for (ids, labels), (messages, tools) in zip(ours, rows, strict=True):
        theirs = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=marked(family, template),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert ids == theirs["input_ids"]
        assert [label != IGNORE for label in labels] == [bit == 1 for bit in theirs["assistant_masks"]]


def as_transformers(folder, record, **settings):
    """The ids of a record that is a target as a whole."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer.apply_chat_template(record["messages"], tools=record.get("tools"), **settings)["input_ids"]


WEATHER_CHAT = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "abc123def",
                "type": "function",
                "function": {"name": "get_weather", "arguments": {"city": "Oslo"}},
            }
        ],
    },
    {"role": "tool", "content": "4", "tool_call_id": "abc123def"},
    {"role": "assistant", "content": "4 degrees"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]


def test_a_template_that_is_strict_about_calls(preprocess, write_jsonl, tokenizer_folders):
    template = REPOSITORY / "tests/golden/text/templates/mistral_tools.jinja"
    records = [{"messages": WEATHER_CHAT}, {"messages": WEATHER_CHAT, "tools": TOOLS}]
    ours = preprocess("mistral-v3", write_jsonl("calls.jsonl", records), prompt_template=template)
    for (ids, labels), record in zip(ours, records, strict=True):
        theirs = as_transformers(tokenizer_folders["mistral-v3"], record, chat_template=template.read_text())
        assert ids == theirs
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folders["mistral-v3"])
        targets = tokenizer.decode([label for label in labels if label != IGNORE])
        assert "get_weather" in targets and targets.endswith("4 degrees</s>")


@pytest.mark.parametrize("in_files", [False, True])
def test_the_tool_use_template(in_files, fettle, write_jsonl, tokenizer_folders, tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_folders["smollm2"], folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    default = config["chat_template"]
    for_tools = "TOOLS {{ tools | length }}\n" + default
    if in_files:
        del config["chat_template"]
        (folder / "chat_template.jinja").write_text(default)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/tool_use.jinja").write_text(for_tools)
    else:
        config["chat_template"] = [
            {"name": "default", "template": default},
            {"name": "tool_use", "template": for_tools},
        ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    records = [{"messages": messages}, {"messages": messages, "tools": TOOLS}]
    fettle(
        "preprocess",
        model_name_or_path=STORIES260K,
        tokenizer_name=folder,
        train_file=write_jsonl("tools.jsonl", records),
        output=tmp_path / "out.jsonl",
    )
    ours = [row["input_ids"] for row in read_jsonl(tmp_path / "out.jsonl")]
    assert ours == [as_transformers(folder, record) for record in records]
    assert ours[0] != ours[1]


def test_numbers_in_tool_calls(preprocess, write_jsonl, tokenizer_folders, tmp_path):
    """Floats of every size, and integers of 64 bits, as json.dumps and as str write them."""
    generator = random.Random(0)
    numbers = [generator.uniform(-1000, 1000) for _ in range(300)]
    numbers += [generator.random() * 10 ** generator.randint(-20, 20) for _ in range(300)]
    numbers += [0.0, -0.0, 1.0, 1e-5, 1e-4, 1e16, 1e15, 5e-324, 1.7976931348623157e308, 2**63, 2**64 - 1, -(2**63)]
    template = tmp_path / "numbers.jinja"
    template.write_text(
        "{% for n in messages[1].numbers %}{{ n }} {{ n | string }} {{ n | tojson }}\n{% endfor %}"
        "{{ messages[1].numbers | tojson }}"
    )
    records = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "numbers": part}]}
        for part in (numbers[begin : begin + 36] for begin in range(0, len(numbers), 36))
    ]
    ours = preprocess(
        "smollm2",
        write_jsonl("numbers.jsonl", records),
        prompt_template=template,
        completion_only_loss=False,
        max_seq_length=100000,
    )
    theirs = [
        as_transformers(tokenizer_folders["smollm2"], record, chat_template=template.read_text()) for record in records
    ]
    assert [ids for ids, _ in ours] == theirs


def tool_conversation(record):
    """ShareGPT's tool turns as transformers takes them."""
    messages = []
    for turn in record["conversations"]:
        if turn["from"] == "function_call":
            call = {"type": "function", "function": json.loads(turn["value"])}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            role = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}[turn["from"]]
            messages.append({"role": role, "content": turn["value"]})
    return messages, json.loads(record["tools"]) or None
