# SPDX-License-Identifier: Apache-2.0
"""The reference: transformers (and PEFT) run on each document alone, one after the other."""

import dataclasses
import warnings

import numpy
import peft
import safetensors.torch
import torch
import transformers

# Before threads compute, as ops::settle_vector_math on our side: MKL's choice of a kernel at its first call is a race
# (pytorch/pytorch#188792), which the truth would lose now and then too.
for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
    function(torch.ones(1))

IGNORE = -100


@dataclasses.dataclass
class Document:
    """Labels as transformers takes them: not shifted, IGNORE where there is no target."""

    input_ids: list
    labels: list

    def targets(self):
        return sum(label != IGNORE for label in self.labels[1:])


@dataclasses.dataclass
class Result:
    logits: torch.Tensor  # [T, V] float32, of all documents
    loss: float  # mean over all targets
    gradients: dict  # name: float32 tensor, of that mean


def ordinary_tokens(vocabulary):
    """Ids that are no special token of a tiny model; transformers gives a padding token's embedding no gradient."""
    return range(3, min(vocabulary, 3968))


def random_documents(lengths, vocabulary, seed=0):
    """Documents of the given lengths. Each has a masked beginning and some masked tokens; every fifth is all masked."""
    generator = numpy.random.default_rng(seed)
    documents = []
    for number, length in enumerate(lengths):
        ids = generator.choice(ordinary_tokens(vocabulary), length)
        masked = (numpy.arange(length) < length // 4) | (generator.random(length) < 0.2) | (number % 5 == 4)
        documents.append(Document(ids.tolist(), numpy.where(masked, IGNORE, ids).tolist()))
    return documents


def write_batch(path, documents):
    """The documents as one stream, as fettle_parity reads it."""
    boundaries = numpy.concatenate([[0], numpy.cumsum([len(document.input_ids) for document in documents])])
    stream = {
        "tokens": sum((document.input_ids for document in documents), []),
        "labels": sum((document.labels for document in documents), []),
        "cu_seqlens": boundaries.tolist(),
    }
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in stream.items()}
    safetensors.torch.save_file(tensors, path)
    return path


def load(model_folder, adapter_folder=None, dtype=torch.float32, attention="sdpa", autocast_adapter=True):
    """The model ready to train: with an adapter only its weights need gradients, else all do."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype, attn_implementation=attention)
    if adapter_folder is not None:
        model = peft.PeftModel.from_pretrained(
            model, adapter_folder, is_trainable=True, autocast_adapter_dtype=autocast_adapter
        )
    return model.eval()


def forget_length(model):
    """Dynamic rope keeps the frequencies of the longest document it has met; a document alone must not see that."""
    for module in model.modules():
        if hasattr(module, "original_inv_freq"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()


def saved_name(name):
    """A PEFT parameter's name in adapter_model.safetensors."""
    return name.replace(".default", "").replace(".modules_to_save", "")


def run(model, documents):
    """Logits, mean loss over all targets and every gradient, each document in a forward of its own."""
    targets = sum(document.targets() for document in documents)
    logits, total = [], 0.0
    for document in documents:
        forget_length(model)
        ids = torch.tensor([document.input_ids])
        output = model(input_ids=ids, use_cache=False).logits[0].float()
        logits.append(output.detach())
        if document.targets():
            labels = torch.tensor(document.labels)
            loss = torch.nn.functional.cross_entropy(output[:-1], labels[1:], ignore_index=IGNORE, reduction="sum")
            (loss / targets).backward()
            total += loss.item()
    gradients = {
        saved_name(name): weight.grad.float() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return Result(torch.cat(logits), total / targets, gradients)


def quiet():
    """Silences what the libraries say about their own deprecations; nothing of ours warns through Python."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


quiet()
