"""A model in a notebook, before it trains and before it is saved: the audit, and what its values and its base tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from suture.errors import UsageError
from suture.formats import base_on_disk
from suture.training.audit import audit_of, coded
from suture.training.compare import grouped, unsaved_rows
from suture.training.live import Live, look
from suture.values import Audit, Difference


def examine(
    model: Any, optimizer: torch.optim.Optimizer | None = None, *, batch: Mapping[str, Any] | None = None
) -> Audit:
    """The audit of a PeftModel, with what can go wrong when it is saved: rows that no file would hold, values that are
    not finite, and factors that steps of the optimiser have not moved.

    Args:
        optimizer: the one that trains; whether it has made two steps decides if zeros are a defect.
        batch: keyword arguments of a forward pass that gives a loss. Default: random tokens.

    Without a batch, a model that takes more than tokens is not probed, which is a note of the audit.

    Raises:
        UsageError: the model has no LoRA adapter, or several active ones; or it does not take the batch.
    """
    live = look(model)
    try:
        found = audit_of(live, optimizer, batch=batch)
    except UsageError as error:
        if batch is not None:
            raise
        found = audit_of(live, optimizer, gradients=False)  # what the probe needs, nobody has passed
        found = replace(found, notes=(*found.notes, error.found))
    base = base_on_disk(str(live.config.get("base_model_name_or_path") or ""))
    more = [
        *coded("L909", unsaved_rows(live, base) if base is not None else ()),
        *coded("N501", _not_finite(live)),
        *coded("N502", _unmoved(live, optimizer) if optimizer is not None and optimizer.state else ()),
    ]
    return replace(found, differences=(*found.differences, *more))


def _not_finite(live: Live) -> Iterable[Difference]:
    bad = {key: p.numel() for key, p in live.unique().items() if not p.is_meta and not bool(p.isfinite().all())}
    do = "Do not save this model: go back to a checkpoint from before the loss became NaN."
    return grouped(live.arch, bad, "{what} not finite: {n} with NaN or infinite values among them", do)


def _unmoved(live: Live, optimizer: torch.optim.Optimizer) -> Iterable[Difference]:
    """Factors that are still zero although the optimiser has made steps that should have moved them."""
    stepped = set(_stepped(optimizer))
    zero = {
        key: p.numel()
        for key, p in live.unique().items()
        if ".lora_" in key and not p.is_meta and id(p) in stepped and not bool(p.any())
    }
    do = "Look at the learning rate and at the gradients of these modules."
    return grouped(live.arch, zero, "{what} still zero after steps of the optimiser: {n} that do nothing", do)


def _stepped(optimizer: torch.optim.Optimizer) -> Iterable[int]:
    """ids of the parameters that have seen two steps: the first of a warm-up has a learning rate of zero.

    Where an optimiser does not count (SGD with momentum), one step without a schedule is enough. Rates that are zero
    from the start are a finding of their own.
    """
    for group in optimizer.param_groups:
        if float(group.get("initial_lr", 0.0)) == float(group["lr"]) == 0.0:
            continue
        for p in group["params"]:
            state = optimizer.state.get(p)
            n_steps = (state or {}).get("step", group.get("step"))
            if state and ("initial_lr" not in group if n_steps is None else int(n_steps) >= 2):
                yield id(p)
