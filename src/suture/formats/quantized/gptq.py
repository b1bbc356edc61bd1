"""GPTQ: codes of 2, 3, 4 or 8 bits in columns of words, a scale and a zero for each group of inputs.

    W[i, j] = (code[j, i] − zero[g(j), i]) · scale[g(j), i]

    qweight (in · bits / 32, out), qzeros (groups, out · bits / 32), I32, lowest bits first; scales (groups, out);
    g_idx (in): the group of each input, in any order where `desc_act` is set

Stored is the transpose of the dense weight (out, in). Under `checkpoint_format` "gptq" a zero is stored minus one,
under "gptq_v2" as it is. One is added as GPT-QModel does it, with which Transformers loads: in 2, 4 and 8 bits to the
word as a whole, so that a zero of 0, which has borrowed from the next one, gives back; in 3 bits to each by itself.
Layout: gptqmodel.nn_modules.qlinear; https://arxiv.org/abs/2210.17323.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from suture.formats.dtypes import Array, to_float
from suture.formats.quantized.affine import Grid, choice, decoded, difference, require, spread, transposed
from suture.formats.quantized.base import (
    FLOATS,
    Dense,
    Given,
    Read,
    Rows,
    Scheme,
    dense,
    malformed,
    part,
    settings_of,
    whole,
)
from suture.values import Json, Packed, TensorInfo

BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # what is to be added to a stored zero


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the config says; zero or None where it says nothing."""

    bits: int | None
    group_size: int
    is_mixed: bool  # modules of their own bits and groups
    in_any_order: bool
    added: int


def find(given: Given) -> Mapping[str, Dense]:
    """The weights that a qweight stands for."""
    asked, found = _asked(given.settings), {}
    for name, tensor in sorted(given.tensors.items()):
        module, separator, kind = name.rpartition(".")
        if separator and kind in ("qweight", "qzeros", "g_idx") and f"{module}.weight" not in found:
            found[f"{module}.weight"] = _dense(module, tensor, asked, given)
    return found


def _asked(settings: Json) -> _Asked:
    bits = choice(settings, ("bits",), BITS, None)
    layout = choice(settings, ("checkpoint_format", "format"), tuple(FORMATS), "gptq")
    size = settings_of(settings, "group_size", int, 0)
    assert isinstance(size, int)
    is_mixed = bool(settings.get("dynamic"))
    in_any_order = bool(settings.get("desc_act"))
    return _Asked(bits if isinstance(bits, int) else None, size, is_mixed, in_any_order, FORMATS[str(layout)])


def _dense(module: str, tensor: TensorInfo, asked: _Asked, given: Given) -> Dense:
    tensors = given.tensors
    qweight = part(tensors, f"{module}.qweight", tensor)
    parts = {"codes": qweight, "zeros": part(tensors, f"{module}.qzeros", qweight)}
    scales = parts["scales"] = part(tensors, f"{module}.scales", qweight)
    if f"{module}.weight" in tensors:
        malformed(tensors[f"{module}.weight"], "it stands beside a qweight", "one of the two")
    require(qweight, ("I32",))
    require(parts["zeros"], ("I32",))
    require(scales, FLOATS)
    n_groups, n_out = scales.shape
    n_in, bits = _width(module, parts, asked, given)
    require(parts["zeros"], ("I32",), (n_groups, _words(n_out, bits)))
    if qweight.shape[1] != n_out or (bits == 3 and (n_in % 32 or n_out % 32)):
        malformed(qweight, f"I32 {list(qweight.shape)} of {bits} bits", f"{n_out:,} columns, as the scales have")
    _require_groups(scales, n_in, asked)
    settings = {"bits": bits, "added": asked.added, "in_order": _in_order(parts, n_in, n_groups, given.read)}
    return dense(f"{module}.weight", scales.dtype, (n_out, n_in), Packed(SCHEME.name, parts, settings), "codes")


def _width(module: str, parts: dict[str, TensorInfo], asked: _Asked, given: Given) -> tuple[int, int]:
    """Inputs and bits of a module. Only g_idx tells the inputs where the last word is not full."""
    qweight, n_out = parts["codes"], parts["scales"].shape[1]
    g_idx = given.tensors.get(f"{module}.g_idx")
    if g_idx is None:
        if asked.in_any_order:
            part(given.tensors, f"{module}.g_idx", qweight)
        bits = asked.bits or 32 * parts["zeros"].shape[1] // n_out
        n_in = qweight.shape[0] * 32 // bits if bits in BITS else 0
    else:
        if g_idx.dtype != "I32" or len(g_idx.shape) != 1 or not g_idx.n_values:
            malformed(g_idx, f"{g_idx.dtype} {list(g_idx.shape)}", "a group of each input, as I32")
        parts["groups"], n_in = g_idx, g_idx.shape[0]
    able = [b for b in BITS if (_words(n_in, b), _words(n_out, b)) == (qweight.shape[0], parts["zeros"].shape[1])]
    if not able or (asked.bits not in (None, *able) and not asked.is_mixed):
        said = asked.bits or " or ".join(map(str, BITS))
        found = f"I32 {list(qweight.shape)}, with qzeros {list(parts['zeros'].shape)}"
        malformed(qweight, found, f"the words of {said} bits of {n_in:,} inputs and {n_out:,} outputs")
    return n_in, asked.bits if asked.bits in able else able[0]


def _words(n: int, bits: int) -> int:
    return -(-n * bits // 32)


def _require_groups(scales: TensorInfo, n_in: int, asked: _Asked) -> None:
    size = n_in if asked.group_size == -1 else asked.group_size
    if size and not asked.is_mixed and (size < 0 or scales.shape[0] != -(-n_in // size)):
        expected = f"those of groups of {asked.group_size} of {n_in:,} inputs, as config.json says"
        malformed(scales, f"scales of {scales.shape[0]:,} groups", expected)


def _in_order(parts: Mapping[str, TensorInfo], n_in: int, n_groups: int, read: Read) -> bool:
    """True where the groups are equally long and one after the other."""
    equal = n_in % n_groups == 0
    if "groups" not in parts:
        if not equal:
            malformed(parts["scales"], f"scales of {n_groups:,} groups", f"a divisor of {n_in:,}, or a g_idx")
        return True
    g_idx = whole(parts["groups"], read)
    if g_idx.min() < 0 or g_idx.max() >= n_groups:
        malformed(parts["groups"], f"groups {g_idx.min()} to {g_idx.max()}", f"0 to {n_groups - 1}")
    return equal and bool((g_idx == np.arange(n_in) // (n_in // n_groups)).all())


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """Rows of the dense weight. All of its words are kept, since each row is spread over the whole of the tensor."""
    parts, bits, n_in = packed.parts, int(packed.settings["bits"]), info.shape[1]
    words = transposed(parts["codes"], read)
    scales = to_float(whole(parts["scales"], read), info.dtype).T.copy()
    zeros = _zeros(parts["zeros"], packed.settings, read).T.astype(np.float32, order="C")
    group = None if packed.settings["in_order"] else whole(parts["groups"], read)

    def codes(start: int, stop: int) -> Array:
        return np.ascontiguousarray(spread(words[start:stop], bits)[:, :n_in])

    grid = Grid(1 << bits, scales, zeros, difference, group)
    return decoded(info, grid, codes)


def _zeros(stored: TensorInfo, settings: Json, read: Read) -> Array:
    """The zeros of each group, (groups, out) and what fills the last word."""
    bits, words = int(settings["bits"]), whole(stored, read).view(np.uint32)
    if bits == 3:
        return (spread(words, bits) + np.uint8(settings["added"])) & 7
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return spread(words + np.uint32(settings["added"] * ones), bits)


def words(settings: Json) -> str:
    """Such as "GPTQ 4 bits, groups of 128"."""
    size = settings.get("group_size", -1)
    return f"GPTQ {settings.get('bits')} bits, " + (f"groups of {size}" if size != -1 else "a group a row")


SCHEME = Scheme("gptq", find, open_rows, words)
