"""One backward pass that shows which tensors of an adapter the loss reaches. Everything is put back afterwards."""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from suture import targets
from suture.errors import UsageError
from suture.groups import vocabulary_ends
from suture.rewriting import PREFIX
from suture.training.live import Live
from suture.values import Json

N_TOKENS = 256  # of the random batch, at most: enough for routers to reach every expert of a small model
N_TRAINED = 32  # of them, at most, are tokens whose rows train
NOISE = 1e-2
BY_TEXT = "none by text alone"  # what only a batch with images, films or sounds can reach
OTHER_TOWERS = re.compile("vision|visual|video|audio|image|speech")
TOWER_CONFIGS = frozenset({"vision_config", "audio_config"})


def probe(live: Live, batch: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Key → "none", BY_TEXT or "not finite", for every tensor that should get a gradient and does not.

    A factor that is all zero hides the other one of its pair (the gradient of A is Bᵀ·…), so such tensors are
    filled with noise for the probe. What the given batch does not reach gets a second chance with random tokens. If
    nothing but random tokens was fed, what lies outside of the text model is not "none" but BY_TEXT.

    Raises:
        UsageError: there is no batch, and the model takes more than tokens.
    """
    keys = {key: p for key, p in live.unique().items() if p.requires_grad}
    if not keys:
        return {}
    with _as_before(live, list(keys.values())):
        unfed = TypeError("it takes other inputs than tokens, and no batch of them was passed")
        found: dict[str, str] | Exception = unfed if batch is None else _tried(live, keys, batch)
        text_alone = isinstance(found, Exception)
        missed = keys if isinstance(found, Exception) else {key: keys[key] for key in found}
        if token_rows(live) is not None and (isinstance(found, Exception) or "none" in found.values()):
            again = _tried(live, missed, None)
            found = again if isinstance(found, Exception) or not isinstance(again, Exception) else found
    if isinstance(found, Exception):
        raise UsageError(
            f"{type(live.model.get_base_model()).__name__} gives no loss: {found}",
            where="the probe of gradients",
            expected="a causal language model, or a batch of what it takes",
            do="Pass batch=…, the arguments of a forward pass that gives a loss.",
        ) from found
    if not text_alone:
        return found
    return {key: BY_TEXT if wrong == "none" and is_beside_text(live, key) else wrong for key, wrong in found.items()}


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


def token_rows(live: Live) -> torch.Tensor | None:
    """The matrix that tokens are looked up in, (vocabulary, width); None for a model of images, films or sounds."""
    try:
        weight = getattr(live.model.get_input_embeddings(), "weight", None)
    except (NotImplementedError, AttributeError):  # as Transformers and classes outside of it say that there is none
        return None
    return weight if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None


def is_beside_text(live: Live, key: str) -> bool:
    """True for a tensor outside of the text model: in a tower for images or sounds, or between it and the text."""
    module = key.removeprefix(PREFIX).split(".lora_")[0]
    if {module, module.rpartition(".")[0]} & vocabulary_ends(live.arch):
        return False
    text = (live.arch.input_embedding or "").rpartition(".")[0]
    is_inside = bool(text) and module.startswith(f"{text}.")
    if OTHER_TOWERS.search(module.removeprefix(f"{text}.") if is_inside else module):
        return True
    return bool(text) and not is_inside and _has_towers(live.model.get_base_model().config.to_dict())


def _has_towers(config: Json) -> bool:
    inner = (value for value in config.values() if isinstance(value, Mapping))
    return not TOWER_CONFIGS.isdisjoint(config) or any(_has_towers(value) for value in inner)


def random_batch(live: Live) -> dict[str, torch.Tensor]:
    """Random tokens and labels, (1, n) each, among them some of those whose rows train.

    Raises:
        TypeError: the model takes no tokens.
    """
    weight = token_rows(live)
    if weight is None:
        raise TypeError("it takes no tokens")
    rows = weight.shape[0]
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
    rows = token_rows(live)
    device = (next(live.model.parameters()) if rows is None else rows).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


@contextmanager
def _as_before(live: Live, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Weights, buffers, gradients, hooks, random numbers and modes are the same after the block as before."""
    modes = {module: module.training for module in live.model.modules()}
    gradients = {p: p.grad for p in live.model.parameters()}
    hooks = {p: h for p in gradients if (h := p._post_accumulate_grad_hooks)}  # an optimiser's step, for one
    buffers = {buffer: buffer.clone() for buffer in live.model.buffers()}  # running means of norms, for one
    zeros = {p: p.detach().clone() for p in parameters if not p.detach().any()}
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with same_random_numbers(devices):
        torch.manual_seed(0)
        try:
            for p in hooks:
                p._post_accumulate_grad_hooks = OrderedDict()  # None would leave the old ones in force
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
            for p, old in hooks.items():
                p._post_accumulate_grad_hooks = old
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
