# SPDX-License-Identifier: Apache-2.0
"""The same training run by TRL or transformers and by Fettle: one set of settings, spelled for each."""

import dataclasses
import random

import datasets
import peft
import reference
import torch
import transformers
import trl
from conftest import read_jsonl

datasets.disable_progress_bars()


@dataclasses.dataclass
class Settings:
    """Named as transformers names them. Clipping is small enough to act."""

    max_steps: int = 20
    learning_rate: float = 1e-2
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 2
    warmup_steps: int = 4
    lr_scheduler_type: str = "cosine"
    weight_decay: float = 0.1
    max_grad_norm: float = 0.4


def random_records(count, vocabulary, seed=0):
    """Records of 2 to 40 tokens, the prompt's labels masked; few different tokens, so there is a loss to lower."""
    generator = random.Random(seed)
    tokens = reference.ordinary_tokens(vocabulary)
    tokens = [generator.choice(tokens) for _ in range(24)]
    records = []
    for _ in range(count):
        ids = [generator.choice(tokens) for _ in range(generator.randint(2, 40))]
        prompt = generator.randint(1, len(ids) - 1)
        records.append({"input_ids": ids, "labels": [reference.IGNORE] * prompt + ids[prompt:]})
    return records


def load(model_folder, adapter_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if adapter_folder is None:
        return model
    return peft.PeftModel.from_pretrained(model, adapter_folder, is_trainable=True)


def arguments(settings, output_dir):
    return {
        **dataclasses.asdict(settings),
        "output_dir": str(output_dir),
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "activation_checkpointing": False,
    }


def train_theirs(model, records, settings, output_dir):
    """An adapter is trained by TRL; a whole model, or an adapter on a quantized one, which TRL would round to bfloat16,
    by transformers. Returns the log's lines, one a step."""
    data = datasets.Dataset.from_list(records)
    if isinstance(model, peft.PeftModel) and not getattr(model, "is_loaded_in_4bit", False):
        folder = model.get_base_model().config.name_or_path
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token
        trainer = trl.SFTTrainer(
            model,
            args=trl.SFTConfig(**arguments(settings, output_dir), packing=False, max_length=None),
            train_dataset=data,
            processing_class=tokenizer,
        )
    else:
        trainer = transformers.Trainer(
            model,
            args=transformers.TrainingArguments(**arguments(settings, output_dir)),
            train_dataset=data,
            data_collator=trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0),
        )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def train_ours(fettle, settings, output_dir, **options):
    """Runs `fettle train` in float32 on unshuffled, unpacked, pre-tokenised records. Returns metrics.jsonl's lines."""
    options = {
        **dataclasses.asdict(settings),
        "dataset_format": "tokenized",
        "packing": False,
        "shuffle": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_seq_length": 256,
        "output_dir": output_dir,
        **options,
    }
    fettle("train", **options)
    return [line for line in read_jsonl(output_dir / "metrics.jsonl") if "loss" in line]
