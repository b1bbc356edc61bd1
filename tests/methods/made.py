"""Small targets, tensors and factors for the tests of methods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from suture.methods.base import Target
from suture.values import Param, TensorInfo, Term, View


def tensor(name: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, "F32", shape, "adapter_model.safetensors", 0, 4 * int(np.prod(shape)))


def target(weight: Param | None, *, rank: int = 2, scale: float = 0.5, bias: Param | None = None, **more) -> Target:
    module = weight.module if weight else "m"
    return replace(Target(module=module, weight=weight, bias=bias, rank=rank, scale=scale), **more)


def linear(*shape: int, kind: str = "Linear", name: str = "m.weight", transposed: bool = False) -> Param:
    return Param(name, shape, kind, transposed)  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factors(term: Term, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The term's factors, cut out of whole tensors by the term's views."""
    return {name: cut(arrays[view.tensor], view) for name, view in term.factors.items()}


def cut(array: np.ndarray, view: View) -> np.ndarray:
    """A view's part of its tensor."""
    part = array.reshape(view.shape)[tuple(i if isinstance(i, int) else slice(*i) for i in view.index)]
    return np.ascontiguousarray(part.T if view.transpose else part)


def blockwise(method, w: np.ndarray, f: dict[str, np.ndarray], s: float, size: int) -> np.ndarray:
    """A method applied block by block, as the executor does."""
    slices = [slice(k, min(k + size, len(w))) for k in range(0, len(w), size)]
    if method.prepare:
        f = method.prepare(lambda: ((i, w[i].copy()) for i in slices), f, s)
    return np.concatenate([method.rows(w[i].copy(), f, s, i) for i in slices])
