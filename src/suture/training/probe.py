"""One backward pass that shows which tensors of an adapter the loss reaches. Everything is put back afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from suture import targets
from suture.errors import UsageError
from suture.rewriting import PREFIX
from suture.training.live import Live

N_TOKENS = 256  # of the random batch, at most: enough for routers to reach every expert of a small model
N_TRAINED = 32  # of them, at most, are tokens whose rows train
NOISE = 1e-2


def probe(live: Live, batch: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Key → "none" or "not finite", for every tensor that should get a gradient and does not.

    A factor that is all zero hides the other one of its pair (the gradient of A is Bᵀ·…), so such tensors are
    filled with noise for the probe. What the given batch does not reach gets a second chance with random tokens.

    Raises:
        UsageError: there is no batch, and the model takes more than tokens.
    """
    keys = {key: p for key, p in live.unique().items() if p.requires_grad}
    if not keys:
        return {}
    with _as_before(live, list(keys.values())):
        found: dict[str, str] | Exception = TypeError("no batch") if batch is None else _tried(live, keys, batch)
        missed = keys if isinstance(found, Exception) else {key: keys[key] for key in found}
        if isinstance(found, Exception) or "none" in found.values():
            again = _tried(live, missed, None)
            found = again if isinstance(found, Exception) or not isinstance(again, Exception) else found
    if isinstance(found, Exception):
        raise UsageError(
            f"{type(live.model.get_base_model()).__name__} gives no loss: {found}",
            where="the probe of gradients",
            expected="a causal language model, or a batch of what it takes",
            do="Pass batch=…, the arguments of a forward pass that gives a loss.",
        ) from found
    return found


def _tried(
    live: Live, keys: Mapping[str, torch.nn.Parameter], batch: Mapping[str, Any] | None
) -> dict[str, str] | Exception:
    """The probe with one batch, or why the model does not take it: a trainer may feed it in a way of its own."""
    try:
        return _backward(live, keys, _on_device(live, random_batch(live) if batch is None else batch))
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        return error


def random_batch(live: Live) -> dict[str, torch.Tensor]:
    """Random tokens and labels, (1, n) each, among them some of those whose rows train."""
    rows = live.model.get_input_embeddings().weight.shape[0]
    config = live.model.get_base_model().config.get_text_config()
    n = min(N_TOKENS, getattr(config, "max_position_embeddings", None) or N_TOKENS)
    ids = torch.randint(rows, (n,), generator=torch.Generator().manual_seed(0))
    trained = sorted({i for key in live.held if ".token_adapter." in key for i in _token_ids(live, key)})
    few = torch.tensor(trained[: min(N_TRAINED, n // 2)], dtype=ids.dtype)
    ids[n - len(few) :] = few  # the last positions are both read and predicted
    return {"input_ids": ids[None], "labels": ids[None].clone()}


def _token_ids(live: Live, key: str) -> tuple[int, ...]:
    return targets.token_ids(live.config, key.removeprefix(PREFIX).split(".token_adapter")[0])


def _backward(live: Live, keys: Mapping[str, torch.nn.Parameter], batch: Mapping[str, Any]) -> dict[str, str]:
    for parameter in live.model.parameters():
        parameter.grad = None
    with torch.enable_grad():
        loss = live.model(**batch).loss
        if loss.requires_grad:  # checkpointing without input gradients cuts the whole graph off
            loss.backward()
    return {key: wrong for key, p in keys.items() if (wrong := _wrong(p.grad))}


def _wrong(gradient: torch.Tensor | None) -> str:
    if gradient is None or not gradient.any():
        return "none"
    return "" if bool(torch.isfinite(gradient).all()) else "not finite"


def _on_device(live: Live, batch: Mapping[str, Any]) -> dict[str, Any]:
    first = next(live.model.parameters())
    device = getattr(live.model.get_input_embeddings(), "weight", first).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@contextmanager
def _as_before(live: Live, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Weights, buffers, gradients, random numbers and modes are the same after the block as before."""
    modes = {module: module.training for module in live.model.modules()}
    gradients = {p: p.grad for p in live.model.parameters()}
    buffers = {buffer: buffer.clone() for buffer in live.model.buffers()}  # running means of norms, for one
    zeros = {p: p.detach().clone() for p in parameters if not p.detach().any()}
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with same_random_numbers(devices):
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                for p in zeros:
                    p.normal_(std=NOISE)
            live.model.train()
            yield
        finally:
            with torch.no_grad():
                for p, value in zeros.items():
                    p.copy_(value)
                for buffer, value in buffers.items():
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for p, gradient in gradients.items():
                p.grad = gradient
            for module, mode in modes.items():
                module.training = mode


@contextmanager
def same_random_numbers(devices: Sequence[int] = ()) -> Iterator[None]:
    """The generators of torch, numpy and Python are after the block where they were before."""
    before, numpy_before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
