"""The proof by the forward pass: base + live adapter against the merged model, loaded from disk as a user would."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suture.errors import SutureError
from suture.values import Adapter, Check, Checkpoint, LogitsReport
from suture.verification import feeds as feeding
from suture.verification import reading, witness
from suture.verification.divergence import Divergence, Logits, divergence
from suture.verification.feeds import PROMPTS, Feed, Vocabulary
from suture.verification.rounding import QUANTIZED
from suture.verification.witness import Loaded, Place

MAX_MEAN_KL: Mapping[str, float] = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-4, "BF16": 1e-2}


@dataclass(frozen=True, slots=True)
class LogitsSettings:
    """How the models are run.

    Args:
        dtype: of the computation, by torch's name. float32 shows the merge alone; 16 bits add their own noise.
        device: "cpu", "cuda", "cuda:1" …; None takes a GPU where there is one.
        device_map: "auto" spreads a large model over devices with accelerate.
        n_prompts: how many of `prompts` are used.
        max_length: tokens of a prompt.
        prompts: texts to run; one forward pass each, so that no padding is involved.
    """

    dtype: str = "float32"
    device: str | None = None
    device_map: str | None = None
    n_prompts: int = 10
    max_length: int = 64
    prompts: tuple[str, ...] = PROMPTS


@dataclass(frozen=True, slots=True)
class _Unmerged:
    """What was run on base + adapter, and its logits; `to_base` is its distance from the bare base."""

    feeds: tuple[Feed, ...]
    logits: tuple[Logits, ...]
    to_base: Divergence
    base: Loaded
    witness: str


def logits(
    checkpoint: Checkpoint, adapter: Adapter, merged: Path, *, settings: LogitsSettings | None = None
) -> LogitsReport:
    """Compare base + adapter, unmerged, with the merged folder. One model is in memory at a time.

    Raises:
        MissingExtra: PEFT is not installed.
        SutureError: a model cannot be loaded or fed, or PEFT does not load the whole adapter.
    """
    settings = settings or LogitsSettings()
    version = witness.peft_version()
    place = Place(settings.dtype, settings.device, settings.device_map)
    with witness.quiet():
        unmerged = _unmerged(checkpoint, adapter, merged, settings, f"peft {version}")
        gc.collect()
        model = _load_merged(merged, place, unmerged.base, checkpoint)
        found = [divergence(p, _same_shape(p, witness.run(model, f.arguments))) for p, f in _pairs(unmerged)]
    return _report(unmerged, found, settings)


def _pairs(unmerged: _Unmerged) -> Iterable[tuple[Logits, Feed]]:
    return zip(unmerged.logits, unmerged.feeds, strict=True)


def _unmerged(
    checkpoint: Checkpoint, adapter: Adapter, merged: Path, settings: LogitsSettings, version: str
) -> _Unmerged:
    place = Place(settings.dtype, settings.device, settings.device_map)
    base = witness.load_base(checkpoint, place)
    base_rows = witness.table_rows(base.model)
    witness.grow(base.model, adapter)
    rows = witness.table_rows(base.model)
    tuned = witness.with_adapter(base.model, adapter)
    tokenizer = witness.load_tokenizer(merged, checkpoint.folder)
    new = _new_ids(checkpoint, adapter, base_rows, rows)
    vocabulary = Vocabulary(rows, feeding.marker_ids(checkpoint.config), new)
    todo = _feeds(base.model, tokenizer, vocabulary, settings)
    found, to_base = [], Divergence()
    for feed in todo:
        found.append(witness.run(tuned, feed.arguments))
        with tuned.disable_adapter():
            to_base += divergence(found[-1], witness.run(tuned, feed.arguments))
    bare = Loaded(None, base.missing, base.unexpected)
    return _Unmerged(tuple(todo), tuple(found), to_base, bare, _told(version, base.model, tokenizer))


def _told(version: str, model: Any, tokenizer: Any | None) -> str:
    """The witness, and what the prompts leave out."""
    reads_text = witness.table_rows(model) > 0
    told = [version, *(["random tokens for want of a tokenizer"] if reads_text and tokenizer is None else [])]
    return ", ".join([*told, *(["text alone"] if feeding.leaves_out_signals(model) else [])])


def _feeds(model: Any, tokenizer: Any | None, vocabulary: Vocabulary, settings: LogitsSettings) -> list[Feed]:
    if vocabulary.rows == 0:
        return feeding.feeds(model, [], [])
    length = min(settings.max_length, _max_positions(model))
    texts = feeding.token_rows(tokenizer, settings.prompts[: settings.n_prompts], vocabulary, length)
    return feeding.feeds(model, texts, feeding.new_token_rows(texts[0], vocabulary, length))


def _max_positions(model: Any) -> int:
    """Positions that the model has, less one for a decoder's start token."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_target_positions")
    known = [n for name in names if isinstance(n := getattr(config, name, None), int)]
    return max(1, min(known, default=1 << 20) - 1)


def _new_ids(checkpoint: Checkpoint, adapter: Adapter, base_rows: int, rows: int) -> tuple[int, ...]:
    """Ids beyond the base's vocabulary, of trained rows, and of tokens that the adapter's tokenizer adds."""
    trained = adapter.config.get("trainable_token_indices") or ()
    lists = trained.values() if isinstance(trained, Mapping) else (trained,)
    found = {int(i) for ids in lists for i in ids} | set(range(base_rows, rows))
    return tuple(sorted(found | (_tokens(adapter.folder) - _tokens(checkpoint.folder))))


def _tokens(folder: Path) -> set[int]:
    """Ids of the tokens that a tokenizer was given beside its vocabulary."""
    data = reading.read_json(folder / "tokenizer.json") or {}
    added = data.get("added_tokens")
    entries = added if isinstance(added, list) else []
    ids = {e["id"] for e in entries if isinstance(e, Mapping) and isinstance(e.get("id"), int)}
    more = reading.read_json(folder / "added_tokens.json") or {}
    return ids | {i for i in more.values() if isinstance(i, int)}


def _load_merged(folder: Path, place: Place, base: Loaded, checkpoint: Checkpoint) -> Any:
    """The merged model, dequantised as the base was where it kept its form.

    Its files must give what the base's files gave, and nothing that the class does not want.

    Raises:
        SutureError: a parameter has no tensor, or a tensor no parameter.
    """
    config = reading.read_json(folder / "config.json") or {}
    kept = checkpoint.quantization is not None and config.get("quantization_config")
    form = replace(checkpoint, folder=folder)
    merged = witness.load_base(form, place) if kept else witness.load(folder, config, place)
    for what, names in (
        ("parameters that no file gives", merged.missing - base.missing),
        ("tensors that the model class does not know", merged.unexpected - base.unexpected),
    ):
        if names:
            raise SutureError(
                f"{len(names)} {what}: {', '.join(sorted(names)[:3])}",
                where=str(folder),
                expected="the parameters of the model class, each once",
                do="Merge again.",
            )
    return merged.model


def _same_shape(wanted: Logits, found: Logits) -> Logits:
    if wanted.shape != found.shape:
        raise SutureError(
            f"logits of shape {found.shape}", expected=f"{wanted.shape}, as base + adapter gives", do="Merge again."
        )
    return found


def _report(unmerged: _Unmerged, found: list[Divergence], settings: LogitsSettings) -> LogitsReport:
    total = sum(found, Divergence())
    new = sum((d for d, f in zip(found, unmerged.feeds, strict=True) if f.new), Divergence())
    return LogitsReport(
        n_positions=total.n_positions,
        max_abs_diff=total.max_abs,
        mean_kl=total.mean_kl,
        max_kl=total.max_kl,
        top1_agreement=total.top1,
        kl_to_base=unmerged.to_base.mean_kl,
        new_token_mean_kl=new.mean_kl if new.n_positions else None,
        dtype=settings.dtype,
        witness=unmerged.witness,
    )


def logits_check(report: LogitsReport, stored_dtype: str) -> Check:
    """Whether a report is that of a right merge, when the changed tensors are stored as `stored_dtype`.

    In float32, merged and unmerged differ by the order of sums only: a mean KL of 1e-6 nats and the same top token
    everywhere. A 16-bit file has the changed weights rounded to p bits, an error of about 0.4 · 2⁻ᵖ of a weight in the
    mean square. After L layers with two such matrices in a row, a logit of size σ has moved by 0.4 · 2⁻ᵖ · √(2L) · σ,
    and KL is half the variance of that: 3e-4 for bfloat16 (p = 8), 48 layers and σ = 1.6; 5e-6 for float16 (p = 11).
    The limits are thirty to forty times as much, for models that amplify errors. As such a bound alone would pass a
    small update that is missing, the merged model must also be no farther from base + adapter than half the way to the
    base, unless the way itself is within the limit.

    Weights that were quantised again have no such bound: what their steps take from the update, N512 has told. They
    must be nearer to base + adapter than the base is.
    """
    if stored_dtype == QUANTIZED:
        return _quantized_check(report)
    precise = report.dtype in ("float32", "float64")
    limit = MAX_MEAN_KL[stored_dtype] if precise else MAX_MEAN_KL["BF16"]
    exact = limit <= MAX_MEAN_KL["F32"]
    told = []
    if not report.kl_to_base > 0:
        told.append("the adapter changes nothing on these inputs, so nothing was tested")
    if not report.mean_kl <= limit:
        told.append(f"mean KL {report.mean_kl:.2g} nats is above {limit:g}")
    if report.new_token_mean_kl is not None and not report.new_token_mean_kl <= limit:
        told.append(f"mean KL on new tokens {report.new_token_mean_kl:.2g} nats is above {limit:g}")
    if exact and report.top1_agreement != 1.0:
        told.append(f"the most likely token is another at {1 - report.top1_agreement:.2%} of the positions")
    if report.kl_to_base > limit and not report.mean_kl <= report.kl_to_base / 2:
        told.append(f"not clearly nearer to base + adapter than the base is ({report.kl_to_base:.2g} nats)")
    right = f"mean KL {report.mean_kl:.2g} nats; {report.kl_to_base:.2g} to the bare base ({report.witness})"
    return Check("logits", not told, report.n_positions, "; ".join(told) or right)


def _quantized_check(report: LogitsReport) -> Check:
    right = f"mean KL {report.mean_kl:.2g} nats; {report.kl_to_base:.2g} to the bare base ({report.witness})"
    nearer = report.mean_kl < report.kl_to_base
    return Check("logits", nearer, report.n_positions, right if nearer else f"no nearer than the base: {right}")
