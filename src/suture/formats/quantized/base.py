"""What a scheme of quantisation is here: how to find its weights, and how to decode rows of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES, Array
from suture.formats.files import Buffer
from suture.values import NOT_STORED, Json, Packed, TensorInfo

FLOATS = ("F32", "BF16", "F16")  # of scales, and of dense weights
Tensors: TypeAlias = Mapping[str, TensorInfo]
Read: TypeAlias = Callable[[TensorInfo, int, Buffer], None]  # fills the buffer from a byte of a stored tensor on
Rows: TypeAlias = Callable[[int, int], Array]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


class Dense(NamedTuple):
    """A dense tensor, and what it is decoded from."""

    info: TensorInfo
    packed: Packed


@dataclass(frozen=True, slots=True)
class Given:
    """What a scheme has to find its weights with.

    Attributes:
        tensors: all that the files hold, by name.
        settings: the config's quantization_config.
        dtype: of the model, by its config: of the dense tensors where the scheme's files do not tell.
        read: reads stored tensors; only small ones are read to find the weights.
        metadata: what the headers of all files say beside their tensors.
        shapes: gives those of the parameters of the model's class, for files that do not tell the shape of a weight.
    """

    tensors: Tensors
    settings: Json
    dtype: str
    read: Read
    metadata: Mapping[str, str] = field(default_factory=dict)
    shapes: Callable[[], Shapes] = dict


Parts: TypeAlias = Mapping[str, tuple[int, Array]]  # by role: the number of the first item, and the items
Encode: TypeAlias = Callable[[int, Array], Parts]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights of a scheme are quantised anew, in the form that they have.

    Attributes:
        roles: the parts that change; maps, settings and scales of inputs stay.
        granule: (dense tensor, its parts) → how many rows need no others: runs of rows are quantised that begin at a
            multiple of it and end at one, or at the last row.
        open: (dense tensor, its parts, read) → a function of the first row of a run, and its values as float32, that
            gives what the run is stored as. Several threads call it at once.
        library: the package that quantises; its version decides the bytes. Empty where the formula does.
    """

    roles: tuple[str, ...]
    granule: Callable[[TensorInfo, Packed], int]
    open: Callable[[TensorInfo, Packed, Read], Encode]
    library: str = ""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store weights in few bits.

    Attributes:
        name: that of its file.
        find: gives the dense tensors by name. Raises FormatError where something that belongs to a weight is missing,
            misshapen or of an unknown kind; a tensor that it does not know stays what it is.
        open: (dense tensor, its parts, read) → a function of (start, stop) that gives these rows of the dense tensor,
            as a matrix with the columns of its last axis, in the storage type of its dtype: the values that the
            scheme's own library computes, in the dtype that it computes them in. Several threads call it at once.
        words: what the config's settings mean, for people.
        quantizer: quantises weights; None where nobody has written it.
    """

    name: str
    find: Callable[[Given], Mapping[str, Dense]]
    open: Callable[[TensorInfo, Packed, Read], Rows]
    words: Callable[[Json], str]
    quantizer: Quantizer | None = None


def dense(name: str, dtype: str, shape: tuple[int, ...], packed: Packed, main: str) -> Dense:
    """A dense tensor in the file of the part `main`."""
    n_bytes = DTYPES[dtype].bits // 8
    for size in shape:
        n_bytes *= size
    return Dense(TensorInfo(name, dtype, shape, packed.parts[main].file, NOT_STORED, NOT_STORED + n_bytes), packed)


def whole(info: TensorInfo, read: Read) -> Array:
    """A stored tensor in the storage type of its dtype."""
    storage = DTYPES[info.dtype].storage
    if storage is None:
        malformed(info, f"{info.dtype} values", "whole bytes")
    values = np.empty(info.shape, storage)
    read(info, 0, values)
    return values


def flat(info: TensorInfo, first: int, last: int, read: Read) -> Array:
    """Values first:last of a stored tensor, in the storage type of its dtype."""
    storage = DTYPES[info.dtype].storage
    assert storage is not None
    values = np.empty(last - first, storage)
    read(info, first * storage.itemsize, values)
    return values


def some_rows(info: TensorInfo, start: int, stop: int, read: Read) -> Array:
    """Rows start:stop of a stored tensor, along its first axis, in the storage type of its dtype."""
    size = math.prod(info.shape[1:])
    return flat(info, start * size, stop * size, read).reshape(stop - start, *info.shape[1:])


def part(tensors: Tensors, name: str, of: TensorInfo) -> TensorInfo:
    """The tensor that must stand beside `of`.

    Raises:
        FormatError: it does not.
    """
    if name not in tensors:
        malformed(of, f"there is no {name}", "the scales of every quantised weight, in any of the files")
    return tensors[name]


def malformed(info: TensorInfo, found: str, expected: str) -> NoReturn:
    """Raise a FormatError about a stored tensor."""
    raise FormatError(
        found, where=f"{info.file}: {info.name}", expected=expected, do="Download the quantised model again."
    )


def settings_of(config: Json, key: str, kind: type, default: object) -> object:
    """A setting of quantization_config, of the right type.

    Raises:
        FormatError: it has another.
    """
    value = config.get(key, default)
    if value is default:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{key} is {value!r}", where="config.json: quantization_config", expected=kind.__name__)
    return value
