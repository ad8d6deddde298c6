#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/text/*.json: what transformers makes of texts and chats, for tests/text.

Run with the Python of the test environment (transformers 5.23) from anywhere:  python tests/golden/make_text.py
Files: tokens.json (for every tokenizer: ids and decoded texts of tricky strings, hashes of the ids of real texts),
chats.json (rendered chats for every template, or that the template raises an error), generation.json (byte ranges of
{% generation %} blocks).
"""
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import AutoTokenizer  # noqa: E402
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/golden/text"
TOKENIZERS = {path.name: path for path in sorted((ROOT / "tests/data/tokenizers").iterdir()) if path.is_dir()}
TOKENIZERS["stories260K"] = ROOT / "examples/stories260K"

# Folders as they occur in the wild, made from the ones above: (name, from, files to copy, files to write).
VARIANTS = [
    ("llama2-model", "llama2", ["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"], {}),
    ("llama2-bare-model", "llama2", ["tokenizer.model"], {}),
    ("llama2-bare-json", "llama2", ["tokenizer.json"], {}),
    ("llama2-model-eos", "llama2", ["tokenizer.model"],
     {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}}),
    ("llama2-pad", "llama2", ["tokenizer.json"],
     {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "pad_token": "<PAD>",
                                "additional_special_tokens": ["<X>"]}}),
    ("llama2-map", "llama2", ["tokenizer.model"],
     {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True},
      "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "</s>"}}),
    ("llama2-added", "llama2", ["tokenizer.model"],
     {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "pad_token": "[PAD]"},
      "added_tokens.json": {"[PAD]": 32000, "<X>": 32001}}),
    ("mistral-v3-model", "mistral-v3", ["tokenizer.model", "tokenizer_config.json"], {}),
    ("mistral-v3-family", "mistral-v3", ["tokenizer.json", "tokenizer_config.json"],
     {"config.json": {"model_type": "mistral"}}),
    ("smollm2-family", "smollm2", ["tokenizer.json", "tokenizer_config.json"],
     {"config.json": {"model_type": "llama"}}),
    ("stories260K-model", "stories260K", ["tokenizer.model", "tokenizer_config.json"], {}),
    ("stories260K-bare-model", "stories260K", ["tokenizer.model"], {}),
]

STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\t\t x", " a", "a ", "  a  ", "a\n", "\na", "a\n\n\nb",
    "a \n b", " \n", "Hello", "Hello world", "Hello  world", "Hello, world!", "hello WORLD HeLLo",
    "The quick brown fox.", "it's", "IT'S", "I'LL", "don't can't won't we've", "’s ‘quoted’ “text”", "a-b_c/d\\e",
    "foo.bar(baz[0], qux={'a': 1})", "x = y ** 2  # comment", "0", "1", "12", "123", "1234", "12345678901234567890",
    "a  12  b 34", "3.14159", "1,000,000.00", "$5.00", "50%", "2023-01-31", "१२३", "٣٤٥", "Ⅷ ½ ²", "naïve café",
    "cafe\u0301", "ﬁ ligature", "Å Å Å", "ÀÉÎÕÜ", "ß ẞ", "İstanbul ı", "你好，世界", "こんにちは世界", "안녕하세요", "Привет мир",
    "مرحبا بالعالم", "שלום", "สวัสดี", "नमस्ते", "Ελληνικά", "Tiếng Việt", "👍", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "😀😀😀",
    "a👍b", "\u200b", "a\u200db", "\ufeffa", "\u00a0", "a\u00a0b", "\u2028x\u2029", "\x00", "\x01\x1f\x7f", "\ue000",
    "\U000f0000", "\U0001d54f", "�", "▁", "▁a ▁b", " ▁", "Ġ", "Ċ", "##a", "@@", "<0x0A>", "<unk>", "<s>", "</s>",
    "<s>a</s>", "a <s> b", " <s>", "<s> ", "<pad>", "[INST] hi [/INST]", "[INST]hi[/INST]",
    "<<SYS>>\nx\n<</SYS>>\n\n", "<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|> <|im_end|>", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<think>\nx\n</think>\n\ny", "<tool_call>{}</tool_call>", "<|im_start", "|im_end|>", "<|im_<|im_end|>",
    "<|IM_END|>", "<repo_name>x<file_sep>", "[TOOL_CALLS][]", "[control_8]", "<X>", "<PAD>", "a<X> b", "{{ x }}",
    "{% raw %}", "<html><b>bold</b></html>", "https://example.org/a?b=c&d=%20#e",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "ababababababababab", "                    ", "\n\n\n\n\n\n\n\n",
    "----------------", "==== ==== ====", "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaft",
    "supercalifragilistic\u0000expialidocious", "SELECT * FROM t WHERE a='b';", "def f(x):\n    return x + 1\n",
    "\\begin{equation} E = mc^2 \\end{equation}", "A\tB\tC\n1\t2\t3", "Q: What?\nA: That.\n\nQ:", "…—–·•",
    "Zażółć gęślą jaźń", "Ñandú", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "e\u0301\u0301\u0301", "क्षि", "한\u1100\u1161", "a\u0000b",
    "'''\"\"\"```", "C++ C# F# .NET", "3×4÷2≠5",
]  # fmt: skip

# Lines of these are tokenized as they are: prose, code, JSON.
REAL_FILES = [
    "dolly_finqa_500.jsonl", "mlx_wikisql_valid.jsonl", "mbpp_601_974.jsonl", "oasst_en_chat_messages_60.jsonl",
    "wikitext2_raw_test.txt",
]  # fmt: skip
REAL_LINES = 150  # of each file

U, A, S = "user", "assistant", "system"


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Looks up <|im_end|> \"weather\" & more",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Größe"}}, "required": ["city"]}}}
ARGUMENTS = {"city": "Paris", "days": 1.5, "now": True}
CALL = {"role": A, "content": "", "tool_calls": [
    {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}]}
RESULT = {"role": "tool", "content": "{\"t\": 20}", "tool_call_id": "abcdef123", "name": "get_weather"}

# Each: messages, and the other variables of the template.
CHATS = [
    (chat((U, "Hi")), {}),
    (chat((U, "Hi"), (A, "Hello!")), {}),
    (chat((S, "Be brief."), (U, "Hi"), (A, "Hello!")), {}),
    (chat((S, "Be brief."), (U, "Hi"), (A, "Hello!"), (U, "How are you?"), (A, "Fine.")), {}),
    (chat((U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e")), {}),
    (chat((S, "  padded  \n"), (U, "  spaces  "), (A, "\n\nlines\n\n")), {}),
    (chat((U, "trailing \n"), (A, " leading")), {}),
    (chat((S, ""), (U, "empty system")), {}),
    (chat((U, ""), (A, "")), {}),
    (chat((U, "你好 👍🏽 café"), (A, "Ünï¢ödé \u00a0 \u200d")), {}),
    (chat((U, "{{ x }} {% raw %}{% endraw %} {# c #} }}"), (A, "{{ messages }}")), {}),
    (chat((U, "a <|im_end|>\n<|im_start|>system\nb"), (A, "</s><s>[INST] x [/INST] <|eot_id|><|endoftext|>")), {}),
    (chat((U, "\"quotes\" 'single' \\ back <html> & \t tab"), (A, "ok")), {}),
    (chat((U, "\ufdd0 \ufdd1 \U000f0000"), (A, "private")), {}),
    (chat((U, "q"), (A, "<think>\nreason\n</think>\n\nanswer")), {}),
    (chat((U, "q"), (A, "<think>\n1\n</think>\n\none"), (U, "r"), (A, "<think>a</think>b<think>c</think>d")), {}),
    ([*chat((U, "q")), {"role": A, "reasoning_content": "because", "content": "answer"}], {}),
    ([*chat((U, "q")), {"role": A, "content": None}], {}),
    ([{"role": U, "content": "x", "name": None}], {}),
    ([{"role": U, "content": [{"type": "text", "text": "part"}]}], {}),
    (chat((A, "assistant first"), (U, "then user")), {}),
    (chat((U, "one"), (U, "two")), {}),
    (chat((S, "one"), (S, "two"), (U, "three")), {}),
    (chat(("tool", "lonely result")), {}),
    (chat(("narrator", "unknown role")), {}),
    (chat((U, "Weather?")), {"tools": [WEATHER]}),
    (chat((S, "Use tools."), (U, "Weather?")), {"tools": [WEATHER, WEATHER]}),
    ([*chat((U, "Weather in Paris?")), CALL, RESULT, *chat((A, "20 degrees."))], {"tools": [WEATHER]}),
    ([*chat((U, "Weather in Paris?")), CALL], {}),
    (chat((U, "q")), {"documents": [{"title": "T", "text": "D"}]}),
    (chat((U, "q"), (A, "a")), {"enable_thinking": False}),
    (chat((U, "x" * 300), (A, "y\n" * 60)), {}),
]


def make_folder(parent, variant):
    name, source, copied, written = variant
    folder = pathlib.Path(parent) / name
    folder.mkdir()
    for file in copied:
        shutil.copy(TOKENIZERS[source] / file, folder)
    for file, content in written.items():
        (folder / file).write_text(json.dumps(content))
    return folder


def hash_real_texts(tokenizer):
    """File → SHA-256 over its first lines' ids, in decimal, a space between ids and a new line after each text."""
    hashes = {}
    for file in REAL_FILES:
        with open(ROOT / "tests/data/datasets" / file, encoding="utf-8", newline="\n") as lines:
            texts = [line.rstrip("\n") for _, line in zip(range(REAL_LINES), lines)]
        ids = "".join(" ".join(map(str, tokenizer(text, add_special_tokens=False).input_ids)) + "\n" for text in texts)
        hashes[file] = hashlib.sha256(ids.encode()).hexdigest()
    return hashes


def describe_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    cases = []
    for text in STRINGS:
        ids = tokenizer(text).input_ids
        bare = tokenizer(text, add_special_tokens=False).input_ids
        decoded, skipped = tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)
        case = {"ids": ids, "bare": bare, "decoded": decoded, "decoded_skip": skipped}
        usual = {"bare": ids, "decoded": text, "decoded_skip": text}  # left out, to keep the file small
        cases.append({key: value for key, value in case.items() if key not in usual or value != usual[key]})
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}
    size = max(tokenizer.get_vocab().values()) + 1
    return {"named": named, "size": size, "cases": cases, "real": hash_real_texts(tokenizer)}


def make_tokens():
    result = {"strings": STRINGS, "real_lines": REAL_LINES, "variants": []}
    result["tokenizers"] = {name: describe_tokenizer(path) for name, path in TOKENIZERS.items()}
    with tempfile.TemporaryDirectory() as parent:
        for variant in VARIANTS:
            name, source, copied, written = variant
            origin = str(TOKENIZERS[source].relative_to(ROOT))
            recipe = {"name": name, "from": origin, "copied": copied, "written": written}
            result["variants"].append(recipe | describe_tokenizer(make_folder(parent, variant)))
    write("tokens.json", result)


def templates():
    """Name → (source, special tokens): the tokenizers' own, and the ones in tests/golden/text/templates."""
    found = {}
    for name, path in TOKENIZERS.items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        if tokenizer.chat_template:
            found[name] = (tokenizer.chat_template, tokenizer.special_tokens_map)
    for path in sorted((OUT / "templates").glob("*.jinja")):
        found[path.name] = (path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    return found


def render(template, messages, prompt, extra, generation=False):
    source, tokens = template
    # apply_chat_template leaves out what is None.
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    variables = {**tokens, "date_string": "26 Jul 2024", **extra}
    texts, spans = render_jinja_template([messages], chat_template=source, add_generation_prompt=prompt,
                                         return_assistant_tokens_mask=generation, **variables)
    return texts[0], spans[0] if generation else []


def make_chats():
    cases = {}
    for name, template in templates().items():
        cases[name] = []
        for messages, extra in CHATS:
            for prompt in (False, True):
                try:
                    cases[name].append(render(template, messages, prompt, extra)[0])
                except Exception as error:  # the kind of error differs from template to template
                    cases[name].append({"error": str(error).splitlines()[0], "kind": type(error).__name__})
    chats = [{"messages": messages, "extra": extra} for messages, extra in CHATS]
    write("chats.json", {"chats": chats, "templates": cases})


def make_generation():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    cases = []
    for path in sorted((OUT / "templates").glob("generation*.jinja")):
        for number, (messages, extra) in enumerate(CHATS):
            try:
                text, spans = render((path.read_text(), tokens), messages, False, extra, generation=True)
            except Exception:
                continue
            in_bytes = [[len(text[:begin].encode()), len(text[:end].encode())] for begin, end in spans]
            cases.append({"template": path.name, "chat": number, "spans": in_bytes})
    write("generation.json", cases)


def write(name, content):
    (OUT / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(name, (OUT / name).stat().st_size, "bytes")


if __name__ == "__main__":
    make_tokens()
    make_chats()
    make_generation()
