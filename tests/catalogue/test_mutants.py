"""No miss: a defect in a healthy pair is found, or refused, or changes nothing, unless no file could tell.

One mutant in four runs by default, drawn by name; all of them with `-m slow`, or in `python tests/catalogue/table.py`.
"""

from __future__ import annotations

import zlib
from collections import Counter

import mutators_base
import mutators_config
import mutators_keys
import mutators_values
import pytest
from healthy import HEALTHY
from mutants import MUTATORS, SUBJECTS, mutants_of
from survivors import NOTHING_TELLS, is_expected

OTHERS = 4
MODULES = (mutators_keys, mutators_values, mutators_config, mutators_base)


def in_the_sample(kind: str, subject: str, seed: int) -> bool:
    return zlib.crc32(f"{kind}|{subject}|{seed}".encode()) % OTHERS == 0


def unexpected(mutants):
    return [m for m in mutants if m.outcome == "crashed" or (m.outcome == "survives" and not is_expected(m))]


def test_the_lists_are_large_and_current():
    assert len(MUTATORS) >= 200
    assert {m.change.__module__ for m in MUTATORS.values()} == {module.__name__ for module in MODULES}
    assert NOTHING_TELLS.keys() <= MUTATORS.keys()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_miss(subject, shop, tmp_path):
    mutants = list(mutants_of(shop, HEALTHY[subject], tmp_path, wanted=in_the_sample))
    print(f"\n{subject}: {len(mutants)} mutants", dict(Counter(m.outcome for m in mutants)))
    assert len(mutants) >= 28  # a thousand over all subjects
    assert not unexpected(mutants)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_miss_at_all(subject, shop, tmp_path):
    assert not unexpected(mutants_of(shop, HEALTHY[subject], tmp_path))
