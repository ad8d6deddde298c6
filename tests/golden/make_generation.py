# SPDX-License-Identifier: Apache-2.0
"""Writes generation.json (what transformers generates greedily from examples/stories260K) and processors.json (logits
after its processors, as it orders them for sampling).

    python tests/golden/make_generation.py
"""

import json
import pathlib

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
# prompt, new tokens, repetition penalty
CASES = [
    ("Once upon a time", 100, 1.0),
    ("Once upon a time", 60, 1.3),
    ("The dog", 40, 1.1),
]

# repetition_penalty, temperature, top_k, top_p, min_p
PROCESSORS = [
    (1.0, 1.0, 0, 1.0, 0.0),
    (1.3, 1.0, 0, 1.0, 0.0),
    (1.0, 0.7, 0, 1.0, 0.0),
    (1.0, 1.0, 5, 1.0, 0.0),
    (1.0, 1.0, 0, 0.8, 0.0),
    (1.2, 0.5, 12, 0.9, 0.0),
    (0.8, 2.0, 100, 0.01, 0.0),
    (1.0, 1.0, 0, 1.0, 0.1),
    (1.0, 1.0, 0, 1.0, 1.0),
    (1.2, 1.5, 20, 0.95, 0.05),
]


def processed(logits, tokens, options):
    """As GenerationMixin._get_logits_processor orders them."""
    penalty, temperature, top_k, top_p, min_p = options
    processors = transformers.LogitsProcessorList()
    if penalty != 1.0:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
    if temperature != 1.0:
        processors.append(transformers.TemperatureLogitsWarper(temperature))
    if top_k > 0:
        processors.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1.0:
        processors.append(transformers.TopPLogitsWarper(top_p))
    if min_p > 0.0:
        processors.append(transformers.MinPLogitsWarper(min_p))
    values = processors(torch.tensor([tokens]), logits.clone()[None])[0].tolist()
    return [None if value == float("-inf") else value for value in values]


def write_processors():
    torch.manual_seed(3)
    logits = 3 * torch.randn(40)
    tokens = [3, 17, 3, 39]
    results = {
        "logits": logits.tolist(),
        "tokens": tokens,
        "cases": [
            {
                "repetition_penalty": options[0],
                "temperature": options[1],
                "top_k": options[2],
                "top_p": options[3],
                "min_p": options[4],
                "expected": processed(logits, tokens, options),
            }
            for options in PROCESSORS
        ],
    }
    pathlib.Path(__file__).with_name("processors.json").write_text(json.dumps(results) + "\n")


def main():
    write_processors()
    folder = ROOT / "examples" / "stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    results = []
    for text, count, penalty in CASES:
        prompt = tokenizer(text, return_tensors="pt").input_ids
        output = model.generate(
            prompt, max_new_tokens=count, do_sample=False, repetition_penalty=penalty, eos_token_id=None
        )
        results.append(
            {
                "prompt": prompt[0].tolist(),
                "repetition_penalty": penalty,
                "new_tokens": output[0, prompt.shape[1] :].tolist(),
                "text": tokenizer.decode(output[0], skip_special_tokens=True),
            }
        )
    file = pathlib.Path(__file__).with_name("generation.json")
    file.write_text(json.dumps(results, indent=None) + "\n")


if __name__ == "__main__":
    main()
