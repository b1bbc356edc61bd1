"""An adapter's tensors as the starting tensors of a run with another rank, scale or set of targets.

A conversion either leaves the function of the adapter as it is, or says by how much it changes it, or is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from suture import targets
from suture.errors import FormatError, UsageError
from suture.training.lowrank import Array, Factors, Resized, scaled, with_rank

PREFIX = "base_model.model."
FACTORS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))
MAGNITUDE, FACTOR_BIAS = ".lora_magnitude_vector", ".lora_B.bias"
TOKENS = ".token_adapter.trainable_tokens_delta"
BIAS_COPY, COPIES = ".base_layer.bias", (".base_layer.weight", ".original_module.weight")
LOW_RANK = (*FACTORS[0], *FACTORS[1], MAGNITUDE, FACTOR_BIAS)
SUFFIXES = (*LOW_RANK, TOKENS, BIAS_COPY, *COPIES)
SHOWN = 5
LOW_RANK_WAY = "by low-rank factors"
COUNTED = {  # what is counted → its noun, and the sentence
    "new by low-rank factors": ("module", "{} new to the run: a fresh start, so the function is unchanged"),
    "new in full": ("tensor", "{} trained in full from now on: starting from the base's values"),
    "new in single rows": ("embedding", "{} trained in single rows from now on: starting from the base's values"),
    "new in its bias": ("bias vector", "{} trained from now on: starting from the base's values"),
    "B biases": ("bias vector", "{} of B new to the run: fresh"),
    "tokens": ("token row", "{} new to the run: starting from the base's values"),
    "rows": ("row", "{} added to matrices trained in full: starting from the base's values"),
    "vocabulary": ("row", "{} added to low-rank embeddings: starting without an update"),
    "biases": ("bias vector", "{} carried over under another key"),
    "copies": ("matrix", "{} left out: a copy of the base, never trained"),
    "rounded": ("tensor", "{} rounded to float32"),
}
MERGE_FIRST = "Merge the adapter into its base first (`suture merge`), and train a new adapter on the result."


@dataclass(frozen=True, slots=True)
class Converted:
    """Starting tensors in float32 by file key, exactly those that the run expects, and what was changed, in words."""

    tensors: dict[str, Array]
    statements: tuple[str, ...]


@dataclass(slots=True)
class _Run:
    """What a conversion needs to know, and what it has done: the statements are written from `changes` and `counts`."""

    configs: tuple[Mapping[str, Any], Mapping[str, Any]]  # the adapter's, the run's
    tensors: dict[str, Array]
    expected: Mapping[str, tuple[int, ...]]
    fresh: Mapping[str, Array]
    changes: list[_Change] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def initial(self, key: str) -> Array:
        """The fresh value of a tensor, in the shape that the run expects."""
        value, shape = self.fresh[key], self.expected[key]
        if value.shape != shape:
            raise ValueError(f"fresh[{key!r}] has shape {value.shape}, expected {shape}")
        return value.astype(np.float32, copy=False)


class _Change(NamedTuple):
    """What happened to the factors of one module."""

    module: str
    ranks: tuple[int, int]
    scales: tuple[float, float]
    resized: Resized | None = None


def convert(
    old: Mapping[str, Array],
    old_config: Mapping[str, Any],
    new_config: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    fresh: Mapping[str, Array],
) -> Converted:
    """The tensors that a run starts from when it goes on from an adapter of another shape.

    Args:
        old: the adapter's tensors by file key. Copies of base matrices that PEFT saved beside them hold no training:
            they are passed over where `fresh` has the same values, and left out with a statement elsewhere.
        old_config: the adapter's adapter_config.json.
        new_config: the run's.
        expected: keys and shapes of the run's tensors, from `targets.expected`.
        fresh: the run's initial values, float32, in those shapes: random factors, rows and matrices of the base.

    Returns:
        The tensors, bit for bit the old ones and without statements where nothing differs.

    Raises:
        UsageError: something that was trained would be lost, or cannot be carried over.
        FormatError: the adapter's tensors and its config do not belong together.
    """
    run = _Run((old_config, new_config), {}, expected, fresh)
    for key, value in old.items():
        _take(run, key, _float32(run, key, value))
    _refuse_loss(run.tensors, expected)
    _refuse_new_magnitudes(run)
    _refuse_other_parameters(run)
    out: dict[str, Array] = {}
    for key in expected:
        module, suffix = split(key)
        factors = next((f for f in FACTORS if suffix in f), None)
        if key not in run.tensors:
            out[key] = run.initial(key)
            _count_fresh(run, module, suffix)
        elif factors is None:
            out[key] = _single(run, key)
        elif key not in out:
            out |= _pair(run, module, (PREFIX + module + factors[0], PREFIX + module + factors[1]))
    return Converted({key: out[key] for key in expected}, _statements(run))


def split(key: str) -> tuple[str, str]:
    """The module that a file key belongs to, and the part of the key after it."""
    for suffix in SUFFIXES:
        if key.endswith(suffix):
            return key.removeprefix(PREFIX)[: -len(suffix)], suffix
    module, _, last = key.removeprefix(PREFIX).rpartition(".")
    return module, f".{last}"


def _float32(run: _Run, key: str, value: Array) -> Array:
    """The value in float32, which holds float16 and bfloat16 exactly; rounding of wider types is counted."""
    if value.dtype == np.float32:
        return value
    if value.dtype.kind in "iubc":
        raise FormatError(f"{value.dtype} values", where=key, expected="a floating-point tensor")
    cast = value.astype(np.float32)
    run.counts["rounded"] += value.dtype.itemsize > 4 and not np.array_equal(cast, value, equal_nan=True)
    return cast


def _take(run: _Run, key: str, value: Array) -> None:
    """Put a tensor of the adapter under the key of the run; leave out what is a copy of the base."""
    # a bias is M.bias, and M.base_layer.bias once M has low-rank factors: the same parameter
    other = key.removesuffix(BIAS_COPY) + ".bias" if key.endswith(BIAS_COPY) else key.removesuffix(".bias") + BIAS_COPY
    if key not in run.expected and key.endswith(".bias") and other in run.expected:
        key = other
        run.counts["biases"] += 1
    known = run.fresh.get(key)
    is_copy = key not in run.expected and (key.endswith(COPIES) if known is None else np.array_equal(value, known))
    run.counts["copies"] += is_copy and known is None
    if not is_copy:
        run.tensors[key] = value


def _refuse_loss(tensors: Mapping[str, Array], expected: Mapping[str, Any]) -> None:
    """Every tensor of the adapter must have a place in the run."""
    lost = [key for key in tensors if key not in expected]
    if not lost:
        return
    ways = {module: _way(suffix) for module, suffix in map(split, expected) if not suffix.endswith("bias")}
    for suffix, name, value in ((MAGNITUDE, "use_dora", "magnitudes"), (FACTOR_BIAS, "lora_bias", "biases of B")):
        found = [key for key in lost if key.endswith(suffix) and split(key)[0] in ways]
        if found and len(found) == len(lost):
            raise UsageError(
                f"the adapter has trained {value} in {_modules(found)}, and the run has {name} off",
                where=_names(found),
                expected=f"a run with {name} on",
                do=f"Turn {name} on. {MERGE_FIRST}",
            )
    weights = [(key, _way(split(key)[1])) for key in lost if not key.endswith("bias")]
    other = [key for key, way in weights if ways.get(split(key)[0], way) != way]
    if other:
        module, suffix = split(other[0])
        raise UsageError(
            f"{_modules(other)} of the adapter would be trained in another way: {module} was trained "
            f"{_way(suffix)}, the run trains it {ways[module]}",
            where=_names(other),
            expected="the same way of training for what is trained already",
            do=f"Train these modules as the adapter does. {MERGE_FIRST}",
        )
    raise UsageError(
        f"training would be lost: the adapter has {counted(len(lost), 'tensor')} in {_modules(lost)} "
        "that the run does not train",
        where=_names(lost),
        expected="a run that trains everything that the adapter has trained",
        do=f"Add these modules to the run. {MERGE_FIRST}",
    )


def _way(suffix: str) -> str:
    if suffix in LOW_RANK:
        return LOW_RANK_WAY
    if suffix == TOKENS:
        return "in single rows"
    return "in its bias" if suffix in (".bias", BIAS_COPY) else "in full"


def _refuse_new_magnitudes(run: _Run) -> None:
    """Magnitudes must start at ‖W + s·B·A‖, which only the base's weights give."""
    trained = {module for module, suffix in map(split, run.tensors) if suffix in (*FACTORS[0], *FACTORS[1])}
    found = [k for k in run.expected if k.endswith(MAGNITUDE) and k not in run.tensors and split(k)[0] in trained]
    if found:
        raise UsageError(
            f"the run has use_dora on, and the adapter was trained without it in {_modules(found)}",
            where=_names(found),
            expected="a run with use_dora off",
            do=f"Turn use_dora off. {MERGE_FIRST}",
        )


def _refuse_other_parameters(run: _Run) -> None:
    """Keys of fused parameters count their neighbours, so another list may give the same key to another parameter."""
    old, new = (sorted(config.get("target_parameters") or ()) for config in run.configs)
    found = [key for key, a in run.tensors.items() if key.endswith(FACTORS[0][0]) and _fused(run, split(key)[0], a)]
    if found and old != new:
        raise UsageError(
            f"target_parameters differ: the adapter has {', '.join(old)}, the run {', '.join(new) or 'none'}",
            where=_names(found),
            expected="the same fused parameters",
            do=f"Use the adapter's list. {MERGE_FIRST}",
        )


def _fused(run: _Run, module: str, a: Array) -> list[str]:
    """Paths of the fused parameters that factors of a module may belong to; none for an ordinary module.

    A name of one part stands for any module; factors of an ordinary one have the rank that the config says.
    """
    rank = targets.rank_and_alpha(run.configs[0], module)[0]
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    names = [name.rpartition(".") for name in run.configs[0].get("target_parameters") or ()]
    parts = [(parent, leaf) for parent, _, leaf in names if f".{module}".endswith(f".{parent}" if parent else "")]
    return [f"{module}.{leaf}" for parent, leaf in parts if parent or len(a) != rank]


def _pair(run: _Run, module: str, keys: tuple[str, str]) -> dict[str, Array]:
    """New low-rank factors of one module."""
    for key in keys:
        if key not in run.tensors:
            raise FormatError("the other factor of the module is here, this one is not", where=key)
    a, b = run.tensors[keys[0]], run.tensors[keys[1]]
    fused, rank = _fused(run, module, a), targets.rank_and_alpha(run.configs[0], module)[0]
    if not fused and (len(a) != rank or b.ndim < 2 or b.shape[1] != rank):
        raise FormatError(
            f"factors {list(a.shape)} and {list(b.shape)}, and rank {rank} in the config",
            where=keys[0],
            expected="the rank of r and rank_pattern",
            do="Use the config that was saved with the adapter.",
        )
    scales = _scales(run, fused or [module], keys[0])
    factor = 1.0 if scales[0] == scales[1] else scales[0] / scales[1]
    if (a.shape, b.shape) == (run.expected[keys[0]], run.expected[keys[1]]):
        run.changes.append(_Change(module, (len(a), len(a)), scales))
        return {keys[0]: a, keys[1]: scaled(b, factor)}
    if fused:
        raise _refused("the rank of fused experts cannot be changed", keys[0], "the rank that the adapter has")
    ranks = (rank, run.expected[keys[0]][0])
    if ranks[1] < rank and PREFIX + module + MAGNITUDE in run.tensors:
        found = "a lower rank changes the update, and DoRA's magnitudes belong to the old one"
        raise _refused(found, keys[0], "a rank that is not lower")
    got = with_rank(*_matrices(run, keys), factor)
    run.changes.append(_Change(module, ranks, scales, got))
    return {keys[0]: got.a.reshape(run.expected[keys[0]]), keys[1]: got.b.reshape(run.expected[keys[1]])}


def _scales(run: _Run, names: Iterable[str], key: str) -> tuple[float, float]:
    """Scale of a module in the adapter and in the run."""
    found = {(targets.scale(run.configs[0], name), targets.scale(run.configs[1], name)) for name in names}
    changed = {pair for pair in found if pair[0] != pair[1]}
    if len(found) > 1 and changed:
        raise UsageError("the scales of several fused parameters change", where=key, do="Keep their rank and alpha.")
    if any(0.0 in pair for pair in changed):
        raise UsageError("alpha is 0 before or after, so the scale cannot be carried over", where=key)
    return next(iter(found))


def _matrices(run: _Run, keys: tuple[str, str]) -> tuple[Factors, Factors]:
    """The factors and their initial values as matrices: kernels flat, an embedding's A with columns for added rows."""
    a, b = (run.tensors[key].reshape(len(run.tensors[key]), -1) for key in keys)
    a_new, b_new = (run.initial(key).reshape(len(run.initial(key)), -1) for key in keys)
    if not all(np.isfinite(values).all() for values in (a, b)):
        raise FormatError("values that are not finite", where=keys[0], do="Go on from an earlier checkpoint.")
    added = a_new.shape[1] - a.shape[1]
    if added > 0 and keys[0].endswith(FACTORS[1][0]):
        a = np.pad(a, ((0, 0), (0, added)))
        run.counts["vocabulary"] += added
    if a.shape[1] != a_new.shape[1] or len(b) != len(b_new) or b_new.shape[1] != len(a_new):
        raise _misfit(keys[0], run.tensors[keys[0]].shape, run.expected[keys[0]])
    return (a, b), (a_new, b_new)


def _single(run: _Run, key: str) -> Array:
    """A tensor that is no low-rank factor."""
    value, shape, (module, suffix) = run.tensors[key], run.expected[key], split(key)
    if suffix == TOKENS:
        return _token_rows(run, key, value)
    if suffix == FACTOR_BIAS and value.shape == shape:
        old, new = _scales(run, [module], key)
        return scaled(value, 1.0 if old == new else old / new)
    if value.shape == shape:
        return value
    grows = suffix == ".weight" and len(shape) == 2 == value.ndim and len(value) < shape[0]
    if not grows or value.shape[1] != shape[1]:
        raise _misfit(key, value.shape, shape)
    run.counts["rows"] += shape[0] - len(value)
    return np.concatenate([value, run.initial(key)[len(value) :]])


def _token_rows(run: _Run, key: str, value: Array) -> Array:
    """Rows of single tokens, by token id."""
    old, new = (targets.token_ids(config, split(key)[0]) for config in run.configs)
    shape = run.expected[key]
    if (len(old), len(new)) != (len(value), shape[0]) or value.shape[1:] != shape[1:]:
        raise _misfit(key, value.shape, shape)
    if old == new:
        return value
    if lost := sorted(set(old) - set(new)):
        found = f"the adapter has trained {counted(len(lost), 'token row')} that the run does not train"
        raise UsageError(found, where=f"{key}: {_listed(map(str, lost))}", do=f"Add them to the run. {MERGE_FIRST}")
    out = run.initial(key).copy()
    out[[new.index(token) for token in old]] = value
    run.counts["tokens"] += len(new) - len(old)
    return out


def _count_fresh(run: _Run, module: str, suffix: str) -> None:
    """Count what is new to the run: a low-rank module once, by its first factor."""
    way = _way(suffix)
    if suffix in (FACTORS[0][0], FACTORS[1][0]) or way != LOW_RANK_WAY:
        run.counts[f"new {way}"] += 1
    run.counts["B biases"] += suffix == FACTOR_BIAS and PREFIX + module + FACTORS[0][0] in run.tensors


def _statements(run: _Run) -> tuple[str, ...]:
    """What was changed, in sentences: ranks, scales, then everything that was counted."""
    ranks: dict[tuple[int, int, bool], list[tuple[Resized, str]]] = {}
    scales: Counter[tuple[float, float, bool]] = Counter()
    for c in run.changes:
        if c.resized is not None and c.ranks[0] != c.ranks[1]:
            ranks.setdefault((*c.ranks, c.resized.fresh_b), []).append((c.resized, c.module))
        if c.scales[0] != c.scales[1]:
            scales[*c.scales, c.resized is None or c.resized.error is None] += 1
    said = [
        f"rank {old} → {new} in {counted(len(found), 'module')}: {_fallen(found) if new < old else _risen(fresh_b)}"
        for (old, new, fresh_b), found in ranks.items()
    ]
    for (old_scale, new_scale, exact), n in scales.items():
        words = f"folded into B (× {old_scale / new_scale:g}, in float32); the update is unchanged"
        words = words if exact else "folded into both factors"
        said.append(f"scale {old_scale:g} → {new_scale:g} in {counted(n, 'module')}: {words}")
    return (
        *said,
        *(words.format(counted(run.counts[k], noun)) for k, (noun, words) in COUNTED.items() if run.counts[k]),
    )


def _risen(fresh_b: bool) -> str:
    fresh, zero = ("columns of B", "rows of A") if fresh_b else ("rows of A", "columns of B")
    return f"{fresh} from the fresh initialisation, {zero} zero; the update is unchanged"


def _fallen(found: list[tuple[Resized, str]]) -> str:
    errors = [(resized.error or 0.0, module) for resized, module in found]
    worst, module = max(errors)
    mean, n_fresh = math.fsum(error for error, _ in errors) / len(errors), sum(r.n_fresh for r, _ in found)
    words = f"the best approximation of that rank; the update changes by {100 * mean:.2g} % on average"
    words += f", {100 * worst:.2g} % at most ({module})"
    return words + (f"; {counted(n_fresh, 'direction')} without an update start fresh" if n_fresh else "")


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _modules(keys: Iterable[str]) -> str:
    return counted(len({split(key)[0] for key in keys}), "module")


def _names(keys: Iterable[str]) -> str:
    return _listed(split(key)[0] for key in keys)


def _listed(names: Iterable[str]) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else "")


def _refused(found: str, where: str, expected: str) -> UsageError:
    return UsageError(found, where=where, expected=expected, do=f"Keep the rank. {MERGE_FIRST}")


def _misfit(where: str, found: tuple[int, ...], expected: tuple[int, ...]) -> UsageError:
    do = "Go on from an adapter of the same base model and vocabulary."
    return UsageError(f"shape {list(found)}", where=where, expected=f"shape {list(expected)}", do=do)
