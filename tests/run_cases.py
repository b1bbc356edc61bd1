"""A trainer's checkpoints for the rules that look at one alone: written by Transformers and PEFT, spoilt by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import VOCAB, make_tokenizer, wrapped
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from suture.rules import diagnose_run
from suture.run_folder import read_run_folder
from suture.values import Finding

ARGS = {
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "seed": 3,
}
WEIGHTS = "adapter_model.safetensors"
STATE = "trainer_state.json"


def train(base: Path, out: Path, *callbacks: Any, kind: Any = Trainer, **changes: Any) -> Path:
    """Six steps on random tokens, a checkpoint after every second one."""
    torch.manual_seed(3)
    model = wrapped(AutoModelForCausalLM.from_pretrained(base))
    ids = torch.randint(3, VOCAB, (8, 12), generator=torch.Generator().manual_seed(0)).tolist()
    made = kind(
        model=model,
        args=TrainingArguments(str(out), **{**ARGS, **changes}),
        train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )
    for callback in [c for c in made.callback_handler.callbacks if "Printer" in type(c).__name__]:
        made.remove_callback(callback)
    made.train()
    return out


def copied(source: Path, folder: Path) -> Path:
    """A copy of a folder, to be spoilt."""
    return Path(shutil.copytree(source, folder))


def found(folder: Path, code: str | None = None, *, deep: bool = False) -> list[Finding]:
    """What one rule finds in a checkpoint or a run; without a code, all errors and warnings."""
    findings = [f for run in read_run_folder(folder, deep=deep) for f in diagnose_run(run)]
    return [f for f in findings if (f.code == code if code else f.severity != "info")]


def only(folder: Path, code: str, *, deep: bool = False) -> Finding:
    """The one finding of a rule."""
    (finding,) = found(folder, code, deep=deep)
    return finding
