"""All that stands before the first step: base, starting adapter, tokenizer and data checked, then the model built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from suture.training.config import RunConfig, changed_fields
from suture.training.data import Prepared, prepare, templated
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
    new_rows: tuple[int, ...]  # of tokens that the base does not have
    device: torch.device
    notes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """f32, bf16 or f16: of the frozen weights and the arithmetic."""
        return build.precision(self.config, self.device)

    @property
    def ruler(self) -> Ruler:
        """What every stage of the run is measured with."""
        cast = None if self.precision == "f32" else build.DTYPES[self.precision]
        return Ruler(self.data.train, self.data.eval, self.config.batch_size, build.pad_id(self.tokenizer), cast)


def make_ready(config: RunConfig, source: Source | None, device: torch.device) -> tuple[Ready, PeftModel]:
    """Check everything that can be checked without the model, then build the model that trains.

    Raises:
        ResumeRefused: the adapter to start from does not fit its ledger, its config, the base or the data.
        UsageError: the config asks for what this base cannot do.
    """
    build.check_device(config)
    base = read_checkpoint(config.base, revision=config.revision)
    build.check_class(base.config)
    identity = BaseRecord(config.base, fingerprint(base), config.quantize)
    base_arch = describe(base.config, base.tensors)
    build.check_ends(base_arch)
    n_base_rows = base_arch.params[f"{base_arch.input_embedding}.weight"].shape[0]
    start = starts.open_start(source.folder, base, base_arch, str(identity.fingerprint)) if source else None
    tokenizer, words = _tokenizer(config, base, start)
    data = prepare(config.data, tokenizer, config.seed)
    arithmetic = {"device": device.type, "precision": build.precision(config, device)}
    resumed = source.checkpoint if source else None
    if source and resumed:
        facts = {"data": data.sha256, "tokenizer": ledgers.tokenizer_sha256(tokenizer), **arithmetic}
        _require_same(source.folder, resumed, facts)
    _require_eval(config, data)
    n_rows = _n_rows(n_base_rows, len(tokenizer) if words else 0, start, data)
    arch = describe(starts.with_rows(base.config, base_arch, n_rows), {}) if n_rows != n_base_rows else base_arch
    adapter, ties = _adapter(config, start, () if resumed else changed_fields(config), arch, tuple(words))
    config = starts.described(config, adapter) if start and not resumed else config
    settings, lineage = config.model_dump(mode="json"), _lineage(start, resumed)
    ready = Ready(
        config=config,
        checkpoint=base,
        arch=arch,
        provenance=Provenance(identity, settings, data.sha256, lineage, arithmetic),
        tokenizer=tokenizer,
        data=data,
        n_base_rows=n_base_rows,
        n_rows=n_rows,
        new_rows=tuple(sorted(words)) or tuple(range(n_base_rows, n_rows)),
        device=device,
        notes=(*data.notes, *ties, *(("the optimiser starts fresh",) if start and not resumed else ())),
    )
    return _built(ready, adapter, words, start)


def _built(
    ready: Ready, adapter: Json, words: Mapping[int, Sequence[int]], start: Start | None
) -> tuple[Ready, PeftModel]:
    """The model that trains; what was done to get it is added to the notes, and conversions to the lineage."""
    config = ready.config
    model = build.load_base(ready.checkpoint.folder, config, ready.device)
    grown = build.extend(model, ready.n_rows, words)
    reason = loss.supports(model)
    if not reason:
        loss.install(model)
    plain = (f"the loss is the model's own, with all logits in memory and by batch: {reason}",) if reason else ()
    _require_no_leak(config, model)
    peft = build.inject(model, adapter, config)
    statements = starts.load_start(look(peft), start) if start else ()
    provenance = ready.provenance
    if statements:
        *before, last = provenance.lineage
        provenance = replace(provenance, lineage=(*before, replace(last, conversions=statements)))
    return replace(ready, provenance=provenance, notes=(*ready.notes, *grown, *plain, *statements)), peft


def _tokenizer(config: RunConfig, base: Checkpoint, start: Start | None) -> tuple[Any, dict[int, list[int]]]:
    """The run's tokenizer, and for each new token the ids of the tokens that its row starts from."""
    brought = start is not None and any(name in ledgers.TOKENIZER for name in start.adapter.side_files)
    tokenizer = build.load_tokenizer(start.adapter.folder if start and brought else base.folder)
    tokenizer = templated(config.data, tokenizer)
    if start is not None:
        return tokenizer, {}
    tokens = config.new_tokens if isinstance(config.new_tokens, dict) else dict.fromkeys(config.new_tokens)
    return tokenizer, build.add_tokens(tokenizer, tokens)


def _require_same(folder: str, resumed: Ledger, facts: Mapping[str, str | None]) -> None:
    """A run that resumes must read the same tokens, and compute in the same way."""
    if differences := against_run(resumed, facts):
        raise ResumeRefused(differences, where=folder)


def _require_eval(config: RunConfig, data: Prepared) -> None:
    if config.eval_every is not None and not data.eval:
        raise UsageError(
            f"every {config.eval_every} steps, but no example is left to evaluate on",
            where="eval_every",
            expected="data.eval, or a data.eval_share that leaves some",
        )


def _n_rows(n_base_rows: int, n_tokens: int, start: Start | None, data: Prepared) -> int:
    """Rows of the vocabulary: the base's, unless new tokens, the adapter, or a token of the data need more."""
    used = max(int(example.input_ids.max()) for example in (*data.train, *data.eval)) + 1
    return max(n_base_rows, n_tokens, used, (start.n_rows or 0) if start else 0)


def _adapter(
    config: RunConfig, start: Start | None, given: Sequence[str], arch: Arch, new_ids: Sequence[int]
) -> tuple[Json, tuple[str, ...]]:
    """The adapter's config, and what was decided about ties."""
    asked = build.peft_config(config, arch, new_ids)
    if start is None:
        build.check_names(asked, arch)
        return asked, build.check_ties(config, asked, arch)
    wanted = starts.inherited(start, config, asked, arch, given)
    if set(given) & starts.NAMES:
        build.check_names(wanted, arch)
    old, new = start.config.get("lora_dropout") or 0.0, wanted.get("lora_dropout") or 0.0
    dropout = (f"dropout {old} → {new}",) if old != new else ()
    return wanted, (*build.check_ties(config, wanted, arch, known=start.config), *dropout)


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


def _lineage(start: Start | None, resumed: Ledger | None) -> tuple[Ancestor, ...]:
    """Where the adapter comes from; a checkpoint of the same run is no ancestor."""
    if resumed is not None:
        return resumed.lineage
    return start.lineage if start is not None else ()
