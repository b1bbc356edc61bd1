"""At the end of a run: the same losses after a reload and after a merge, or the name of the step that broke them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from suture import pipeline
from suture.training import build, loss
from suture.training import folder as folders
from suture.training.config import RunConfig
from suture.training.measure import Ruler
from suture.values import Checkpoint, Options, StageLoss

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


def prove(
    config: RunConfig, checkpoint: Checkpoint, adapter: Path, after: StageLoss, ruler: Ruler, device: torch.device
) -> Proof:
    """Load the adapter as a user would, then merge it and load that; measure both, and compare with `after`."""
    if config.prove == "off":
        return Proof((), (), ("the losses after a reload and after a merge were not measured (prove: off)",))
    same = SAME_F32 if build.precision(config, device) == "f32" else SAME_LOW
    notes: list[str] = []
    stages = [_reloaded(config, checkpoint, adapter, ruler, device)]
    problems = list(_differences(after, stages[-1], same))
    if config.prove == "full":
        stages.append(_merged(config, checkpoint, adapter, ruler, device))
        found = list(_differences(after, stages[-1], SAME_LOW if config.merge_dtype == "base" else same))
        if config.quantize and found:
            notes.append(
                f"trained on a base in {config.quantize}, merged into the one it was quantised from: "
                f"the loss of the merged model is another one, {_both(stages[-1])} instead of {_both(after)}"
            )
        else:
            problems += found
    return Proof(tuple(stages), tuple(problems), tuple(notes))


def _reloaded(
    config: RunConfig, checkpoint: Checkpoint, adapter: Path, ruler: Ruler, device: torch.device
) -> StageLoss:
    """The base and the adapter, each from its files, joined by PEFT."""
    base = build.load_base(checkpoint.folder, config, device)
    n_rows = len(build.load_tokenizer(adapter))
    if n_rows > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(n_rows, mean_resizing=False)
    with build.expected_warnings():
        model = PeftModel.from_pretrained(base, str(adapter))
    return _measured("reloaded", model, model.get_base_model(), ruler)


def _merged(config: RunConfig, checkpoint: Checkpoint, adapter: Path, ruler: Ruler, device: torch.device) -> StageLoss:
    """The merged model, from its own files, which are deleted afterwards."""
    out = adapter.with_name(MERGED)
    folders.remove(out)
    options = Options(dtype="F32" if config.merge_dtype == "f32" else None)
    pipeline.merge(checkpoint.folder, adapter, out, options=options, running=pipeline.Running(durable=False))
    try:
        model = build.load_base(out, config.model_copy(update={"quantize": None}), device)
        return _measured("merged", model, model, ruler)
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


def _both(stage: StageLoss) -> str:
    return f"{stage.train:.4f}" if stage.eval is None else f"{stage.train:.4f} / {stage.eval:.4f}"
