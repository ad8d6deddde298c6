# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct (a GGUF file with 4-bit weights) against transformers and TRL: `make nightly`.

WikiText-2 perplexity: the beginning of the raw test file is tokenised as one document, closed by the end token and cut
into pieces of 512 tokens; each piece is scored alone, its first token being given; perplexity is e to the mean over all
scored tokens. Fine-tuning: the same medical questions in the same order with the same settings by `fettle train` and by
TRL's SFTTrainer, each from its own random initial adapter; `fettle eval` scores both adapters on held-out records.
"""

import json
import math

import datasets
import peft
import pytest
import torch
import transformers
import trl
from conftest import DATASETS, REPOSITORY, THREADS, TOKENIZERS, read_jsonl

FOLDER = REPOSITORY / ".downloads"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEDICAL = REPOSITORY / "examples/data/medical_meadow_wikidoc_patient_2000.json"
CHARACTERS = 100_000  # of WikiText-2: 25 thousand tokens
PIECE = 512
TRAINED, HELD_OUT, MAX_LENGTH = 240, 60, 512

pytestmark = pytest.mark.skipif(
    not (FOLDER / FILE).exists(), reason=f".downloads/{FILE} is absent: run tools/setup.sh model"
)


@pytest.fixture(scope="module", autouse=True)
def threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(TOKENIZERS / "smollm2")


def load(dtype):
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE, dtype=dtype)


def plain(model):
    """The same weights as an ordinary model: the Trainer refuses one that came out of a GGUF file."""
    config = transformers.LlamaConfig(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    copy = transformers.AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    copy.load_state_dict(model.state_dict())
    return copy


def perplexity(model, pieces):
    """Token-weighted, each piece in a forward of its own."""
    total = targets = 0
    with torch.no_grad():
        for piece in pieces:
            ids = torch.tensor(piece)
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
            targets += len(piece) - 1
    return math.exp(total / targets), targets


@pytest.mark.parametrize("bf16", [False, True])
def test_wikitext2_perplexity(fettle, tokenizer, tmp_path, bf16):
    text = (DATASETS / "wikitext2_raw_test.txt").read_bytes().decode()[:CHARACTERS]
    file = tmp_path / "wikitext2.txt"
    file.write_bytes(text.encode())
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
    pieces = [ids[start : start + PIECE] for start in range(0, len(ids), PIECE)]
    theirs, targets = perplexity(load(torch.bfloat16 if bf16 else torch.float32), pieces)
    done = fettle(
        "eval",
        model_name_or_path=FOLDER / FILE,
        tokenizer_name=TOKENIZERS / "smollm2",
        validation_file=file,
        dataset_format="text",
        sample_by="document",
        packing_strategy="bfd_split",
        max_seq_length=PIECE,
        bf16=bf16,
        timeout=1200,
    )
    ours = json.loads(done.stdout)
    print(f"perplexity of {targets} tokens: transformers {theirs:.4f}, fettle {ours['perplexity']:.4f}")
    assert ours["target_tokens"] == targets
    assert ours["perplexity"] == pytest.approx(theirs, rel=1e-3)


def train_theirs(tokenizer, questions, settings, folder):
    """TRL with the answers as targets, in the chat template, padded, on an adapter of PEFT's own initialisation."""
    chats = [
        {
            "prompt": [{"role": "user", "content": question["instruction"]}],
            "completion": [{"role": "assistant", "content": question["output"]}],
        }
        for question in questions
    ]
    trainer = trl.SFTTrainer(
        plain(load(torch.bfloat16)),
        args=trl.SFTConfig(
            output_dir=str(folder / "trainer"),
            bf16=True,
            packing=False,
            max_length=MAX_LENGTH,
            activation_checkpointing=False,
            train_sampling_strategy="sequential",
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=datasets.Dataset.from_list(chats),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(folder))
    return [line for line in trainer.state.log_history if "loss" in line]


def test_fine_tuning_reaches_the_perplexity_of_trl(fettle, tokenizer, write_jsonl, tmp_path):
    # The instruction is the same in every record and the question is the input: here the question is the instruction.
    questions = [{"instruction": r["input"], "output": r["output"]} for r in json.loads(MEDICAL.read_text())]
    train_file = write_jsonl("train.jsonl", questions[:TRAINED])
    validation_file = write_jsonl("validation.jsonl", questions[TRAINED : TRAINED + HELD_OUT])
    settings = {
        "max_steps": 30,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 1.0,
        "seed": 42,
    }
    common = {
        "model_name_or_path": FOLDER / FILE,
        "tokenizer_name": TOKENIZERS / "smollm2",
        "validation_file": validation_file,
        "max_seq_length": MAX_LENGTH,
        "timeout": 2400,
    }

    def held_out(**options):
        return json.loads(fettle("eval", **common, **options).stdout)["perplexity"]

    theirs = train_theirs(tokenizer, questions[:TRAINED], settings, tmp_path / "theirs")
    ours_folder = tmp_path / "ours"
    fettle(
        "train",
        **common,
        **settings,
        train_file=train_file,
        packing=False,
        shuffle=False,
        lora_r=8,
        lora_alpha=16,
        logging_steps=1,
        do_eval=False,
        output_dir=ours_folder,
    )
    ours = [line for line in read_jsonl(ours_folder / "metrics.jsonl") if "loss" in line]
    # B is zero at first, so both start from the same function: the same tokens and masks give the same first loss.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=2e-3)
    before = held_out()
    after_theirs = held_out(adapter_name_or_path=tmp_path / "theirs")
    after_ours = held_out(adapter_name_or_path=ours_folder)
    print(f"held-out perplexity: before {before:.3f}, TRL {after_theirs:.3f}, fettle {after_ours:.3f}")
    assert after_ours < 0.95 * before
    assert after_ours == pytest.approx(after_theirs, rel=0.01)


def test_a_base_in_few_bits_learns_nearly_as_well(fettle, write_jsonl, tmp_path):
    """QLoRA's promise, on weights that came out of another 4-bit format: what it costs in perplexity."""
    questions = [{"instruction": r["input"], "output": r["output"]} for r in json.loads(MEDICAL.read_text())]
    options = {
        "model_name_or_path": FOLDER / FILE,
        "tokenizer_name": TOKENIZERS / "smollm2",
        "train_file": write_jsonl("train.jsonl", questions[:TRAINED]),
        "validation_file": write_jsonl("validation.jsonl", questions[TRAINED : TRAINED + HELD_OUT]),
        "max_steps": 12,
        "learning_rate": 5e-4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "max_seq_length": MAX_LENGTH,
        "save_strategy": "no",
        "timeout": 1200,
    }
    formats = {
        "bf16": {},
        "int8": {"load_in_8bit": True},
        "nf4": {"load_in_4bit": True},
        "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    }
    results = {}
    for name, few_bits in formats.items():
        fettle("train", output_dir=tmp_path / name, **options, **few_bits)
        results[name] = json.loads((tmp_path / name / "all_results.json").read_text())
        after, before = (results[name][key] for key in ("eval_perplexity", "eval_perplexity_before"))
        print(f"{name}: perplexity {before:.3f} before, {after:.3f} after 12 steps, "
              f"{results[name]['peak_memory_bytes'] / 1e9:.2f} GB, {results[name]['train_tokens_per_second']:.0f} tokens/s")
        assert after < before
    def cost(name, when):
        return results[name][when] / results["bf16"][when]

    assert cost("int8", "eval_perplexity") == pytest.approx(1, abs=0.01)
    for name in ("nf4", "int4", "fp4"):  # tuning makes up for a part of what rounding has cost
        assert 1 < cost(name, "eval_perplexity") < cost(name, "eval_perplexity_before")
    assert cost("nf4", "eval_perplexity") < cost("fp4", "eval_perplexity")
