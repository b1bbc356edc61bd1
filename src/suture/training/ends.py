"""At the end of a run: the same losses after a reload and after a merge, or the name of the step that broke them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from suture import pipeline
from suture.errors import SutureError
from suture.training import build, loss
from suture.training import folder as folders
from suture.training.config import RunConfig
from suture.training.measure import Ruler
from suture.training.ready import Ready
from suture.values import Options, Running, StageLoss

SAME_F32 = 1e-4  # nats
SAME_LOW = 2e-2  # nats: bf16 and f16 have other roundings once the update is part of the weight
MERGED = ".merged"
STEPS = {"reloaded": "saving and loading the adapter", "merged": "merging the adapter into the base"}


@dataclass(frozen=True, slots=True)
class Proof:
    """The stages after training, and which of them broke something."""

    stages: tuple[StageLoss, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def prove(ready: Ready, adapter: Path, after: StageLoss) -> Proof:
    """Load the adapter as a user would, then merge it and load that; measure both, and compare with `after`."""
    config = ready.config
    if config.prove == "off":
        return Proof((), (), ("the losses after a reload and after a merge were not measured (prove: off)",))
    same = SAME_F32 if ready.precision == "f32" else SAME_LOW
    notes: list[str] = []
    stages, problems = _staged("reloaded", _reloaded, ready, adapter)
    problems += [text for stage in stages for text in _differences(after, stage, same)]
    if config.prove == "full" and "quantization_config" in ready.checkpoint.config:
        notes.append("the base is stored quantised: the merge is left to its 16-bit original, and was not measured")
    elif config.prove == "full":
        merged, failed = _staged("merged", _merged, ready, adapter)
        same = SAME_LOW if config.merge_dtype == "base" else same
        found = [text for stage in merged for text in _differences(after, stage, same)]
        notes += [_other_base(config, after, merged[0])] if config.quantize and found else []
        problems += failed + ([] if config.quantize else found)
        stages += merged
    return Proof(tuple(stages), tuple(problems), tuple(notes))


def _staged(
    name: str, measure: Callable[[Ready, Path], StageLoss], ready: Ready, adapter: Path
) -> tuple[list[StageLoss], list[str]]:
    """A stage that was measured, or in words why it could not be: the adapter is saved, whatever happens here."""
    try:
        return [measure(ready, adapter)], []
    except (SutureError, RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        return [], [f"{STEPS[name]} failed: {type(error).__name__}: {error}"]


def _reloaded(ready: Ready, adapter: Path) -> StageLoss:
    """The base and the adapter, each from its files, joined by PEFT."""
    base = build.load_base(ready.checkpoint.folder, ready.config, ready.device)
    if ready.n_rows != base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(ready.n_rows, mean_resizing=False)
    with build.expected_warnings():
        model = PeftModel.from_pretrained(base, str(adapter))
    return _measured("reloaded", model, model.get_base_model(), ready.ruler)


def _merged(ready: Ready, adapter: Path) -> StageLoss:
    """The merged model, from its own files, which are deleted afterwards."""
    out = adapter.with_name(MERGED)
    folders.remove(out)
    options = Options(dtype="F32" if ready.config.merge_dtype == "f32" else None)
    pipeline.merge(ready.checkpoint.folder, adapter, out, options=options, running=Running(durable=False))
    try:
        model = build.load_base(out, ready.config.model_copy(update={"quantize": None}), ready.device)
        return _measured("merged", model, model, ready.ruler)
    finally:
        folders.remove(out)


def _measured(stage: Any, model: Any, causal_lm: Any, ruler: Ruler) -> StageLoss:
    if not loss.supports(causal_lm):
        loss.install(causal_lm)
    return ruler.stage(stage, model.eval())


def _differences(after: StageLoss, now: StageLoss, same: float) -> Iterable[str]:
    for name, old, new in (("train", after.train, now.train), ("eval", after.eval, now.eval)):
        if old is not None and new is not None and not abs(old - new) <= same:
            yield (
                f"{STEPS[now.stage]} changed the {name} loss from {old:.6f} to {new:.6f} (at most {same:g} is rounding)"
            )


def _other_base(config: RunConfig, after: StageLoss, merged: StageLoss) -> str:
    return (
        f"trained on a base in {config.quantize}, merged into the one it was quantised from: "
        f"the loss of the merged model is another one, {_both(merged)} instead of {_both(after)}"
    )


def _both(stage: StageLoss) -> str:
    return f"{stage.train:.4f}" if stage.eval is None else f"{stage.train:.4f} / {stage.eval:.4f}"
