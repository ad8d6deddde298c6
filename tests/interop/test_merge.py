# SPDX-License-Identifier: Apache-2.0
"""`fettle merge` against PEFT's merge_and_unload, add_weighted_adapter and save_pretrained, and what it refuses."""

import copy
import hashlib
import json
import shutil
import signal
import subprocess
import time

import make_adapters
import peft
import pytest
import reference
import safetensors
import safetensors.torch
import torch
import transformers
from conftest import DATASETS, REPOSITORY, STORIES260K, find_program, option

IDS = torch.tensor([[1, *range(5, 60, 2), 9, 4, 4, 200, 17]])
REFUSED, BROKEN, MISSING, DIVERGED, DISK = 78, 65, 66, 76, 74


def merge(fettle, base, output, adapter=None, **options):
    """Runs `fettle merge` and returns what it prints."""
    if adapter is not None:
        options["adapter_name_or_path"] = adapter
    done = fettle("merge", model_name_or_path=base, output_dir=output, **options)
    return json.loads(done.stdout) if done.returncode == 0 else done


def tensors(folder):
    """Name → tensor of a model's folder, whatever its files."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found.update(safetensors.torch.load_file(file))
    return found


def files_of(folder):
    """File → names of the tensors in it."""
    found = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safetensors.safe_open(file, "pt") as content:
            found[file.name] = set(content.keys())
    return found


def peft_merged(base, adapter, folder):
    """PEFT's own merge in float32, saved. Returns the logits of the adapter beside its base, in float64."""
    model = reference.load(base, adapter)
    exact = logits_of(copy.deepcopy(model).double())
    model.merge_and_unload().save_pretrained(folder)
    return exact


def logits_of(model):
    reference.forget_length(model)
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits[0].double()


def require_close_logits(ours, theirs, exact):
    """1e-5, or where a random adapter makes more of float32's rounding, 1.5 × the error of PEFT's merge."""
    error, their_error = ((logits_of(reference.load(folder)) - exact).abs().max().item() for folder in (ours, theirs))
    print(f"logits: {error:.2e}, PEFT's {their_error:.2e}")
    assert error <= max(1e-5, 1.5 * their_error)


def require_close(ours, theirs, relative=1e-6):
    """Tensor by tensor, relative to the largest of each."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape and ours[name].dtype == tensor.dtype, name
        error = (ours[name].float() - tensor.float()).abs().max() / tensor.float().abs().max()
        assert error <= relative, f"{name}: {error}"


def eval_logits(fettle, model, records, file):
    fettle("eval", model_name_or_path=model, validation_file=records, dataset_format="text", bf16=False, logits_file=file)
    return safetensors.torch.load_file(file)


@pytest.fixture
def records(write_jsonl):
    return write_jsonl("records.jsonl", [{"text": f"One day, {i} cats and a dog went to the park."} for i in range(4)])


CASES = [
    ("llama2", "all_linear"),
    ("llama3", "attention"),  # tied
    ("llama_bias", "rslora"),
    ("qwen2", "all_linear"),  # tied, biases
    ("qwen2_window", "regex"),
    ("qwen3_untied", "rslora"),
    ("qwen3", "all_linear"),
    ("mistral", "all_linear"),
    ("llama2", "saved"),
    ("llama2", "saved_both"),
    ("qwen2", "saved"),  # unties
    ("llama3", "saved_both"),  # unties
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_equals_peft_in_float32(fettle, tiny_models, tmp_path, records, case):
    base = tiny_models(case[0])
    adapter = make_adapters.make(case[1], base, tmp_path / "adapter")
    exact = peft_merged(base, adapter, tmp_path / "theirs")
    printed = merge(fettle, base, tmp_path / "ours", adapter)
    require_close(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    require_close_logits(tmp_path / "ours", tmp_path / "theirs", exact)
    assert printed["relative_logit_difference"] <= 1e-5
    assert printed["max_logit_change_of_adapter"] > 1e-2
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["tie_word_embeddings"] == json.loads((tmp_path / "theirs/config.json").read_text())["tie_word_embeddings"]
    once, again = (eval_logits(fettle, tmp_path / "ours", records, tmp_path / name) for name in ("1", "2"))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert fettle("verify", tmp_path / "ours").stdout.count(str(tmp_path / "ours")) == 4


def test_an_embedding_alone_that_is_saved_whole_leaves_the_head_as_it_was(fettle, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setitem(
        make_adapters.ADAPTERS, "embedding", {**make_adapters.ADAPTERS["saved"], "modules_to_save": ["embed_tokens"]}
    )
    base = tiny_models("qwen2")
    adapter = make_adapters.make("embedding", base, tmp_path / "adapter")
    exact = peft_merged(base, adapter, tmp_path / "theirs")
    merge(fettle, base, tmp_path / "ours", adapter)
    require_close(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    require_close_logits(tmp_path / "ours", tmp_path / "theirs", exact)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16", "float16"])
def test_rounds_once_to_the_bases_type(fettle, tiny_models, tmp_path, dtype, adapter_dtype):
    base = tiny_models("llama2", dtype=dtype)
    adapter = make_adapters.make("all_linear", tiny_models("llama2"), tmp_path / "adapter")
    weights = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    safetensors.torch.save_file(
        {name: weight.to(getattr(torch, adapter_dtype)) for name, weight in weights.items()},
        adapter / "adapter_model.safetensors",
        {"format": "pt"},
    )
    peft_merged(base, adapter, tmp_path / "theirs")  # loads the base in float32
    printed = merge(fettle, base, tmp_path / "ours", adapter)
    ours, exact, before = (tensors(folder) for folder in (tmp_path / "ours", tmp_path / "theirs", base))
    changed = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for name, tensor in exact.items():
        assert ours[name].dtype == getattr(torch, dtype)
        if name.split(".")[-2] not in changed:
            assert torch.equal(ours[name], before[name])
            continue
        rounded = tensor.to(ours[name].dtype)
        # Where float32's last bit decides, the neighbour is as right.
        differ = ours[name] != rounded
        assert differ.float().mean() < 1e-3
        half_a_step = torch.finfo(ours[name].dtype).eps / 2
        assert ((ours[name].float() - tensor).abs() <= tensor.abs() * half_a_step * (1 + 1e-3) + 1e-7).all()
    assert json.loads((tmp_path / "ours/config.json").read_text())["dtype"] == dtype
    assert printed["relative_logit_difference"] < printed["relative_logit_bound"]


def test_keeps_the_bases_files(fettle, tiny_models, tmp_path):
    base = tiny_models("llama2", dtype="bfloat16", sharded=True)
    adapter = make_adapters.make("all_linear", base, tmp_path / "adapter")
    merge(fettle, base, tmp_path / "ours", adapter)
    assert len(files_of(base)) > 1
    assert files_of(tmp_path / "ours") == files_of(base)
    merge(fettle, base, tmp_path / "one", adapter, max_shard_size="1GB")
    assert list(files_of(tmp_path / "one")) == ["model.safetensors"]
    merge(fettle, base, tmp_path / "many", adapter, max_shard_size="50KB")
    assert len(files_of(tmp_path / "many")) > len(files_of(base))
    expected = tensors(tmp_path / "ours")
    for name in ("one", "many"):
        assert all(torch.equal(expected[key], value) for key, value in tensors(tmp_path / name).items())
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)


def test_tokenizer_template_and_generation_config_come_along(fettle, tiny_models, tmp_path):
    base = shutil.copytree(tiny_models("llama3"), tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    adapter = make_adapters.make("attention", base, tmp_path / "adapter")
    merge(fettle, base, tmp_path / "ours", adapter)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "ours" / name).read_bytes() == (base / name).read_bytes()
    assert (tmp_path / "ours/generation_config.json").exists()
    text = (tmp_path / "ours/README.md").read_text()
    assert "base_model_relation: merge" in text and "| adapter | 1.0 |" in text


def test_two_adapters_with_weights(fettle, tiny_models, tmp_path):
    base = tiny_models("qwen2")
    # "cat" alone is an exact sum. Of two adapters PEFT scales it by the first one's use_rslora.
    first = make_adapters.make("attention", base, tmp_path / "first")
    second = make_adapters.make("rslora", base, tmp_path / "second")
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), first, adapter_name="first"
    )
    model.load_adapter(second, "second")
    model.add_weighted_adapter(["first", "second"], [0.5, -1.5], "both", combination_type="cat")
    model.set_adapter("both")
    exact = logits_of(copy.deepcopy(model).double().eval())
    model.merge_and_unload(adapter_names=["both"]).save_pretrained(tmp_path / "theirs")
    printed = merge(fettle, base, tmp_path / "ours", merge_adapters=[f"{first}=0.5", f"{second}=-1.5"])
    require_close(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))
    require_close_logits(tmp_path / "ours", tmp_path / "theirs", exact)
    assert printed["merged_adapters"] == [
        {"adapter": str(first), "weight": 0.5},
        {"adapter": str(second), "weight": -1.5},
    ]
    assert printed["relative_logit_difference"] <= 1e-5


def test_two_adapters_of_weight_one_equal_peft_merging_one_after_the_other(fettle, tiny_models, tmp_path):
    base = tiny_models("llama2")
    first = make_adapters.make("all_linear", base, tmp_path / "first")
    second = make_adapters.make("saved", base, tmp_path / "second")
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), first, adapter_name="first"
    ).merge_and_unload()
    peft.PeftModel.from_pretrained(model, second).merge_and_unload().save_pretrained(tmp_path / "theirs")
    merge(fettle, base, tmp_path / "ours", first, merge_adapters=[second])
    require_close(tensors(tmp_path / "ours"), tensors(tmp_path / "theirs"))


def test_perplexities_on_records(fettle, tmp_path, records):
    """Real text on a trained model, and the adapter as `fettle eval` sees it."""
    adapter = make_adapters.make("attention", STORIES260K, tmp_path / "adapter")
    options = {"validation_file": records, "dataset_format": "text"}
    printed = merge(fettle, STORIES260K, tmp_path / "ours", adapter, **options)

    def perplexity(**model):
        return json.loads(fettle("eval", bf16=False, **options, **model).stdout)["perplexity"]

    base = perplexity(model_name_or_path=STORIES260K)
    beside = perplexity(model_name_or_path=STORIES260K, adapter_name_or_path=adapter)
    assert printed["eval_perplexity_base"] == pytest.approx(base, rel=1e-5)
    assert printed["eval_perplexity_adapter"] == pytest.approx(beside, rel=1e-5)
    assert printed["eval_perplexity"] == pytest.approx(perplexity(model_name_or_path=tmp_path / "ours"), rel=1e-5)
    assert printed["eval_perplexity"] == pytest.approx(beside, rel=1e-4)
    written = json.loads((tmp_path / "ours/all_results.json").read_text())
    assert len(written.pop("identity")) == 64 and written == printed


def test_a_gguf_base_becomes_bfloat16(fettle, tmp_path):
    base = REPOSITORY / "tests/data/gguf/llama.gguf"
    exact = safetensors.torch.load_file(base.with_suffix(".safetensors"))
    names = [name for name in exact if name.endswith("q_proj.weight")]
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name in names:
        a, b = (0.2 * torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2)))
        module = "base_model.model." + name.removesuffix("weight")
        weights |= {module + "lora_A.weight": a, module + "lora_B.weight": b}
        exact[name] = exact[name] + 4 * (b @ a)
    peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    safetensors.torch.save_file(weights, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    merge(fettle, base, tmp_path / "ours", tmp_path / "adapter", tokenizer_name=STORIES260K)
    ours = tensors(tmp_path / "ours")
    assert ours.keys() == exact.keys()
    for name, tensor in exact.items():
        assert ours[name].dtype == torch.bfloat16
        assert (ours[name] != tensor.bfloat16()).float().mean() < 1e-3, name
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")


@pytest.fixture
def pair(tiny_models, tmp_path):
    base = tiny_models("llama2")
    return base, make_adapters.make("all_linear", base, tmp_path / "adapter")


def refusal(fettle, code, base, output, *arguments, **options):
    done = fettle("merge", *arguments, model_name_or_path=base, output_dir=output, expect=code, **options)
    assert done.stdout == ""
    assert not (output / "config.json").exists()
    return done.stderr.splitlines()[-1]


def test_refuses_what_does_not_fit(fettle, tiny_models, tmp_path, pair):
    base, adapter = pair
    out = tmp_path / "out"
    assert "nowhere" in refusal(fettle, MISSING, base, out, adapter_name_or_path=tmp_path / "nowhere")
    assert "'much'" in refusal(fettle, REFUSED, base, out, merge_adapters=[f"{adapter}=much"])
    assert "'1e39'" in refusal(fettle, REFUSED, base, out, merge_adapters=[f"{adapter}=1e39"])
    assert "'nan'" in refusal(fettle, REFUSED, base, out, merge_adapters=[f"{adapter}=nan"])
    assert "named twice" in refusal(fettle, REFUSED, base, out, adapter_name_or_path=adapter, merge_adapters=[adapter])
    (tmp_path / "link").symlink_to(adapter)
    twice = [adapter, tmp_path / "link"]
    assert "named twice" in refusal(fettle, REFUSED, base, out, merge_adapters=twice)
    said = refusal(fettle, BROKEN, tiny_models("qwen3"), out, adapter_name_or_path=adapter)
    assert f"adapter {adapter}" in said and "wrong shape" in said and "trained on" in said
    both = [make_adapters.make(name, base, tmp_path / name) for name in ("saved", "saved_both")]
    assert "both hold lm_head" in refusal(fettle, REFUSED, base, out, merge_adapters=both)
    refusal(fettle, 64, base, out)  # no adapter
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert "is quantized" in refusal(fettle, REFUSED, quantized, out, adapter_name_or_path=adapter)
    assert not out.exists() or not list(out.iterdir())


def test_refuses_folders_that_hold_something(fettle, tmp_path, pair):
    base, adapter = pair
    assert "is read by this command" in fettle(
        "merge", model_name_or_path=base, adapter_name_or_path=adapter, output_dir=base, expect=REFUSED
    ).stderr
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "not empty" in refusal(fettle, REFUSED, base, out, adapter_name_or_path=adapter)
    merge(fettle, base, out, adapter, overwrite_output_dir=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "run.json").write_text("{}")
    done = fettle("merge", model_name_or_path=base, adapter_name_or_path=adapter, output_dir=out,
                  overwrite_output_dir=True, expect=REFUSED)
    assert "training run" in done.stderr


def test_overwriting_replaces_shards_by_one_file(fettle, tmp_path, pair):
    base, adapter = pair
    merge(fettle, base, tmp_path / "out", adapter, max_shard_size="100KB")
    merge(fettle, base, tmp_path / "out", adapter, overwrite_output_dir=True)
    assert list(files_of(tmp_path / "out")) == ["model.safetensors"]
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    fettle("verify", tmp_path / "out")


def test_a_merge_that_was_not_finished_is_made_anew(fettle, tmp_path, pair):
    base, adapter = pair
    out = tmp_path / "out"
    merge(fettle, base, out, adapter)
    whole = (out / "model.safetensors").read_bytes()
    (out / ".unfinished").touch()  # as if it had been killed while the weights were written
    (out / "config.json").unlink()
    (out / "model.safetensors").write_bytes(b"half")
    merge(fettle, base, out, adapter)
    assert (out / "model.safetensors").read_bytes() == whole and (out / "config.json").exists()
    assert not (out / ".unfinished").exists()


def test_says_what_makes_logits_overflow(fettle, tmp_path, pair):
    base, adapter = pair
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e30}))
    said = fettle("merge", model_name_or_path=base, adapter_name_or_path=adapter, output_dir=tmp_path / "out",
                  expect=76).stderr  # fmt: skip
    assert "too large" in said and "please report" not in said
    assert not (tmp_path / "out/config.json").exists()


def test_the_same_merge_is_not_made_again(fettle, tmp_path, pair):
    base, adapter = pair
    merge(fettle, base, tmp_path / "out", adapter)
    weights = tmp_path / "out/model.safetensors"
    before = weights.stat().st_mtime_ns
    options = {"model_name_or_path": base, "adapter_name_or_path": adapter, "output_dir": tmp_path / "out"}
    assert "already" in fettle("merge", **options).stderr and weights.stat().st_mtime_ns == before
    trained_on = safetensors.torch.load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    trained_on[name] = trained_on[name] * 2
    safetensors.torch.save_file(trained_on, adapter / "adapter_model.safetensors", {"format": "pt"})
    assert "not empty" in fettle("merge", **options, expect=REFUSED).stderr


def test_refuses_what_is_not_finite(fettle, tiny_models, tmp_path, pair):
    base, adapter = pair
    half = tiny_models("llama2", dtype="float16")
    file = adapter / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    for value, folder in ((1e6, half), (float("nan"), base)):
        weights[name][3, 0] = value
        safetensors.torch.save_file(weights, file, {"format": "pt"})
        said = refusal(fettle, DIVERGED, folder, tmp_path / "out", adapter_name_or_path=adapter)
        assert "model.layers.1.mlp.up_proj.weight holds NaN or infinity" in said


def test_a_full_disk_leaves_no_model(fettle, tmp_path, pair):
    base, adapter = pair
    line = ["bash", "-c", 'ulimit -f 200; exec "$@"', "-", find_program("fettle"), "merge",
            option("model_name_or_path", base), option("adapter_name_or_path", adapter), option("output_dir", tmp_path / "out")]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == DISK and "model.safetensors" in done.stderr
    assert not (tmp_path / "out/config.json").exists()
    merge(fettle, base, tmp_path / "out", adapter, overwrite_output_dir=True)


def test_a_signal_ends_it_without_a_model(tmp_path, pair):
    base, adapter = pair
    line = [find_program("fettle"), "merge", option("model_name_or_path", base), option("adapter_name_or_path", adapter),
            option("output_dir", tmp_path / "out"), option("validation_file", DATASETS / "wikitext2_raw_test.txt"),
            option("dataset_cache_directory", tmp_path), option("dataset_format", "text")]
    weights = tmp_path / "out/model.safetensors"
    with subprocess.Popen(list(map(str, line)), stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while not weights.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)  # once the weights are written; the perplexities would take long
        running.wait(timeout=60)
    assert running.returncode == 75
    assert weights.exists()
    assert not (tmp_path / "out/config.json").exists()


# ---------------------------------------------------------------------------------------------------------------------
# fettle verify


def test_verify_tells_a_model_from_a_damaged_one(fettle, tmp_path, pair):
    base, adapter = pair
    out = tmp_path / "out"
    merge(fettle, base, out, adapter)
    lines = fettle("verify", out).stdout.splitlines()
    assert [words in line for words, line in zip(
        ("all as written", "tensors, with the names and shapes of config.json", "all finite", "logits in float32 differ"),
        lines, strict=True)] == [True] * 4
    whole = tensors(out)

    def damaged(change, words):
        """Someone changed the weights, and made a manifest of that."""
        changed = {name: tensor.clone() for name, tensor in whole.items()}
        change(changed)
        safetensors.torch.save_file(changed, out / "model.safetensors", {"format": "pt"})
        probe = (out / "probe.safetensors").read_bytes()
        fettle("verify", "--write", out, expect=None)  # of what cannot be loaded it makes no probe
        (out / "probe.safetensors").write_bytes(probe)
        (out / "manifest.sha256").write_text(manifest(out))
        said = fettle("verify", out, expect=BROKEN)
        assert words in said.stderr.splitlines()[-1]
        return said.stdout.count("\n")

    def set_value(name, value):
        def change(tensors):
            tensors[name].view(-1)[5] = value
        return change

    assert damaged(lambda found: found.pop("model.norm.weight"), "missing model.norm.weight") == 1
    assert damaged(lambda found: found.update(other=torch.zeros(2)), "unknown other") == 1
    assert damaged(set_value("model.layers.2.mlp.up_proj.weight", float("inf")), "holds NaN or infinity") == 2
    assert damaged(set_value("model.layers.0.mlp.down_proj.weight", 3.0), "logits in float32 differ") == 3


def manifest(folder):
    """manifest.sha256 by hand, so that a probe of other weights can be in it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.sha256")
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def test_verify_of_an_adapter_needs_its_base(fettle, tmp_path, tiny_models, pair):
    base, adapter = pair
    assert "wrote" in fettle("verify", "--write", adapter).stdout
    assert (adapter / "probe.safetensors").exists()
    assert "logits in float32 differ" in fettle("verify", adapter).stdout  # its adapter_config.json names the base
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/model"}))
    (adapter / "manifest.sha256").write_text(manifest(adapter))
    said = fettle("verify", adapter).stdout
    assert "not checked: the base org/model is not here; give --model_name_or_path" in said
    assert "logits were not compared" in said
    assert "tolerance" in fettle("verify", adapter, model_name_or_path=base).stdout
    other = shutil.copytree(base, tmp_path / "other")
    weights = safetensors.torch.load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    safetensors.torch.save_file(weights, other / "model.safetensors", {"format": "pt"})
    said = fettle("verify", adapter, model_name_or_path=other, expect=BROKEN).stderr
    assert "the base is another one" in said
    fettle("verify", adapter, model_name_or_path=tiny_models("qwen3"), expect=BROKEN)


def test_verify_says_what_it_cannot_check(fettle, tmp_path, pair):
    base, _ = pair
    strange = shutil.copytree(base, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    assert "wrote no probe.safetensors" in fettle("verify", "--write", strange).stdout
    said = fettle("verify", strange).stdout
    assert "were not checked" in said and "mamba" in said and "there is no probe.safetensors" in said


def test_verify_refuses_a_probe_that_is_none(fettle, tmp_path, pair):
    base = shutil.copytree(pair[0], tmp_path / "base")
    for content in (b"", b"\x08" + bytes(7) + b"{}      "):
        (base / "probe.safetensors").write_bytes(content)
        (base / "manifest.sha256").write_text(manifest(base))
        assert "probe.safetensors" in fettle("verify", base, expect=BROKEN).stderr
    for tokens, logits in (([[1]], 512), ([1] * 65, 512), ([512], 512), ([-1], 512), ([1], 511), ([], 512)):
        safetensors.torch.save_file(
            {"tokens": torch.tensor(tokens, dtype=torch.int64), "logits": torch.zeros(logits)},
            base / "probe.safetensors", {"format": "fettle probe 1"})
        (base / "manifest.sha256").write_text(manifest(base))
        fettle("verify", base, expect=BROKEN)
