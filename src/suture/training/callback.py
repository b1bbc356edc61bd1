"""The proof as a callback: audit before the first step, ledger and save check at every checkpoint, for any Trainer.

trainer = SFTTrainer(model=model, …, callbacks=[suture.ProofCallback()])
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from suture.errors import AuditFailed, NotSaved, ResumeRefused, UsageError
from suture.formats import base_on_disk, fingerprint, read_adapter
from suture.training import folder as folders
from suture.training import ledger as ledgers
from suture.training.audit import audit_of, coded, peak_rates, tensor_records
from suture.training.compare import (
    against_ledger,
    against_memory,
    against_model,
    against_order,
    against_rows,
    unsaved_rows,
)
from suture.training.live import Live, look
from suture.training.probe import same_random_numbers
from suture.training.readback import gathered, read_back
from suture.values import Ancestor, Audit, BaseRecord, Checkpoint, Json, Ledger

N_PROBED = 2  # examples of the data set in the probe


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a ledger says beyond the model: known to a run, and only in part to a script."""

    base: BaseRecord
    config: Json | None = None
    data_sha256: str | None = None
    lineage: tuple[Ancestor, ...] = ()
    arithmetic: Mapping[str, str] = field(default_factory=dict)  # device and precision


class ProofCallback(TrainerCallback):  # type: ignore[misc]  # Transformers is untyped here
    """Audits before the first step, reads every checkpoint back, and writes its ledger.

    Args:
        provenance: base, config, data and lineage, where they are known. Default: the base is looked up by the name
            that the model carries.
        on_audit: called with the audit on the first process, before anything is raised. Default: its notes
            become warnings.
        on_saved: called with a folder and its ledger, once it is proven.
        metrics: called for the numbers that a ledger keeps.

    Raises from the Trainer's events:
        AuditFailed: what would train is not what the adapter's config promises.
        ResumeRefused: the Trainer resumed, and did not bring back what the checkpoint's ledger says.
        NotSaved: a checkpoint on disk is not what is in memory.
    """

    def __init__(
        self,
        provenance: Provenance | None = None,
        *,
        on_audit: Callable[[Audit], None] | None = None,
        on_saved: Callable[[Path, Ledger], None] | None = None,
        metrics: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.provenance = provenance
        self._on_audit = on_audit
        self._on_saved = on_saved
        self._metrics = metrics
        self._seen: tuple[Any, Any, Any] | None = None  # model, optimiser, tokenizer of the Trainer
        self._state = TrainerState()
        self._is_first = True
        self._base: Checkpoint | None = None  # of a script's model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        """Audit the model and the optimiser that are about to step; a resumed run is held against its ledger too."""
        model, optimizer = seen.get("model"), seen.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self._seen, self._state, self._is_first = (
            (model, optimizer, seen.get("processing_class")),
            state,
            args.should_save,
        )
        live = look(model)
        found = audit_of(live, optimizer, batch=_batch(seen.get("train_dataloader")))
        if self.provenance is None:
            found = self._with_base(found, live)
        folder = folders.checkpoint(Path(args.output_dir), state.global_step)
        ledger = ledgers.read(folder) if state.global_step else None
        if state.global_step and ledger is None:
            unproven = f"resumed at step {state.global_step}, and {folder} has no ledger to compare with"
            found = replace(found, notes=(*found.notes, unproven))
        self._tell(found)
        if not found.ok:
            raise AuditFailed(found)
        if ledger is not None:
            _require_resumed(folder, ledger, live, optimizer)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Prove the checkpoint that was just written."""
        self._state = state
        self.seal(folders.checkpoint(Path(args.output_dir), state.global_step))

    def seal(self, folder: str | Path, state: TrainerState | None = None) -> Ledger | None:
        """Read back an adapter that was just saved, and write its ledger. Every process must call this.

        Args:
            state: of the step that the adapter is of, where it is not the latest.

        Returns:
            The ledger; None on all processes but the first.

        Raises:
            NotSaved: a tensor on disk is not the one in memory.
            UsageError: training has not begun.
        """
        if self._seen is None or self.provenance is None:
            raise UsageError("nothing has been trained yet", where="ProofCallback.seal", do="Call it after train().")
        model, optimizer, tokenizer = self._seen
        live = look(model)
        whole = gathered(live)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes files of its own, which the ledger hashes
        if not self._is_first:
            return None
        folder = Path(folder)
        saved = read_back(folder, live, whole)
        self._require_rows(folder, live)
        provenance, state = self.provenance, state or self._state
        written = Ledger(
            version=ledgers.VERSION,
            base=provenance.base,
            tensors=tensor_records(live, optimizer),
            sha256=saved.sha256,
            optimizer=optimizer_order(live, optimizer),
            adapter_config=saved.config,
            config=provenance.config,
            data_sha256=provenance.data_sha256,
            tokenizer_sha256=_hashed(tokenizer),
            versions={**ledgers.versions(), **provenance.arithmetic},
            lineage=provenance.lineage,
            step=state.global_step,
            epoch=float(state.epoch or 0.0),
            n_tokens=int(state.num_input_tokens_seen or 0),
            metrics=dict(self._metrics()) if self._metrics is not None else _last(state),
            files=ledgers.hash_files(folder),
        )
        ledgers.write(folder, written)
        if self._on_saved is not None:
            self._on_saved(folder, written)
        return written

    def release(self) -> None:
        """Forget the model, so that its memory can be used again."""
        self._seen = None

    def _with_base(self, found: Audit, live: Live) -> Audit:
        """The audit of a script's model, held against the base's files, if they lie on this disk."""
        name = str(live.config.get("base_model_name_or_path") or "")
        self._base = base_on_disk(name)
        if self._base is None:
            self.provenance = Provenance(BaseRecord(name, None))
            unknown = f"there are no files of a base named {name!r}: the ledger will not know it by its weights"
            return replace(found, notes=(*found.notes, unknown))
        self.provenance = Provenance(BaseRecord(name, fingerprint(self._base)))
        lost = coded("L909", unsaved_rows(live, self._base))
        return replace(found, differences=(*found.differences, *lost))

    def _require_rows(self, folder: Path, live: Live) -> None:
        if self._base is None:
            return
        tensors = read_adapter(folder, name=live.adapter).tensors
        for lost in against_rows(live, self._base, [t.shape for key, t in tensors.items() if ".lora_" not in key]):
            raise NotSaved(lost.found, where=str(folder), expected="rows of new tokens in the file", do=lost.do)

    def _tell(self, found: Audit) -> None:
        if not self._is_first:
            return
        if self._on_audit is not None:
            self._on_audit(found)
            return
        for note in (*found.ties, *found.notes):
            warnings.warn(note, stacklevel=2)


def _require_resumed(folder: Path, ledger: Ledger, live: Live, optimizer: torch.optim.Optimizer | None) -> None:
    """What the Trainer has loaded against what the checkpoint's ledger says was saved."""
    differences = [
        *against_ledger(read_adapter(folder, name=live.adapter), ledger, live.arch),
        *against_model(ledger, tensor_records(live, optimizer), live.arch),
        *against_memory(ledger, live),
        *against_order(ledger, optimizer_order(live, optimizer)),
    ]
    if differences:
        raise ResumeRefused(differences, where=str(folder))


def optimizer_order(live: Live, optimizer: torch.optim.Optimizer | None) -> tuple[str, ...]:
    """Keys of the adapter's tensors in the order of the optimiser's state."""
    if optimizer is None:
        return ()
    keys = {id(p): key for key, p in live.unique().items()}
    return tuple(keys[i] for i in peak_rates(optimizer) if i in keys)


def _batch(loader: Any) -> Mapping[str, Any] | None:
    """Two examples of the training set, through the Trainer's collator; None where it cannot be asked for them."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if dataset is None or collate is None or not hasattr(dataset, "__getitem__"):
        return None
    with same_random_numbers():
        return dict(collate([dataset[i] for i in range(min(N_PROBED, len(dataset)))]))


def _hashed(tokenizer: Any) -> str | None:
    return None if tokenizer is None else ledgers.tokenizer_sha256(tokenizer)


def _last(state: TrainerState) -> dict[str, float]:
    """The latest value of every number that the Trainer has logged, where it is finite: JSON has no other."""
    latest: dict[str, float] = {}
    for entry in state.log_history:
        latest |= {name: float(value) for name, value in entry.items() if isinstance(value, (int, float))}
    return {name: value for name, value in latest.items() if math.isfinite(value)}
