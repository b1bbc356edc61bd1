"""The header of a GGUF file, read strictly: whatever this accepts can be given to libraries that trust the file.

4 bytes   "GGUF", then the version, 32 bits, and the numbers of tensors and of keys, 64 bits each
the keys  name, type, value; an array says its type and its length first
tensors   name, axes (the last one first), type, where it begins in the data
the data  from the next multiple of `general.alignment` on

Numbers are little-endian, a string is its length in 64 bits and UTF-8.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from suture.errors import FormatError
from suture.formats.files import OpenFile, open_regular, quoted, read_exact
from suture.formats.quantized.gguf import library

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 14
MAX_TENSORS = 1 << 15  # the largest published models have some thousands
MAX_NAME_BYTES = 1 << 10
MAX_TEXT_BYTES = 1 << 20  # of a value; chat templates have up to 100 KB
MAX_STRINGS = 1 << 21  # in all arrays; a vocabulary of 262 144 tokens with its merges has less than half of it
MAX_KEPT = 1 << 12  # items of an array that is kept: one a layer, not one a token
MAX_KEPT_BYTES = 1 << 22  # of all keys together
MAX_AXES = 4
ALIGNMENT = 32

_TEXT, _ARRAY = 8, 9
_NUMBERS = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
_WINDOW = 1 << 20
_AGAIN = "The file is cut or damaged. Download or write it again."
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Block:
    """A type of tensors: the values of a block, and the bytes they take."""

    name: str
    values: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: its type, its axes as torch counts them, and where its bytes lie in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def n_bytes(self) -> int:
        """Size of the tensor's bytes in the file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its value, its number of items, and its bytes. Long arrays have neither value nor bytes here."""

    value: Any
    n_items: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says: its keys, and its tensors in the order of their bytes."""

    file: str
    n_bytes: int
    keys: Mapping[str, Key]
    tensors: tuple[Stored, ...]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key."""
        key = self.keys.get(name)
        return default if key is None else key.value


def types() -> Mapping[int, Block]:
    """The types that the package gguf knows, by their numbers. Raises MissingExtra."""
    return {int(kind): Block(kind.name, *sizes) for kind, sizes in library().GGML_QUANT_SIZES.items()}


def read_header(path: Path, called: str) -> Header:
    """The checked header of a GGUF file, whose tensors lie in a file `called` so. Arrays of tokens are passed over.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is no GGUF file, is cut, or contradicts itself.
        MissingExtra: the package gguf is not installed.
    """
    known = types()
    with open_regular(path) as file:
        walk = _Walk(file)
        n_tensors, n_keys = _counts(walk)
        keys: dict[str, Key] = {}
        for _ in range(n_keys):
            name, key = _key(walk)
            if name in keys:
                walk.refuse(f"the key {quoted(name)} is there twice", "each key once")
            keys[name] = key
        entries = [_entry(walk, known) for _ in range(n_tensors)]
        alignment = keys["general.alignment"].value if "general.alignment" in keys else ALIGNMENT
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            walk.refuse(f"general.alignment is {quoted(alignment)}", "a power of two, from 8 on")
        start = -(-walk.position // alignment) * alignment
        return Header(called, file.n_bytes, keys, _placed(walk, entries, start, alignment, called))


class _Entry(NamedTuple):
    """A tensor as the header lists it."""

    name: str
    block: Block
    shape: tuple[int, ...]
    offset: int


class _Walk:
    """Reads a file from its beginning on, through a window."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.position = 0
        self.n_strings = 0
        self.n_kept = 0
        self._window = b""
        self._begin = 0

    def refuse(self, found: str, expected: str, do: str = _AGAIN) -> NoReturn:
        raise FormatError(found, where=str(self.file.path), expected=expected, do=do)

    def take(self, n_bytes: int) -> bytes:
        """The next bytes, at most a window."""
        first = self.position - self._begin
        if first + n_bytes > len(self._window):
            self._refill(n_bytes)
            first = 0
        self.position += n_bytes
        return self._window[first : first + n_bytes]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self, what: str, limit: int) -> str:
        n_bytes = self.number("Q")
        if n_bytes > limit:
            self.refuse(f"{what} of {n_bytes} bytes", f"at most {limit}")
        try:
            return self.take(n_bytes).decode("utf-8")
        except UnicodeError as error:
            raise FormatError(
                f"{what} is not UTF-8: {error}", where=str(self.file.path), expected="UTF-8", do=_AGAIN
            ) from error

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self.file.n_bytes - self.position:
            self._cut(n_bytes)
        self.position += n_bytes

    def skip_texts(self, count: int) -> None:
        """Pass over strings: this loop runs once a token."""
        self.n_strings += count
        if self.n_strings > MAX_STRINGS:
            self.refuse(f"arrays of more than {MAX_STRINGS} strings", "a vocabulary and its merges")
        window, begin = self._window, self._begin
        for _ in range(count):
            first = self.position - begin
            if not 0 <= first <= len(window) - 8:
                self._refill(8)
                window, begin, first = self._window, self._begin, 0
            n_bytes = int.from_bytes(window[first : first + 8], "little")
            if n_bytes > MAX_TEXT_BYTES:
                self.refuse(f"a string of {n_bytes} bytes in an array", f"at most {MAX_TEXT_BYTES}")
            self.position += 8 + n_bytes
        if self.position > self.file.n_bytes:
            self._cut(0)

    def _refill(self, needed: int) -> None:
        left = self.file.n_bytes - self.position
        if needed > left:
            self._cut(needed)
        buffer = bytearray(min(left, max(_WINDOW, needed)))
        read_exact(self.file, self.position, buffer)
        self._window, self._begin = bytes(buffer), self.position

    def _cut(self, needed: int) -> NoReturn:
        self.refuse(
            f"the file has {self.file.n_bytes} bytes", f"{needed} more from byte {self.position} on, inside its header"
        )


def _counts(walk: _Walk) -> tuple[int, int]:
    """Numbers of tensors and of keys, after the magic and the version."""
    magic = walk.take(min(walk.file.n_bytes, len(_LFS)))
    if magic == _LFS:
        walk.refuse("a Git LFS pointer, not the weights", "a GGUF file", "Run `git lfs pull` in the folder.")
    if magic[:4] != MAGIC:
        walk.refuse(f"the file begins with {quoted(magic[:4])}", f"{MAGIC!r}, as GGUF files do")
    walk.position = 4
    version = walk.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
        found = "the file is big-endian" if swapped else f"version {version} of the format"
        expected = f"a little-endian file of version {' or '.join(map(str, VERSIONS))}"
        walk.refuse(found, expected, "Convert the file with a recent llama.cpp.")
    n_tensors, n_keys = walk.number("Q"), walk.number("Q")
    for count, limit, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
        if count > limit:
            walk.refuse(f"the header claims {count} {what}", f"at most {limit}")
    return n_tensors, n_keys


def _key(walk: _Walk) -> tuple[str, Key]:
    begin = walk.position
    name = walk.text("the name of a key", MAX_NAME_BYTES)
    kind = walk.number("I")
    value, n_items = _value(walk, kind, name)
    if value is None:
        return name, Key(None, n_items, b"")
    end, walk.position = walk.position, begin
    walk.n_kept += end - begin
    if walk.n_kept > MAX_KEPT_BYTES:
        walk.refuse("keys with long values", f"at most {MAX_KEPT_BYTES} bytes, arrays of tokens apart")
    return name, Key(value, n_items, walk.take(end - begin))


def _value(walk: _Walk, kind: int, name: str) -> tuple[Any, int]:
    """A value and its number of items; None for an array of many."""
    if kind in _NUMBERS:
        return walk.number(_NUMBERS[kind]), 1
    if kind == _TEXT:
        return walk.text(f"the value of {quoted(name)}", MAX_TEXT_BYTES), 1
    if kind != _ARRAY:
        walk.refuse(f"the type of {quoted(name)} is {kind}", "one of the types of the format, 0 to 12")
    item, count = walk.number("I"), walk.number("Q")
    if item == _TEXT:
        walk.skip_texts(count)
        return None, count
    if item not in _NUMBERS:
        walk.refuse(f"an array of type {item} in {quoted(name)}", "an array of numbers or of strings")
    if count > MAX_KEPT:
        walk.skip(count * struct.calcsize("<" + _NUMBERS[item]))
        return None, count
    letters = f"<{count}{_NUMBERS[item]}"
    return list(struct.unpack(letters, walk.take(struct.calcsize(letters)))), count


def _entry(walk: _Walk, known: Mapping[int, Block]) -> _Entry:
    name = walk.text("the name of a tensor", MAX_NAME_BYTES)
    n_axes = walk.number("I")
    if not 1 <= n_axes <= MAX_AXES:
        walk.refuse(f"{quoted(name)} has {n_axes} axes", f"1 to {MAX_AXES}")
    shape = tuple(walk.number("Q") for _ in range(n_axes))[::-1]
    kind, offset = walk.number("I"), walk.number("Q")
    if kind not in known:
        walk.refuse(
            f"{quoted(name)} is of type {kind}",
            f"one of {', '.join(block.name for block in known.values())}",
            "A newer version of the package gguf may know it: pip install --upgrade gguf.",
        )
    block = known[kind]
    if not all(0 < size < 1 << 48 for size in shape) or shape[-1] % block.values:
        walk.refuse(
            f"{quoted(name)} has the shape {list(shape)}", f"rows of whole blocks of {block.values} {block.name} values"
        )
    return _Entry(name, block, shape, offset)


def _placed(walk: _Walk, entries: list[_Entry], start: int, alignment: int, file: str) -> tuple[Stored, ...]:
    """The tensors in the order of their bytes: in the file, and each for itself."""
    placed = []
    for name, block, shape, offset in entries:
        begin = start + offset
        end = begin + math.prod(shape) // block.values * block.n_bytes
        if offset % alignment:
            walk.refuse(f"{quoted(name)} begins at {offset} of the data", f"a multiple of {alignment}")
        if end > walk.file.n_bytes:
            walk.refuse(f"the file has {walk.file.n_bytes} bytes", f"{quoted(name)}, at bytes {begin} to {end}")
        placed.append(Stored(name, block.name, shape, file, begin, end))
    placed.sort(key=lambda tensor: (tensor.begin, tensor.end))
    [(most, times)] = Counter(tensor.name for tensor in placed).most_common(1) or [("", 0)]
    if times > 1:
        walk.refuse(f"the tensor {quoted(most)} is there {times} times", "each tensor once")
    for before, tensor in itertools.pairwise(placed):
        if tensor.begin < before.end:
            walk.refuse(f"{quoted(tensor.name)} overlaps {quoted(before.name)}", "each tensor in a place of its own")
    return tuple(placed)
