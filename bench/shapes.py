# SPDX-License-Identifier: Apache-2.0
"""The models that are measured: Llamas of well-known shapes with random weights. Speed does not depend on their values.

    python bench/shapes.py SHAPE FOLDER   makes one
"""

import dataclasses
import pathlib
import shutil
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool
    rows: int = 0  # of 512 tokens, a step of bench.py
    steps: int = 0  # of a measurement; the first does not count

    @property
    def products(self):
        """The matrix products of one token: {(inputs, outputs): how many}."""
        attended, kept = self.heads * self.head_size, self.key_heads * self.head_size
        counted = {}
        for inputs, outputs, count in (
            (self.hidden, attended, self.layers), (self.hidden, kept, 2 * self.layers),
            (attended, self.hidden, self.layers), (self.hidden, self.intermediate, 2 * self.layers),
            (self.intermediate, self.hidden, self.layers), (self.hidden, self.vocabulary, 1),
        ):
            counted[inputs, outputs] = counted.get((inputs, outputs), 0) + count
        return counted

    def flops_per_token(self, context, is_full):
        """Forward 2 a weight, 2 for the input's gradient, 2 for the weight's if all are trained; attention to `context`
        keys on average, forward and twice that backward."""
        weights = sum(inputs * outputs * count for (inputs, outputs), count in self.products.items())
        return (6 if is_full else 4) * weights + 3 * 4 * self.layers * self.heads * self.head_size * context


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("135M", 576, 1536, 30, 9, 3, 64, 49152, True, rows=4, steps=6),  # SmolLM2-135M
        Shape("360M", 960, 2560, 32, 15, 5, 64, 49152, True, rows=4, steps=4),  # SmolLM2-360M
        Shape("1B", 2048, 8192, 16, 32, 8, 64, 128256, True, rows=2, steps=4),  # Llama 3.2 1B
        Shape("1B, one layer", 2048, 8192, 1, 32, 8, 64, 128256, True),
        Shape("8B, one layer", 4096, 14336, 1, 32, 8, 128, 128256, False, rows=2, steps=4),  # Llama 3.1 8B
    )
}


def configuration(shape, kind="LlamaConfig"):
    import transformers

    return getattr(transformers, kind)(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_size,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=shape.is_tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )


def save(model, folder):
    """With a tokenizer, which is not needed for tokenized records but looked for."""
    model.save_pretrained(folder)
    for file in (REPOSITORY / "tests/data/tokenizers/smollm2").iterdir():
        shutil.copy(file, folder)


def make_model(folder, shape):
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    save(transformers.LlamaForCausalLM(configuration(shape)), folder)
    torch.set_default_dtype(torch.float32)


if __name__ == "__main__":
    make_model(pathlib.Path(sys.argv[2]), SHAPES[sys.argv[1]])
