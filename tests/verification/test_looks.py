"""What a sample covers."""

from __future__ import annotations

import pytest
from verification.made import operation

from suture.values import TensorInfo, Term
from suture.verification import looks


def op(rows: int, cols: int, *terms: tuple[int, int], changed: tuple[int, ...] = (), name: str = "w"):
    info = TensorInfo(name, "F32", (rows, cols), "f", 0, rows * cols * 4)
    made = [Term("lora", "m", {}, 1.0, a, b, 4, rows_changed=changed) for a, b in terms]
    return operation(info, made)


def covered(pieces) -> set[int]:
    found = [i for p in pieces for i in range(p.start, p.stop)]
    assert found == sorted(set(found)), "a row is looked at twice"
    return set(found)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1000, 64), (3, 100_000), (0, 4)])
def test_full_means_every_row_and_byte_once(shape):
    assert covered(looks.rows(op(*shape), full=True)) == set(range(shape[0]))
    assert covered(looks.pieces("w", shape[0], full=True)) == set(range(shape[0]))


def test_a_sample_has_both_ends_and_a_place_in_every_term():
    terms = [(0, 4000), (4000, 4100), (9000, 9001)]
    found = covered(looks.rows(op(20_000, 512, *terms), full=False))
    assert {0, 19_999} <= found
    assert all(found & set(range(a, b)) for a, b in terms)
    assert len(found) < 400


def test_a_sample_of_many_experts_is_a_few_of_them():
    terms = [(k * 100, (k + 1) * 100) for k in range(128)]
    found = covered(looks.rows(op(12_800, 512, *terms), full=False))
    assert len(found) < 400


def test_rows_that_change_one_by_one_are_looked_at():
    changed = (17, 5000, 19_000)
    found = covered(looks.rows(op(20_000, 512, (0, 20_000), changed=changed), full=False))
    assert {17, 19_000} <= found


def test_a_sample_of_bytes_has_both_ends():
    n = 10_000_000
    found = covered(looks.pieces("w", n, full=False))
    assert {0, n - 1} <= found
    assert len(found) < 200_000


def test_the_place_depends_on_the_name_alone():
    one, again, other = (looks.rows(op(20_000, 512, (0, 20_000), name=n), full=False) for n in ("a", "a", "b"))
    assert one == again != other
