# SPDX-License-Identifier: Apache-2.0
"""Fettle and Hugging Face's own tools on one cache, datasets of the hub against `datasets`, and a training from the hub."""

import csv
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from conftest import STORIES260K, read_jsonl
from hub_support import TOKEN, Client, client, folder_files, hub  # noqa: F401

MODEL = "org/stories260K"
DATASET = "org/stories"
SHORT = [f"--{option}" for option in ("num_threads=1", "max_steps=2", "per_device_train_batch_size=2", "max_seq_length=64")]


def python(client, code, **environment):
    """Runs a script with the client's environment, where Hugging Face's tools use the same cache. Returns its output."""
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False,
                          env=client.environment | {"HF_HUB_DISABLE_XET": "1"} | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def add_model(hub):
    hub.add(MODEL, folder_files(STORIES260K))


def records(count, prefix="story"):
    return [{"prompt": "Once upon a time", "completion": f" there was {prefix} {i}, \"red\"\nand blue."} for i in range(count)]


def lines_of(some):
    return "".join(json.dumps(record) + "\n" for record in some).encode()


# ---------------------------------------------------------------------------------------------------------------------
# One cache


def test_huggingface_hub_and_transformers_use_our_cache(hub, client):
    add_model(hub)
    client("download", f"--model_name_or_path={MODEL}")
    hub.forget()
    printed = python(client, f"""
import huggingface_hub, transformers
print(huggingface_hub.snapshot_download({MODEL!r}, local_files_only=True))
print(huggingface_hub.hf_hub_download({MODEL!r}, "model.safetensors"))
model = transformers.AutoModelForCausalLM.from_pretrained({MODEL!r})
tokenizer = transformers.AutoTokenizer.from_pretrained({MODEL!r})
print(sum(p.numel() for p in model.parameters()), len(tokenizer))
print(sum(r.size_on_disk > 0 for r in huggingface_hub.scan_cache_dir().repos), huggingface_hub.scan_cache_dir().warnings)
""", HF_HUB_OFFLINE="1").splitlines()
    snapshot = client.snapshot(MODEL)
    assert printed[:2] == [str(snapshot), str(snapshot / "model.safetensors")]
    assert printed[3] == "1 []"
    assert hub.paths() == []


def test_huggingface_hub_fetches_only_what_we_left_out(hub, client):
    add_model(hub)
    client("download", f"--model_name_or_path={MODEL}")
    (hub.repositories["models"][MODEL]).commit(folder_files(STORIES260K) | {"notes.txt": b"new"})
    hub.forget()
    python(client, f"import huggingface_hub; print(huggingface_hub.snapshot_download({MODEL!r}))")
    assert hub.sent_bytes() == len(b"new") + sum(
        len(content) for name, content in folder_files(STORIES260K).items()
        if not (client.snapshot(MODEL) / name).exists())


@pytest.mark.parametrize("tool", ["snapshot_download", "transformers"])
def test_we_use_a_cache_of_huggingface_hub(hub, client, tool):
    add_model(hub)
    code = {"snapshot_download": f"import huggingface_hub; huggingface_hub.snapshot_download({MODEL!r})",
            "transformers": f"import transformers as t; t.AutoModelForCausalLM.from_pretrained({MODEL!r}); "
                            f"t.AutoTokenizer.from_pretrained({MODEL!r})"}[tool]
    python(client, code)
    hub.forget()
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):
        done = client("generate", f"--model_name_or_path={MODEL}", "--prompt=Once", "--raw_prompt", "--max_new_tokens=4",
                      "--num_threads=1", **environment)
        assert done.out.strip()
    assert hub.paths() == []


def test_an_unfinished_cache_of_huggingface_hub_is_completed(hub, client):
    add_model(hub)
    python(client, f"import huggingface_hub; huggingface_hub.snapshot_download({MODEL!r}, allow_patterns=['*.json'])")
    client("generate", f"--model_name_or_path={MODEL}", "--prompt=Once", "--raw_prompt", "--max_new_tokens=4",
           "--num_threads=1")
    assert (client.snapshot(MODEL) / "model.safetensors").exists()


def test_both_at_once_download_once(hub, client):
    files = folder_files(STORIES260K)
    add_model(hub)
    hub.misbehave("/lfs/", bytes_per_second=400_000)
    ours = client.start("download", f"--model_name_or_path={MODEL}")
    python(client, f"import huggingface_hub; huggingface_hub.snapshot_download({MODEL!r})")
    client.finish(ours)
    assert hub.sent_bytes("/lfs/.*/model.safetensors") == len(files["model.safetensors"])


# ---------------------------------------------------------------------------------------------------------------------
# Datasets

README = b"""---
license: mit
configs:
- config_name: short
  data_files:
  - split: train
    path: short/*.jsonl
- config_name: long
  default: true
  data_files:
  - split: train
    path:
    - long/part-1.jsonl
    - long/part-0.jsonl
  - split: test
    path: "long/held*"
---
# Stories
"""

SOME_SHARDS = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-0000[01]-of-00004.jsonl
---
"""

LAYOUTS = {
    "shards": ({"data/train-00001-of-00002.jsonl": lines_of(records(3, "second")),
                "data/train-00000-of-00002.jsonl": lines_of(records(3, "first")),
                "data/test-00000-of-00001.jsonl": lines_of(records(2, "test")),
                "data/extra-00000-of-00001.jsonl": lines_of(records(1, "extra"))}, []),
    "names": ({"train.jsonl": lines_of(records(4)), "dev.jsonl": lines_of(records(2, "dev")), "LICENSE.txt": b"MIT"}, []),
    "folders": ({"train/b.jsonl": lines_of(records(2, "b")), "train/a.jsonl": lines_of(records(2, "a")),
                 "validation/x.jsonl": lines_of(records(1, "x"))}, []),
    "one file": ({"Cleaned_date.json": json.dumps(records(5)).encode(), ".gitattributes": b"*"}, []),
    "card": ({"README.md": README, "short/a.jsonl": lines_of(records(1, "short")),
              "long/part-0.jsonl": lines_of(records(2, "part 0")), "long/part-1.jsonl": lines_of(records(2, "part 1")),
              "long/held.jsonl": lines_of(records(2, "held"))}, []),
    "card, by name": ({"README.md": README, "short/a.jsonl": lines_of(records(4, "short")),
                       "long/part-0.jsonl": lines_of(records(2))}, ["short"]),
    "card of some shards": ({"README.md": SOME_SHARDS} | {
        f"data/train-0000{i}-of-00004.jsonl": lines_of(records(2, f"shard {i}")) for i in range(4)}, []),
}


SPLITS = ("train", "train[1:3]", "train[:50%]", "train[-1:]")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_are_those_of_datasets(hub, client, tmp_path, layout):
    files, configuration = LAYOUTS[layout]
    hub.add(DATASET, files, kind="datasets")
    expected = python(client, f"""
import datasets, json
for split in {SPLITS!r}:
    print(json.dumps(list(datasets.load_dataset({DATASET!r}, *{configuration!r}, split=split))))
""", HF_HOME=str(tmp_path / "another"))
    for split, line in zip(SPLITS, expected.splitlines(), strict=True):
        output = tmp_path / "records.jsonl"
        client("download", f"--dataset_name={DATASET}", f"--dataset_split={split}", f"--output={output}",
               *(f"--dataset_config_name={name}" for name in configuration))
        assert read_jsonl(output) == json.loads(line), split


def test_the_finance_file_of_the_old_guide(hub, client, tmp_path):
    everything = records(50)
    hub.add("gbharti/finance-alpaca", {"Cleaned_date.json": json.dumps(everything).encode()}, kind="datasets")
    for name, read in (("a.json", lambda p: json.loads(p.read_text())), ("a.jsonl", read_jsonl),
                       ("a.csv", lambda p: list(csv.DictReader(p.open(newline=""))))):
        output = tmp_path / name
        done = client("download", "--dataset", "gbharti/finance-alpaca", "--split", "train[:17]", "--output", output)
        assert read(output) == everything[:17]
        assert done.out.splitlines()[-1] == f"output: {output}"
        assert "warning" not in done.err  # these are download's own names
    done = client("download", "--dataset=gbharti/finance-alpaca", "--output=a.xlsx", expect=64)
    assert "name a file .json, .jsonl or .csv" in done.error


def test_a_script_gives_way_to_the_parquet_branch(hub, client, tmp_path):
    repository = hub.add("org/scripted", {"scripted.py": b"raise SystemExit", "train.txt": b"raw"}, kind="datasets")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records(9)), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    repository.commit({"default/train/0000.parquet": content, "default/partial-test/0000.parquet": content},
                      branch="refs/convert/parquet")
    done = client("download", "--dataset_name=org/scripted", f"--output={tmp_path / 'a.jsonl'}")
    assert "refs/convert/parquet" in done.err and read_jsonl(tmp_path / "a.jsonl") == records(9)
    assert "train/0000.parquet" in done.out and "test/0000.parquet" not in done.out


def test_what_a_dataset_lacks(hub, client):
    hub.add(DATASET, LAYOUTS["card"][0], kind="datasets")
    hub.add("org/zipped", {"data.zip": b"PK"}, kind="datasets")
    hub.add("org/two", {"README.md": README.replace(b"  default: true\n", b""), "short/a.jsonl": b"{}\n"}, kind="datasets")
    for code, part, arguments in (
            (66, "has no split 'dev'; give one of these as dataset_split: train, test", [DATASET, "--dataset_split=dev"]),
            (64, "no configuration 'x'; give one of these as dataset_config_name: short, long",
             [DATASET, "--dataset_config_name=x"]),
            (64, "has several configurations; give one of these", ["org/two"]),
            (66, "has no files that can be read, and the hub has no Parquet copy of it (data.zip)", ["org/zipped"]),
            (64, "is not one split", [DATASET, "--dataset_split=train+test"]),
            (66, "has no revision 'v3'", [DATASET, "--dataset_revision=v3"]),
            (77, "private or does not exist", ["org/absent"]),
    ):
        done = client("download", f"--dataset_name={arguments[0]}", *arguments[1:], expect=code)
        assert part in done.error, done.error


# ---------------------------------------------------------------------------------------------------------------------
# URLs


def test_files_on_the_web(hub, client, tmp_path):
    hub.web_files["a b.jsonl"] = lines_of(records(4))
    url = f"{hub.cdn}/web/a%20b.jsonl?signature=secret"
    output = tmp_path / "out.jsonl"
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = client("download", f"--train_file={url}", f"--output={output}", HF_TOKEN=TOKEN, **environment)
        assert read_jsonl(output) == records(4)
    assert hub.authorizations("cdn") == []
    hub.web_files["a b.jsonl"] = lines_of(records(6))
    client("download", f"--train_file={url}", f"--output={output}")
    assert read_jsonl(output) == records(6)
    for code, bad, part in ((66, f"{hub.cdn}/web/none.jsonl", "the server answers 404"),
                            (64, "s3://bucket/train.jsonl", "give a presigned https URL"),
                            (64, "hf://datasets/org/x", "hf URLs are not read")):
        done = client("download", f"--train_file={bad}", expect=code)
        assert part in done.error and "secret" not in done.error


def test_a_file_on_the_web_that_changes_while_it_comes(hub, client, tmp_path):
    """Without ranges and ETags by its length, with them by the ETag of each piece."""
    output = tmp_path / "out.jsonl"
    hub.web_files["grows.jsonl"] = lines_of(records(4))
    hub.web_headers["grows.jsonl"] = {}
    hub.misbehave("/web/grows", ignore_range=True, times=1, web_files={"grows.jsonl": lines_of(records(6))})
    hub.misbehave("/web/grows", ignore_range=True)
    client("download", f"--train_file={hub.cdn}/web/grows.jsonl", f"--output={output}")
    assert read_jsonl(output) == records(6)

    old, new = records(30_000, "old"), records(30_000, "new")
    hub.web_files["large.jsonl"] = lines_of(old)
    hub.misbehave("/web/large", times=1)  # the look
    hub.misbehave("/web/large", times=1, cut_after=300_000, web_files={"large.jsonl": lines_of(new)})
    hub.misbehave("/web/large", cut_after=300_000)
    done = client("download", f"--train_file={hub.cdn}/web/large.jsonl", f"--output={output}")
    assert read_jsonl(output) == new and "has changed since" in done.err
    assert not list(client.cache.rglob("*.fettle.*"))


def test_a_file_on_the_web_that_never_rests(hub, client):
    for i in range(10):
        hub.misbehave("/web/log", ignore_range=True, times=1, web_files={"log.jsonl": lines_of(records(5 + i))})
    hub.web_files["log.jsonl"] = lines_of(records(4))
    done = client("download", f"--train_file={hub.cdn}/web/log.jsonl", expect=69)
    assert "changes while it is downloaded; try again when nobody writes it" in done.error


def test_a_file_on_the_web_without_an_etag(hub, client, tmp_path):
    output = tmp_path / "out.jsonl"
    for day, prefix in ((6, "old"), (7, "new")):  # of one size
        hub.web_files["x.jsonl"] = lines_of(records(3, prefix))
        hub.web_headers["x.jsonl"] = {"Last-Modified": f"Tue, 0{day} Oct 2026 10:00:00 GMT"}
        client("download", f"--train_file={hub.cdn}/web/x.jsonl", f"--output={output}")
        assert read_jsonl(output) == records(3, prefix)


def test_a_cached_file_of_another_size_is_fetched_again(hub, client, tmp_path):
    output = tmp_path / "out.jsonl"
    hub.web_files["x.jsonl"] = lines_of(records(3))
    for _ in range(2):
        client("download", f"--train_file={hub.cdn}/web/x.jsonl", f"--output={output}")
        assert read_jsonl(output) == records(3)
        next((client.cache / "fettle-urls").rglob("x.jsonl")).write_bytes(lines_of(records(1)))


def test_a_file_on_the_web_of_unknown_size(hub, client, tmp_path):
    output = tmp_path / "out.jsonl"
    hub.web_files["x.jsonl"] = lines_of(records(3))
    hub.misbehave("/web/x", chunked=True, times=1)  # the look
    hub.misbehave("/web/x", status=503, times=2)
    hub.misbehave("/web/x", status=429, headers={"Retry-After": "0"}, times=1)
    hub.misbehave("/web/x", chunked=True)
    client("download", f"--train_file={hub.cdn}/web/x.jsonl", f"--output={output}")
    assert read_jsonl(output) == records(3)


def test_a_url_that_redirects_to_another_host_keeps_the_token(hub, client):
    hub.web_files["x.jsonl"] = lines_of(records(1))
    hub.misbehave("/moved", redirect=f"{hub.cdn}/web/x.jsonl")
    client("download", f"--train_file={hub.endpoint}/moved", HF_TOKEN=TOKEN)
    assert hub.authorizations("cdn") == [] and f"Bearer {TOKEN}" in hub.authorizations("hub")


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_trains_from_the_hub(hub, client, tmp_path):
    add_model(hub)
    hub.add(DATASET, LAYOUTS["names"][0], kind="datasets")
    arguments = ["train", f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", *SHORT]
    done = client(*arguments, f"--output_dir={tmp_path / 'out'}")
    assert "validation: 2 records" in done.err
    assert (tmp_path / "out/adapter_model.safetensors").exists()
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == MODEL
    hub.forget()
    client(*arguments, f"--output_dir={tmp_path / 'again'}", HF_HUB_OFFLINE="1")
    client(*arguments, f"--output_dir={tmp_path / 'third'}")
    assert hub.paths() == []  # what the cache has is taken as it is
    adapters = [(tmp_path / place / "adapter_model.safetensors").read_bytes() for place in ("out", "again", "third")]
    assert adapters[0] == adapters[1] == adapters[2]


def test_two_ranks_download_once(hub, client, tmp_path):
    add_model(hub)
    hub.add(DATASET, LAYOUTS["shards"][0], kind="datasets")
    port = 20000 + os.getpid() % 20000
    common = ["train", f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", f"--output_dir={tmp_path / 'out'}", *SHORT]
    ranks = [client.start(*common, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for rank in range(2)]
    for process in ranks:
        client.finish(process)
    content = folder_files(STORIES260K)["model.safetensors"]
    assert hub.sent_bytes("/lfs/.*/model.safetensors") == len(content)


def test_preprocess_needs_no_weights_and_eval_no_training_records(hub, client, tmp_path):
    add_model(hub)
    hub.add(DATASET, LAYOUTS["names"][0], kind="datasets")
    client("preprocess", f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", "--dataset_split=train[:2]",
           f"--output={tmp_path / 'tokens.jsonl'}")
    assert len(read_jsonl(tmp_path / "tokens.jsonl")) == 2
    assert not any("model.safetensors" in path for path in hub.paths())
    fresh = Client(hub, tmp_path / "fresh")
    fresh.home.mkdir()
    hub.forget()
    done = fresh("eval", f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", "--num_threads=1",
                 "--dataset_test_split=validation[:1]")
    assert "validation: 1 records" in done.err
    assert not any("train.jsonl" in path for path in hub.paths())


def test_cache_dir_is_the_place_of_all_downloads(hub, client, tmp_path):
    add_model(hub)
    hub.add(DATASET, LAYOUTS["names"][0], kind="datasets")
    hub.web_files["held.jsonl"] = lines_of(records(2))
    for command, more in (("download", []), ("train", [f"--output_dir={tmp_path / 'out'}", *SHORT])):
        client(command, f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", f"--cache_dir={tmp_path / 'volume'}",
               f"--validation_file={hub.cdn}/web/held.jsonl", *more)
    assert sorted(path.name for path in (tmp_path / "volume").iterdir()) == [
        ".locks", "datasets--org--stories", "fettle-urls", "models--org--stories260K"]
    assert not client.cache.exists()


def test_an_adapter_of_the_hub(hub, client, tmp_path):
    add_model(hub)
    hub.add(DATASET, LAYOUTS["names"][0], kind="datasets")
    client("train", f"--model_name_or_path={MODEL}", f"--dataset_name={DATASET}", f"--output_dir={tmp_path / 'out'}", *SHORT)
    hub.add("org/adapter", {name: (tmp_path / "out" / name).read_bytes()
                            for name in ("adapter_config.json", "adapter_model.safetensors")})
    for adapter in ("org/adapter", tmp_path / "out"):
        done = client("generate", f"--model_name_or_path={MODEL}", f"--adapter_name_or_path={adapter}", "--prompt=Once",
                      "--raw_prompt", "--max_new_tokens=8", "--num_threads=1")
        said = done.out if adapter == "org/adapter" else said  # noqa: F821
    assert said == done.out
