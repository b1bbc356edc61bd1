"""Random bits that are a pure function of a seed, a tensor's name, and a place in the tensor.

Threefry-4x32, 20 rounds (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011,
https://doi.org/10.1145/2063384.2063405) turns a key and the number of a block, 128 bits each, into four words:

    key      the first 16 bytes of sha256("SEED:NAME")
    value i  has the 32 bits of word  ⌊i / 16⌋ mod 4  of block  16 ⌊i / 64⌋ + i mod 16,   i counted along the rows

It has additions, rotations and exclusive ors only, so numpy and every compiler give the same bits, and vectors of any
width are full.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from suture import compiled
from suture.compiled import address

Words: TypeAlias = npt.NDArray[np.uint32]

LANES = 16
GROUP = 4 * LANES
PARITY = np.uint32(0x1BD11BDA)
TURNS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
ROUNDS = 20


def key(seed: int, name: str) -> Words:
    """The key of a tensor's bits, (4,)."""
    return np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "<u4").astype(np.uint32)


def bits(key: Words, start: int, n: int) -> Words:
    """The bits of the values start … start + n − 1, (n,)."""
    function = _compiled()
    if function is None:
        return by_numpy(key, start, n)
    out = np.empty(n, np.uint32)
    function(address(key), start, n, address(out))
    return out


def by_numpy(key: Words, start: int, n: int) -> Words:
    """`bits`, without compiled code."""
    first, last = start // GROUP, -(-(start + n) // GROUP)
    block = np.arange(first, last)[:, None] * LANES + np.arange(LANES)
    low, high = (block & 0xFFFFFFFF).astype(np.uint32), (block >> 32).astype(np.uint32)
    words = threefry(key, (low, high, np.zeros_like(low), np.zeros_like(low)))
    return np.stack(words, axis=1).ravel()[start - first * GROUP :][:n]


def threefry(key: Words, counter: tuple[Words, Words, Words, Words]) -> tuple[Words, Words, Words, Words]:
    """The four words of each block; the counter's arrays are used up."""
    k = [*key, np.bitwise_xor.reduce(key) ^ PARITY]
    x = [np.add(word, k[j], out=word) for j, word in enumerate(counter)]
    for round_ in range(ROUNDS):
        for to, by, n in zip((0, 2), (3, 1) if round_ % 2 else (1, 3), TURNS[round_ % 8], strict=True):
            x[to] += x[by]
            high = x[by] >> np.uint32(32 - n)
            x[by] <<= np.uint32(n)
            x[by] |= high
            x[by] ^= x[to]
        if round_ % 4 == 3:
            s = round_ // 4 + 1
            for j in range(4):
                x[j] += k[(s + j) % 5]
            x[3] += np.uint32(s)
    return x[0], x[1], x[2], x[3]


@functools.cache
def _compiled() -> Callable[..., None] | None:
    library = compiled.library()
    if library is None:
        return None
    function: Callable[..., None] = library.suture_noise
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p]  # type: ignore[attr-defined]
    function.restype = None  # type: ignore[attr-defined]
    return function
