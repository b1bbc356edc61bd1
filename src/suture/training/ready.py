"""All that stands before the first step: base, starting adapter, tokenizer and data checked, then the model built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel

from suture.arch import describe
from suture.errors import ResumeRefused, UsageError
from suture.formats import fingerprint, read_checkpoint
from suture.training import build, loss, starts
from suture.training import ledger as ledgers
from suture.training.batches import LEAK_LIMIT, packing_leaks
from suture.training.callback import Provenance
from suture.training.compare import against_run
from suture.training.config import RunConfig
from suture.training.data import Prepared, prepare
from suture.training.live import look
from suture.training.measure import Ruler
from suture.training.starts import Start
from suture.values import Ancestor, Arch, BaseRecord, Checkpoint, Json, Ledger


@dataclass(frozen=True, slots=True)
class Source:
    """The adapter that a run starts from: one to continue, or its own checkpoint."""

    folder: str
    checkpoint: Ledger | None = None  # set for a checkpoint of the same run: then nothing may differ


@dataclass(frozen=True, slots=True)
class Ready:
    """A run before its first step: all but the model, which does not stay in memory to the end."""

    config: RunConfig
    checkpoint: Checkpoint  # of the base
    arch: Arch  # of the base, with the run's vocabulary
    provenance: Provenance
    tokenizer: Any
    data: Prepared
    n_base_rows: int  # of the base's vocabulary
    n_rows: int  # of the run's
    device: torch.device
    notes: tuple[str, ...]

    @property
    def ruler(self) -> Ruler:
        """What every stage of the run is measured with."""
        name = build.precision(self.config, self.device)
        cast = None if name == "f32" else build.DTYPES[name]
        return Ruler(self.data.train, self.data.eval, self.config.batch_size, build.pad_id(self.tokenizer), cast)


def make_ready(config: RunConfig, source: Source | None, device: torch.device) -> tuple[Ready, PeftModel]:
    """Check everything that can be checked without the model, then build the model that trains.

    Raises:
        ResumeRefused: the adapter to start from does not fit its ledger, its config, the base or the data.
        UsageError: the config asks for what this base cannot do.
    """
    base = read_checkpoint(config.base, revision=config.revision)
    identity = BaseRecord(config.base, fingerprint(base), config.quantize)
    base_arch = describe(base.config, base.tensors)
    n_base_rows = base_arch.params[f"{base_arch.input_embedding}.weight"].shape[0]
    start = starts.open_start(source.folder, base, str(identity.fingerprint)) if source else None
    tokenizer, words = _tokenizer(config, base, start)
    data = prepare(config.data, tokenizer, config.seed)
    _require_same(source, data, tokenizer)
    n_rows = max(len(tokenizer), (start.n_rows or 0) if start else 0, n_base_rows)
    arch = describe(starts.with_rows(base.config, base_arch, n_rows), {}) if n_rows != n_base_rows else base_arch
    adapter, ties = _adapter(config, start, arch, tuple(words))
    model = build.load_base(base.folder, config, device)
    grown = build.extend(model, n_rows, words)
    reason = loss.supports(model)
    if not reason:
        loss.install(model)
    _require_no_leak(config, model)
    peft = build.inject(model, adapter, config)
    statements = starts.load_start(look(peft), start) if start else ()
    plain = (f"the loss is the model's own, with all logits in memory: {reason}",) if reason else ()
    fresh = ("the optimiser starts fresh",) if start and source and source.checkpoint is None else ()
    ready = Ready(
        config=config,
        checkpoint=base,
        arch=arch,
        provenance=_provenance(config, identity, data, start, source, statements),
        tokenizer=tokenizer,
        data=data,
        n_base_rows=n_base_rows,
        n_rows=n_rows,
        device=device,
        notes=(*data.notes, *ties, *grown, *plain, *statements, *fresh),
    )
    return ready, peft


def _tokenizer(config: RunConfig, base: Checkpoint, start: Start | None) -> tuple[Any, dict[int, list[int]]]:
    """The run's tokenizer, and for each new token the ids of the tokens that its row starts from."""
    brought = start is not None and any(name in ledgers.TOKENIZER for name in start.adapter.side_files)
    tokenizer = build.load_tokenizer(start.adapter.folder if start and brought else base.folder)
    if start is not None:
        return tokenizer, {}
    tokens = config.new_tokens if isinstance(config.new_tokens, dict) else dict.fromkeys(config.new_tokens)
    return tokenizer, build.add_tokens(tokenizer, tokens)


def _require_same(source: Source | None, data: Prepared, tokenizer: Any) -> None:
    """A run that resumes must read the same tokens."""
    if source is None or source.checkpoint is None:
        return
    facts = {"data": data.sha256, "tokenizer": ledgers.tokenizer_sha256(tokenizer)}
    if differences := against_run(source.checkpoint, facts):
        raise ResumeRefused(differences, where=source.folder)


def _adapter(
    config: RunConfig, start: Start | None, arch: Arch, new_ids: Sequence[int]
) -> tuple[Json, tuple[str, ...]]:
    """The adapter's config, and what was decided about ties."""
    asked = build.peft_config(config, arch, new_ids)
    if start is None:
        build.check_names(asked, arch)
        return asked, build.check_ties(config, asked, arch)
    wanted = starts.inherited(start, config, asked, arch)
    build.check_names(wanted, arch)
    return wanted, ()


def _require_no_leak(config: RunConfig, model: Any) -> None:
    if not config.data.packing:
        return
    leak = packing_leaks(model, model.config.get_text_config().vocab_size)
    if leak > LEAK_LIMIT:
        raise UsageError(
            f"{type(model).__name__} lets packed examples see each other: "
            f"one changes the logits of the next by {leak:.2g} times what rounding may do",
            where="data.packing",
            expected="an attention that keeps examples of one row apart",
            do="Set data.packing to false.",
        )


def _provenance(
    config: RunConfig,
    base: BaseRecord,
    data: Prepared,
    start: Start | None,
    source: Source | None,
    statements: tuple[str, ...],
) -> Provenance:
    lineage: tuple[Ancestor, ...] = start.lineage if start else ()
    if source is not None and source.checkpoint is not None:
        lineage = source.checkpoint.lineage
    elif lineage:
        lineage = (*lineage[:-1], replace(lineage[-1], conversions=statements))
    settings = config.model_dump(mode="json")
    return Provenance(base, settings, data.sha256, lineage)
