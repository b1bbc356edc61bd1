"""The one table of the safetensors dtypes, and the conversions between stored values and the floats we compute in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """One dtype of the format.

    `storage` is the numpy type of one stored item: an unsigned integer of the same width where numpy has no such
    type, None where several items share a byte. `computable` means that `to_float` and `from_float` know it.
    `torch_name` is the attribute of torch, empty where torch has none.
    """

    name: str
    bits: int
    storage: np.dtype[Any] | None
    is_float: bool
    computable: bool
    torch_name: str


def _table() -> dict[str, DType]:
    # name, bits, numpy storage (little endian), is it a float, torch's name
    rows: list[tuple[str, int, str | None, bool, str]] = [
        ("BOOL", 8, "u1", False, "bool"),
        ("F4", 4, None, True, "float4_e2m1fn_x2"),
        ("F6_E2M3", 6, None, True, ""),
        ("F6_E3M2", 6, None, True, ""),
        ("U8", 8, "u1", False, "uint8"),
        ("I8", 8, "i1", False, "int8"),
        ("F8_E5M2", 8, "u1", True, "float8_e5m2"),
        ("F8_E4M3", 8, "u1", True, "float8_e4m3fn"),
        ("F8_E8M0", 8, "u1", True, "float8_e8m0fnu"),
        ("F8_E4M3FNUZ", 8, "u1", True, "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", 8, "u1", True, "float8_e5m2fnuz"),
        ("I16", 16, "<i2", False, "int16"),
        ("U16", 16, "<u2", False, "uint16"),
        ("F16", 16, "<f2", True, "float16"),
        ("BF16", 16, "<u2", True, "bfloat16"),
        ("I32", 32, "<i4", False, "int32"),
        ("U32", 32, "<u4", False, "uint32"),
        ("F32", 32, "<f4", True, "float32"),
        ("C64", 64, "<c8", False, "complex64"),
        ("F64", 64, "<f8", True, "float64"),
        ("I64", 64, "<i8", False, "int64"),
        ("U64", 64, "<u8", False, "uint64"),
    ]
    computable = {"F16", "BF16", "F32", "F64"}
    return {
        name: DType(name, bits, np.dtype(storage) if storage else None, is_float, name in computable, torch_name)
        for name, bits, storage, is_float, torch_name in rows
    }


DTYPES: Mapping[str, DType] = MappingProxyType(_table())
SIXTEEN = ("BF16", "F16")  # where rounding loses something of an update

# Of 16 bits: the sign, all but the sign, NaN, and the largest finite values.
_SIGN, _REST = np.uint16(0x8000), np.uint16(0x7FFF)
_NAN = {"F16": np.uint16(0x7E00), "BF16": np.uint16(0x7FC0)}
_LARGEST = {"F16": 65504.0, "BF16": (2.0 - 2.0**-7) * 2.0**127}


def compute_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy type that values of `dtype` are computed in: float64 for F64, else float32."""
    return np.dtype(np.float64 if dtype == "F64" else np.float32)


def to_float(raw: Array, dtype: str, out: Array | None = None) -> Array:
    """Stored values as float32 (F64: float64), exactly.

    Args:
        raw: array of the dtype's storage type, any shape.
        dtype: "F16", "BF16", "F32" or "F64".
        out: array of raw's shape and of the result's type; nothing is allocated when it is given.
    """
    _require_computable(dtype)
    if out is None:
        out = np.empty(raw.shape, compute_dtype(dtype))
    if dtype == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN is still NaN
            np.copyto(out, raw)
    return out


def from_float(x: Array, dtype: str, out: Array | None = None, scratch: Array | None = None) -> Array:
    """Values as they are stored: rounded once to nearest, ties to even, overflow to infinity, NaN stays NaN.

    Args:
        x: float32 or float64 array, any shape; it is not changed.
        dtype: "F16", "BF16", "F32" or "F64".
        out: array of x's shape and of the dtype's storage type.
        scratch: uint32 array of x's shape, for BF16; with it and `out`, converting float32 allocates nothing.
    """
    _require_computable(dtype)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"float32 or float64 is rounded, not {x.dtype}")
    if out is None:
        out = np.empty(x.shape, DTYPES[dtype].storage)
    if dtype == "BF16":
        single = x if x.dtype == np.float32 else _round_to_odd(x)
        _round_to_bf16(single, out, scratch)
    else:
        # Overflow to infinity and underflow are what rounding means here, not accidents to warn of.
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(out, x, casting="same_kind")
    return out


def from_float_at_random(x: Array, dtype: str, bits: Array, out: Array | None = None) -> Array:
    """Values as they are stored, rounded up or down at random, so that on average nothing is lost.

        |x| = (k + f) · step,   0 ≤ f < 1        becomes  (k + 1) · step  where  f + bits / 2³² ≥ 1,  else  k · step

    step is the distance of the neighbours of |x|. What can be stored exactly stays; NaN stays NaN. Beyond the largest
    finite value there is no neighbour above: there, as for infinities, it is `from_float`.

    Args:
        x: float32 or float64 array, any shape; it is not changed.
        dtype: "F16" or "BF16".
        bits: uint32 array of x's shape.
        out: array of x's shape and of the dtype's storage type.
    """
    if dtype not in SIXTEEN:
        raise ValueError(f"{dtype} values are rounded to nearest")
    if out is None:
        out = np.empty(x.shape, DTYPES[dtype].storage)
    if dtype == "BF16" and x.dtype == np.float32:
        return _bf16_at_random(x, bits, out)
    from_float(x, dtype, out)
    raw, size = out.view(np.uint16), np.abs(x)
    with np.errstate(all="ignore"):
        near = raw & _REST
        below = near - (_size(near, dtype) > size)
        low, high = _size(below, dtype), _size(below + np.uint16(1), dtype)
        above = (size - low) / (high - low) >= 1.0 - bits * 2.0**-32
        np.copyto(raw, (raw & _SIGN) | (below + above), where=size <= _LARGEST[dtype])
    np.copyto(raw, (raw & _SIGN) | _NAN[dtype], where=np.isnan(x))
    return out


def _bf16_at_random(x: Array, bits: Array, out: Array) -> Array:
    """The upper half of each float32, after adding 16 random bits to the lower half."""
    rounded = bits >> np.uint32(16)
    np.add(rounded, x.view(np.uint32), out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(out, rounded, casting="unsafe")
    special = ~(np.abs(x) <= _LARGEST["BF16"])
    if special.any():
        out[special] = from_float(x[special], "BF16")
    return out


def _size(raw: Array, dtype: str) -> Array:
    """What 16 bits without a sign are worth."""
    stored = raw.view(np.float16) if dtype == "F16" else raw
    return to_float(stored, dtype).astype(np.float64)


def _require_computable(dtype: str) -> None:
    if dtype not in DTYPES or not DTYPES[dtype].computable:
        raise ValueError(f"{dtype} values cannot be computed with")


def _round_to_bf16(x: Array, out: Array, scratch: Array | None) -> None:
    """Keep the upper half of each float32, after adding half a step, or a hair less where the kept half is even."""
    bits = x.view(np.uint32)
    rounded = np.empty(x.shape, np.uint32) if scratch is None else scratch
    np.right_shift(bits, 16, out=rounded)
    np.bitwise_and(rounded, 1, out=rounded)
    np.add(rounded, bits, out=rounded)
    np.add(rounded, 0x7FFF, out=rounded)
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(out, rounded, casting="unsafe")
    # The maximum of an array is NaN if any item is; the carry has spoilt those items above.
    if np.isnan(np.max(x, initial=-np.inf)):
        nan = np.isnan(x)
        out[nan] = ((bits[nan] >> 16) & _SIGN) | _NAN["BF16"]


def _round_to_odd(x: Array) -> Array:
    """float64 → float32, truncated, the last bit set if anything was cut off: rounding that again rounds x once."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y = x.astype(np.float32)
    bits = y.view(np.uint32)
    exact = y.astype(np.float64)
    inexact = exact != x
    bits[inexact & (np.abs(exact) > np.abs(x))] -= 1
    bits[inexact & ~np.isnan(x)] |= 1
    return y
