# SPDX-License-Identifier: Apache-2.0
"""Makes tests/data/gguf: tiny models in GGUF files, and their weights as transformers reads them from there.

    python tests/golden/make_gguf.py [FOLDER]

The `gguf` package writes the files as llama.cpp's converter does (q and k rows of llama models interleaved, Llama 3's
rope scaling as rope_freqs). <name>.safetensors holds every tensor, dequantized by transformers, in float32. types.gguf holds the same
values in every type that Fettle writes.
"""

import pathlib
import sys

import gguf
import numpy
import safetensors.torch
import torch
import transformers
from gguf import GGMLQuantizationType as Type

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "data/gguf"
HEADS, KEY_VALUE_HEADS, HIDDEN = 4, 2, 32
LLAMA3 = {"factor": 32.0, "low": 1.0, "high": 4.0, "original": 8192, "theta": 500000.0}

# name: (architecture, head size, intermediate, vocabulary, output.weight of its own, type of each kind of tensor)
MODELS = {
    "llama": ("llama", 8, 64, 64, False, {
        "token_embd": Type.Q8_0, "attn_q": Type.Q4_0, "attn_k": Type.Q4_1, "attn_v": Type.Q5_0, "attn_output": Type.Q5_1,
        "ffn_gate": Type.Q4_1, "ffn_up": Type.Q4_0, "ffn_down": Type.F32}),
    "qwen2": ("qwen2", 8, 32, 32, True, {}),
    "qwen3": ("qwen3", 16, 32, 32, True, {"attn_q": Type.F16, "attn_output": Type.BF16}),
}  # fmt: skip


def interleave(weights, heads):
    """The rows of each head as llama.cpp orders them: the halves that rotary embeddings pair lie side by side."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def shapes(architecture, head, intermediate, vocabulary, untied):
    """GGUF name → shape, outermost first."""
    query, key = HEADS * head, KEY_VALUE_HEADS * head
    yield "token_embd.weight", (vocabulary, HIDDEN)
    yield "output_norm.weight", (HIDDEN,)
    if untied:
        yield "output.weight", (vocabulary, HIDDEN)
    block = {
        "attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,),
        "attn_q.weight": (query, HIDDEN), "attn_k.weight": (key, HIDDEN), "attn_v.weight": (key, HIDDEN),
        "attn_output.weight": (HIDDEN, query), "ffn_gate.weight": (intermediate, HIDDEN),
        "ffn_up.weight": (intermediate, HIDDEN), "ffn_down.weight": (HIDDEN, intermediate),
    }  # fmt: skip
    if architecture == "qwen2":
        block |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if architecture == "qwen3":
        block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
    yield from ((f"blk.0.{name}", shape) for name, shape in block.items())


def rope_factors(head):
    """Llama 3's divisors of the rotary frequencies, by the formula of its model card."""
    wavelengths = 2 * numpy.pi * LLAMA3["theta"] ** (numpy.arange(0, head, 2) / head)
    smooth = (LLAMA3["original"] / wavelengths - LLAMA3["low"]) / (LLAMA3["high"] - LLAMA3["low"])
    smooth = smooth.clip(0, 1)
    return (1 / ((1 - smooth) / LLAMA3["factor"] + smooth)).astype(numpy.float32)


def write(path, name):
    architecture, head, intermediate, vocabulary, untied, types = MODELS[name]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(LLAMA3["theta"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_vocab_size(vocabulary)
    writer.add_token_list([f"<{i}>" for i in range(vocabulary)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = numpy.random.default_rng(sum(name.encode()))
    for tensor, shape in shapes(architecture, head, intermediate, vocabulary, untied):
        weights = random.standard_normal(shape, dtype=numpy.float32) * 0.2
        if architecture == "llama" and ("attn_q." in tensor or "attn_k." in tensor):
            weights = interleave(weights, HEADS if "attn_q." in tensor else KEY_VALUE_HEADS)
        kind = tensor.removeprefix("blk.0.").removesuffix(".weight")
        stored = types.get(kind, Type.F32 if len(shape) == 1 else Type.Q8_0)
        writer.add_tensor(tensor, gguf.quants.quantize(weights, stored), raw_dtype=stored)
    if architecture == "llama":
        writer.add_tensor("rope_freqs.weight", rope_factors(head))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_types(path):
    """One matrix in every type, named by it. Its rows have scales of all sizes, ties, and nothing but one value."""
    random = numpy.random.default_rng(5)
    values = random.standard_normal((24, 64), dtype=numpy.float32)
    values[:12] *= numpy.float32(10.0) ** numpy.arange(-9, 3, dtype=numpy.float32)[:, None]
    values[12] = 0
    values[13, 1:] = -3
    values[14] = 0.375
    values[15] = -7
    values[16] = numpy.arange(-32, 32) / 2  # quotients that lie in the middle of two integers
    values[17] = numpy.arange(64) % 17 - 8.5
    values[18, ::2] = 0
    values[19] = 1e-42
    values[20, :2] = 65519, -65519
    values[21] = numpy.float32(2.0) ** -25 * numpy.arange(64)  # subnormal halves, and ties between them
    writer = gguf.GGUFWriter(path, "llama")
    for stored in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1):
        # ggml's and gguf's quotients by a scale that is nearly 0 are no numbers; a half's is 0 there, and so are they.
        source = numpy.where(abs(values) < 1e-38, 0, values) if stored.name.startswith("Q") else values
        writer.add_tensor(stored.name, gguf.quants.quantize(source, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantized(path):
    """Every tensor of a GGUF file as transformers gives it to the model, tied ones once."""
    config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if path.stem in MODELS:
        config.head_dim = MODELS[path.stem][1]  # transformers does not read Qwen3's attention.key_length
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32
    )
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_types(folder / "types.gguf")
    for name in MODELS:
        path = folder / f"{name}.gguf"
        write(path, name)
        values = path.with_suffix(".safetensors")
        safetensors.torch.save_file(dequantized(path), values, metadata={"format": "pt"})
        values.chmod(0o644)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
