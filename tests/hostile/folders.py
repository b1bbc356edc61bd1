"""What must hold when one file of a sound folder is any bytes at all: a result that fits it, or a named error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corpus.folders import FACTORS, INDEX, PEFT_CONFIG, SHARDS, TENSORS, adapter, sharded_model, write_json

from suture import targets
from suture.codec import to_json
from suture.errors import SutureError
from suture.formats import read_adapter, read_checkpoint
from suture.formats.kind import TRAINER_STATE
from suture.formats.ledger import NAME as LEDGER
from suture.formats.ledger import read_ledger
from suture.formats.vocabulary import has_template, read_vocabulary
from suture.rules import diagnose_run
from suture.run_folder import read_run_folder
from suture.values import Arch, BaseRecord, Ledger, Param, TensorRecord

MODULES = ("model.layers.0.mlp", "model.layers.1.mlp", "model.layers.1." + "a" * 40, "lm_head")
ARCH = Arch("", "", {f"{m}.weight": Param(f"{m}.weight", (4, 4), "Linear") for m in MODULES}, (), (), (), None, None)
RUN = "checkpoint-6"


@dataclass(frozen=True, slots=True)
class Target:
    """A file, the folder that it stands in, sound contents to start from, and what reads it."""

    file: str
    make: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    read: Callable[[Path], Any]

    def check(self, data: bytes, folder: Path) -> bool:
        """Whether the bytes are read; any exception but a SutureError with a message that can be shown passes."""
        if not folder.exists():
            self.make(folder)
        (folder / self.file).write_bytes(data)
        try:
            self.read(folder)
        except SutureError as error:
            str(error).encode()
            assert len(str(error)) < 4000, str(error)
            return False
        return True


def _text(data: Any) -> bytes:
    return json.dumps(data).encode()


def _read_index(folder: Path) -> None:
    found = read_checkpoint(folder)
    assert found.tensors.keys() == TENSORS.keys()
    assert {t.file for t in found.tensors.values()} == set(SHARDS)


def _read_adapter(folder: Path) -> None:
    found = read_adapter(folder)
    expected = targets.expected(found.config, ARCH)
    assert all(isinstance(n, int) for shape in expected.tensors.values() for n in shape)
    targets.meaning(found.config)
    for module in MODULES:
        targets.scale(found.config, module)


def _read_tokenizer(folder: Path) -> None:
    found = read_vocabulary(folder)
    if found is not None:
        assert all(isinstance(token, str) and type(i) is int for token, i in found.items())
    has_template(folder, ("tokenizer_config.json",))


def _read_run(folder: Path) -> None:
    for run in read_run_folder(folder, deep=True):
        for finding in diagnose_run(run):
            f"{finding.where} {finding.found} {finding.expected} {finding.do}".encode()


def _read_ledger(folder: Path) -> None:
    read_ledger(folder)
    _read_run(folder)


def _checkpoint(folder: Path) -> None:
    adapter(folder)
    (folder / TRAINER_STATE).write_bytes(STATE)
    (folder / LEDGER).write_bytes(WHOLE_LEDGER)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(b"x")


def _tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "tokenizer_config.json", {"chat_template": "x"})


STATE = _text(
    {
        **{
            "global_step": 6,
            "max_steps": 6,
            "epoch": 3.0,
            "num_train_epochs": 3,
            "best_metric": 0.5,
            "train_batch_size": 2,
        },
        **{"best_model_checkpoint": "run/checkpoint-4", "best_global_step": 4, "save_steps": 2, "eval_steps": 2},
        "log_history": [
            {"step": 1, "epoch": 0.5, "loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.01},
            {"step": 2, "epoch": 1.0, "eval_loss": 0.5, "eval_runtime": 0.1},
            {"step": 6, "epoch": 3.0, "train_loss": 0.5, "total_flos": 1e12},
        ],
    }
)
WHOLE_LEDGER = _text(to_json(Ledger(
    version=1, base=BaseRecord("org/tiny", "ab", None),
    tensors=tuple(TensorRecord(key, value.shape, "F32", "lora_A", 0.1) for key, value in FACTORS.items()),
    sha256=dict.fromkeys(FACTORS, "ab"), optimizer=tuple(FACTORS), adapter_config=PEFT_CONFIG, config=None,
    data_sha256=None, tokenizer_sha256=None, versions={"peft": "0.21.2"}, lineage=(), step=6, epoch=3.0, n_tokens=9,
    metrics={"eval_loss": 0.5}, files={"adapter_model.safetensors": "ab"},
)))  # fmt: skip
_RICH = {
    **{
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": r".*\.(mlp|head)",
        "bias": "all",
        "use_dora": True,
    },
    **{"rank_pattern": {"mlp": 4, r"^model.layers.\d+.mlp": 2}, "alpha_pattern": {"lm_head": 1.5}, "lora_bias": True},
    **{
        "layers_to_transform": [0, 1],
        "layers_pattern": ["layers"],
        "exclude_modules": ["lm_head"],
        "fan_in_fan_out": False,
    },
    **{
        "modules_to_save": ["lm_head"],
        "target_parameters": ["mlp.weight"],
        "trainable_token_indices": {"lm_head": [1]},
    },
    **{"use_rslora": True, "peft_version": "0.21.2", "task_type": "CAUSAL_LM", "init_lora_weights": True},
}
_FAST = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]},
    "added_tokens": [{"id": 2, "content": "<s>", "special": True}],
}
_UNIGRAM = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": []}
_MAP = {name: file for file, names in SHARDS.items() for name in names}

TARGETS = {
    "index": Target(INDEX, sharded_model, (_text({"metadata": {"total_size": 176}, "weight_map": _MAP}),), _read_index),
    "adapter_config": Target("adapter_config.json", adapter, (_text(PEFT_CONFIG), _text(_RICH)), _read_adapter),
    "tokenizer": Target("tokenizer.json", _tokenizer, (_text(_FAST), _text(_UNIGRAM)), _read_tokenizer),
    "tokenizer_config": Target(
        "tokenizer_config.json", _tokenizer, (_text({"chat_template": "x"}),), _read_tokenizer
    ),
    "vocab": Target("vocab.txt", _tokenizer, (b"a\nb\n\xc3\xa9\n", b"\r\n\r\n"), _read_tokenizer),
    "vocab_json": Target("vocab.json", _tokenizer, (_text({"a": 0, "b": 1}),), _read_tokenizer),
    "ledger": Target(LEDGER, _checkpoint, (WHOLE_LEDGER,), _read_ledger),
    "trainer_state": Target(TRAINER_STATE, _checkpoint, (STATE,), _read_run),
}  # fmt: skip
