"""Random bits: Threefry's published answers, the place of each value's bits, and the same by compiled code."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suture import compiled, noise

# From kat_vectors of Random123: threefry4x32 with 20 rounds; counter, key, answer.
ONES, PI = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
KNOWN = [
    ([0] * 4, [0] * 4, [0x9C6CA96A, 0xE17EAE66, 0xFC10ECD4, 0x5256A7D8]),
    (ONES, ONES, [0x2A881696, 0x57012287, 0xF6C7446E, 0xA16A6732]),
    (PI, [0xA4093822, 0x299F31D0, 0x082EFA98, 0xEC4E6C89], [0x59CD1DBB, 0xB8879579, 0x86B5D00C, 0xAC8B6D84]),
]


def words(*values):
    return np.array(values, np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN, ids=["zeros", "ones", "pi"])
def test_the_published_answers(counter, key, answer):
    found = noise.threefry(words(*key), tuple(words(c) for c in counter))
    assert [int(x[0]) for x in found] == answer


def test_the_compiled_code_gives_the_published_answer():
    """Of counter and key zero: the blocks of the first values are numbered from 0."""
    assert noise._compiled() is not None
    found = noise.bits(words(0, 0, 0, 0), 0, 64)
    assert found[[0, 16, 32, 48]].tolist() == KNOWN[0][2]


@settings(max_examples=60)
@given(st.integers(0, 2**63), st.text(max_size=20), st.integers(0, 2**40) | st.integers(0, 200), st.integers(0, 300))
def test_a_value_has_bits_of_its_own_wherever_one_begins(seed, name, start, n):
    """By the definition, a value at a time, in compiled code and in numpy."""
    key = noise.key(seed, name)
    expected = []
    for i in range(start, start + n):
        block = 16 * (i // 64) + i % 16
        counter = words(block & 0xFFFFFFFF), words(block >> 32), words(0), words(0)
        expected.append(int(noise.threefry(key, counter)[i // 16 % 4][0]))
    assert noise.by_numpy(key, start, n).tolist() == expected
    if not compiled.why_not():
        assert noise.bits(key, start, n).tolist() == expected


def test_the_key_is_of_the_seed_and_the_name():
    digest = hashlib.sha256(b"7:model.embed_tokens.weight").digest()
    found = noise.key(7, "model.embed_tokens.weight")
    assert found.tobytes() == digest[:16]
    assert len({noise.key(seed, name).tobytes() for seed in (0, 1, 2**70) for name in ("a", "b", "1:a")}) == 9


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 1000])
def test_bits_do_not_depend_on_the_cut(cut):
    key = noise.key(0, "w")
    whole = noise.bits(key, 0, 5000)
    parts = [noise.bits(key, at, min(cut, 5000 - at)) for at in range(0, 5000, cut)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_bit_is_set_half_of_the_time_and_no_two_tensors_agree():
    n = 1 << 20
    one, other, next_seed = (noise.bits(noise.key(*k), 0, n) for k in ((0, "a"), (0, "b"), (1, "a")))
    for x in (one, other ^ one, next_seed ^ one, one[1:] ^ one[:-1]):
        shares = [float(np.mean(x >> np.uint32(bit) & np.uint32(1))) for bit in range(32)]
        assert max(abs(share - 0.5) for share in shares) < 5 * 0.5 / n**0.5
