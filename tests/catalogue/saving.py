"""The ways in which adapters get onto a disk: by PEFT, by trainers, by older versions, with a tokenizer beside them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from workshop import Saver, Workshop, train, write_tokenizer
from zoo import VOCAB


def with_tokenizer(n_tokens: int = VOCAB, template: str | None = None) -> Saver:
    def save(shop: Workshop, live: PeftModel, folder: Path) -> Path:
        live.save_pretrained(folder)
        return write_tokenizer(folder, n_tokens, template=template)

    return save


def with_another(shop: Workshop, live: PeftModel, folder: Path) -> Path:
    """Two adapters: one in the folder, one below it."""
    live.add_adapter("second", LoraConfig(r=2, target_modules=["k_proj", "down_proj"]))
    live.set_adapter("second")
    train(live, seed=2)
    live.save_pretrained(folder)
    return folder


def the_other(shop: Workshop, live: PeftModel, folder: Path) -> Path:
    return with_another(shop, live, folder) / "second"


def saved_again(shop: Workshop, live: PeftModel, folder: Path) -> Path:
    """Loaded from disk and saved once more."""
    first = folder.with_name(f"{folder.name}-first")
    live.save_pretrained(first)
    base = live.get_base_model().config._name_or_path
    again = PeftModel.from_pretrained(type(live.get_base_model()).from_pretrained(base), first, is_trainable=True)
    again.save_pretrained(folder)
    return folder


def keywords(**settings: Any) -> Saver:
    """Saved with keywords of save_pretrained."""

    def save(shop: Workshop, live: PeftModel, folder: Path) -> Path:
        live.save_pretrained(folder, **settings)
        return folder

    return save


def edited(**changes: Any) -> Saver:
    """With fields of the config as other versions of PEFT write them; None takes a field away."""

    def save(shop: Workshop, live: PeftModel, folder: Path) -> Path:
        live.save_pretrained(folder)
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in config.items() if k not in changes or v is not None}))
        return folder

    return save


def with_its_ledger(shop: Workshop, live: PeftModel, folder: Path) -> Path:
    """Trained for two steps under Suture's callback."""
    from suture import ProofCallback

    return in_a_checkpoint(shop, live, folder, callbacks=[ProofCallback()])


def in_a_checkpoint(shop: Workshop, live: PeftModel, folder: Path, **trainer: Any) -> Path:
    """Trained for two steps by Transformers' Trainer, in its checkpoint folder."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    rows = torch.arange(VOCAB).reshape(8, -1)
    data = [{"input_ids": row, "labels": row} for row in rows]
    args = TrainingArguments(
        str(folder), max_steps=2, save_steps=1, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[],
        use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    it = Trainer(live, args, train_dataset=data, **trainer)
    it.remove_callback(PrinterCallback)
    it.train()
    return folder / "checkpoint-2"


def by_sft(template: str | None = None) -> Saver:
    """Trained for two steps by TRL's SFTTrainer, on texts or on chats, in its checkpoint folder."""

    def save(shop: Workshop, live: PeftModel, folder: Path) -> Path:
        import datasets
        from transformers import AutoTokenizer, PrinterCallback
        from trl import SFTConfig, SFTTrainer

        datasets.disable_progress_bars()
        tokenizer = AutoTokenizer.from_pretrained(live.get_base_model().config._name_or_path)
        tokenizer.chat_template = template
        texts = [" ".join(f"w{3 + (7 * i + j) % 90}" for j in range(12)) for i in range(8)]
        turns = [[{"role": "user", "content": t}, {"role": "assistant", "content": t}] for t in texts]
        rows = [{"messages": turn} for turn in turns] if template else [{"text": text} for text in texts]
        data = datasets.Dataset.from_list(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL uses settings of Transformers by their old names
            args = SFTConfig(
                str(folder), max_steps=2, save_steps=1, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[],
                use_cpu=True, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, bf16=False,
                gradient_checkpointing=False,
            )  # fmt: skip
            it = SFTTrainer(live, args=args, train_dataset=data, processing_class=tokenizer)
            it.remove_callback(PrinterCallback)
            it.train()
        return folder / "checkpoint-2"

    return save
