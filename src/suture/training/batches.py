"""Examples as the model sees them: packed into rows, collated into batches, and a probe of whether packing leaks.

Packed rows carry no attention mask. Transformers sees from positions that restart where a sequence begins, and builds a
block-diagonal mask, but only where there is no cache: with `use_cache`, which is most models' default outside of a
Trainer, all sequences of a row attend to each other. So packed batches say `use_cache=False` themselves.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100  # the label of a token on which the loss does not count
LEAK_LIMIT = 1.0  # of packing_leaks


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One row of training: token ids and labels, both (n,), and where each of its packed sequences begins."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    starts: tuple[int, ...] = (0,)

    @property
    def n_counted(self) -> int:
        """Tokens on which the loss counts."""
        return int(np.count_nonzero(self.labels != IGNORED))

    @property
    def is_packed(self) -> bool:
        """Whether it is several sequences."""
        return len(self.starts) > 1

    @property
    def positions(self) -> NDArray[np.int32]:
        """Position of each token in its own sequence, (n,)."""
        lengths = np.diff([*self.starts, len(self.input_ids)])
        return np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])


def pack(examples: Sequence[Example], max_length: int, seed: int) -> tuple[Example, ...]:
    """Rows of at most max_length tokens made of whole examples: longest first, each into the fullest row it fits.

    The order of the rows is drawn from the seed, so that it does not follow their lengths.
    """
    rows: list[list[Example]] = []
    space: list[tuple[int, int]] = []  # free tokens and number of each row, sorted
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        n = len(example.input_ids)
        at = bisect_left(space, (n, 0))
        free, row = space.pop(at) if at < len(space) else (max_length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        insort(space, (free - n, row))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))
    return tuple(_join(rows[row]) for row in order)


def _join(examples: Sequence[Example]) -> Example:
    """One row of several examples, one after another."""
    starts = np.cumsum([0, *(len(example.input_ids) for example in examples[:-1])])
    ids = np.concatenate([example.input_ids for example in examples])
    return Example(ids, np.concatenate([example.labels for example in examples]), tuple(starts.tolist()))


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Any]:
    """A batch of int64 tensors (rows, longest): input_ids and labels, padded on the right, for `model(**batch)`.

    With packed rows it has position_ids, which restart at each sequence, and use_cache=False; else an attention_mask.
    """
    ids = _padded([example.input_ids for example in examples], pad_id)
    labels = _padded([example.labels for example in examples], IGNORED)
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels}
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    if any(example.is_packed for example in examples):
        # Padding is a sequence of its own, from position 0.
        batch["position_ids"] = torch.arange(ids.shape[1]) - lengths[:, None]
        for row, example in zip(batch["position_ids"], examples, strict=True):
            row[: len(example.input_ids)] = torch.from_numpy(example.positions)
        batch["use_cache"] = False
    else:
        batch["attention_mask"] = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return batch


def _padded(rows: Sequence[NDArray[np.int32]], value: int) -> torch.Tensor:
    """Rows side by side, (rows, longest), filled up on the right."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value, dtype=torch.int64)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = torch.from_numpy(row)
    return out


def packing_leaks(model: torch.nn.Module, vocab_size: int) -> float:
    """How much packed sequences see of each other, in units of what rounding may do: above LEAK_LIMIT they leak.

    Two rows of two random sequences each (some attention kernels respect packing only in batches of one row). First,
    the second sequence's logits must not depend on the first: that is exact to the bit but where rounding depends on
    all tokens, as in mixtures of experts. Second, they must be those of the sequence alone, to rounding.
    Infinite where logits are not finite.

    Models leak that carry a state along the row (Mamba, RWKV, linear attention), or that take positions from
    elsewhere than position_ids (OPT, BLOOM, ALiBi).
    """
    rng = np.random.Generator(np.random.PCG64(0))
    parts = [
        Example(ids, ids) for ids in (rng.integers(0, vocab_size, n, dtype=np.int32) for n in (9, 9, 12, 9, 9, 12))
    ]
    first, other, second = parts[0::3], parts[1::3], parts[2::3]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, two = (_logits(model, [_join(row) for row in zip(p, second, strict=True)]) for p in (first, other))
            alone = torch.cat([_logits(model, [sequence]) for sequence in second])
    finally:
        model.train(was_training)
    if not torch.isfinite(alone).all():
        return math.inf
    largest, eps = max(float(alone.abs().max()), 1e-30), max(map(_eps, model.parameters()))
    # 100 roundings, or half the digits where those are few.
    limit = min(100 * eps, math.sqrt(eps) / 2)
    seen, changed = (float((one[:, 9:] - reference).abs().max()) / largest for reference in (two[:, 9:], alone))
    return max(seen / limit, changed / (4 * limit))


def _eps(parameter: torch.Tensor) -> float:
    """Rounding of a parameter's type; quantised ones compute about as coarsely as bfloat16."""
    return torch.finfo(parameter.dtype if parameter.is_floating_point() else torch.bfloat16).eps


def _logits(model: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """Logits of a batch as a run feeds it, (rows, longest, vocabulary), in float32."""
    device = next(model.parameters()).device
    batch = collate(examples, 0)
    del batch["labels"]
    logits = model(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}).logits
    return cast(torch.Tensor, logits).float()
