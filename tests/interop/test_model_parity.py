# SPDX-License-Identifier: Apache-2.0
"""Logits, loss and every gradient of each model family against transformers and PEFT.

Ours see all documents in one stream; the reference sees each document alone, so these tests also say that documents of
a stream do not see each other. The documents hold a window of 16 tokens and the dynamic rope's 24 many times over.

float32 tolerances are the project's: logits 1e-4 absolute, loss 1e-5 relative, a gradient 1e-4 of its norm.
bfloat16 has no exact answer. Truth is transformers in float32 on the same bfloat16 weights; transformers in bfloat16
(eager and sdpa attention, adapter in float32 and in bfloat16) misses it by some distance, and ours may miss it by no
more than the farthest of those, times a factor for chance: 1.1 for root mean squares over 10^5 and more logits, which
hardly vary, and 1.5 for the largest single error and for gradients, which vary by up to 1.9 between transformers' own
nearest and farthest variant (measured).
"""

import dataclasses

import make_adapters
import make_models
import pytest
import reference
import safetensors.torch
import torch
import transformers

LENGTHS = (1, 40, 7, 1, 23, 64, 2, 31)
BFLOAT16_FAMILIES = ("llama3", "llama3_untied", "mistral", "qwen2", "qwen3")


@dataclasses.dataclass
class Case:
    """One model, with an adapter or wholly trainable, and the documents it is tried on."""

    model: object
    documents: list
    adapter: object = None


@pytest.fixture
def ours(parity, tmp_path):
    """Runs our program on a case and returns its Result."""

    def run(case, *options, dtype="float32"):
        batch = reference.write_batch(tmp_path / "batch.safetensors", case.documents)
        output = tmp_path / "ours.safetensors"
        trainable = ("--adapter", case.adapter) if case.adapter else ("--full",)
        parity("--model", case.model, "--batch", batch, "--output", output, "--dtype", dtype, *trainable, *options)
        tensors = safetensors.torch.load_file(output)
        targets = tensors["target_tokens"].item()
        assert targets == sum(document.targets() for document in case.documents)
        gradients = {name.removeprefix("grad."): t / targets for name, t in tensors.items() if name.startswith("grad.")}
        return reference.Result(tensors["logits"], tensors["loss_sum"].item() / targets, gradients)

    return run


@pytest.fixture
def make_case(tiny_models, tmp_path_factory):
    def make(family, adapter=None, **variant):
        model = tiny_models(family, **variant)
        vocabulary = transformers.AutoConfig.from_pretrained(model).vocab_size
        documents = reference.random_documents(LENGTHS, vocabulary, seed=len(family))
        folder = make_adapters.make(adapter, model, tmp_path_factory.mktemp(adapter)) if adapter else None
        return Case(model, documents, folder)

    return make


def relative_error(ours, truth):
    return ((ours - truth).norm() / truth.norm()).item()


def assert_equal_in_float32(ours, truth):
    assert ours.logits.shape == truth.logits.shape
    assert (ours.logits - truth.logits).abs().max().item() <= 1e-4
    assert abs(ours.loss - truth.loss) <= 1e-5 * truth.loss
    assert sorted(ours.gradients) == sorted(truth.gradients)
    errors = {name: relative_error(ours.gradients[name], truth.gradients[name]) for name in truth.gradients}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= 1e-4, f"gradient of {worst} is off by {errors[worst]:.1e} of its norm"


@pytest.mark.parametrize("family", make_models.FAMILIES)
def test_full_float32(ours, make_case, family):
    case = make_case(family)
    assert_equal_in_float32(ours(case), reference.run(reference.load(case.model), case.documents))


@pytest.mark.parametrize("family", make_models.FAMILIES)
def test_lora_float32(ours, make_case, family):
    case = make_case(family, adapter="all_linear")
    assert_equal_in_float32(ours(case), reference.run(reference.load(case.model, case.adapter), case.documents))


@pytest.mark.parametrize("adapter", make_adapters.ADAPTERS)
@pytest.mark.parametrize("family", ["llama2", "qwen3_untied"])
def test_kinds_of_adapter(ours, make_case, family, adapter):
    case = make_case(family, adapter=adapter)
    assert_equal_in_float32(ours(case), reference.run(reference.load(case.model, case.adapter), case.documents))


@pytest.mark.parametrize("family", ["llama3", "llama3_untied", "qwen2"])
@pytest.mark.parametrize("variant", [{"sharded": True}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "sharded": True}])
def test_kinds_of_file(ours, make_case, family, variant):
    """The same answer from several files, and from bfloat16 weights computed with in float32."""
    case = make_case(family, **variant)
    assert_equal_in_float32(ours(case), reference.run(reference.load(case.model), case.documents))


@pytest.mark.parametrize("adapter", ["all_linear", None])
@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_gradient_checkpointing_changes_no_bit(ours, make_case, family, adapter):
    for dtype in ("float32", "bfloat16"):
        case = make_case(family, adapter=adapter)
        kept, recomputed = ours(case, dtype=dtype), ours(case, "--gradient_checkpointing", dtype=dtype)
        assert kept.loss == recomputed.loss
        for name, gradient in kept.gradients.items():
            assert torch.equal(gradient, recomputed.gradients[name]), name


def distances(result, truth):
    """How far a bfloat16 result is from the truth, by several measures."""
    error = result.logits - truth.logits
    gradients = [torch.cat([r.gradients[name].flatten() for name in truth.gradients]) for r in (result, truth)]
    return {
        "logits, root mean square": error.square().mean().sqrt().item(),
        "logits, largest": error.abs().max().item(),
        "all gradients": relative_error(*gradients),
        "the worst gradient": max(relative_error(result.gradients[n], g) for n, g in truth.gradients.items()),
    }


@pytest.mark.parametrize("adapter", ["all_linear", "rslora", None])
@pytest.mark.parametrize("family", BFLOAT16_FAMILIES)
def test_bfloat16_is_within_the_spread_of_transformers(ours, make_case, family, adapter):
    case = make_case(family, adapter=adapter, dtype="bfloat16")
    truth = reference.run(reference.load(case.model, case.adapter), case.documents)
    theirs = []
    for attention in ("eager", "sdpa"):
        for autocast in (True, False) if adapter else (True,):
            model = reference.load(case.model, case.adapter, torch.bfloat16, attention, autocast)
            theirs.append(distances(reference.run(model, case.documents), truth))
    result = ours(case, dtype="bfloat16")
    assert sorted(result.gradients) == sorted(truth.gradients)
    for measure, distance in distances(result, truth).items():
        farthest = max(other[measure] for other in theirs)
        factor = 1.1 if measure == "logits, root mean square" else 1.5
        print(f"{measure}: ours {distance:.4f}, transformers up to {farthest:.4f}")
        assert distance <= factor * farthest, measure
    # The loss averages errors of either sign, so it is far nearer than a single logit's error.
    assert abs(result.loss - truth.loss) <= max(other["logits, root mean square"] for other in theirs)
