"""No false alarm: what PEFT makes, and a short training moves, gives no error and no warning."""

from __future__ import annotations

from collections import Counter

import pytest
from healthy import HEALTHY
from verdicts import loud, of_base, of_pair
from workshop import FAMILIES


def test_the_collection_is_large():
    assert len(HEALTHY) >= 300
    assert {h.family for h in HEALTHY.values()} == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_alarm(family, shop):
    mine = [h for h in HEALTHY.values() if h.family == family]
    alarms = {}
    for healthy in mine:
        pair = shop.pair(healthy)
        if told := loud(of_pair(pair.base, pair.adapter, pair.reading)):
            alarms[healthy.what] = [f"{f.code} {f.where}: {f.found}" for f in told]
    print(f"\n{family}: {len(mine)} healthy adapters", dict(Counter(h.method for h in mine)))
    assert not alarms


@pytest.mark.parametrize("family", FAMILIES)
def test_no_alarm_about_a_base(family, shop):
    bases = {shop.base(h) for h in HEALTHY.values() if h.family == family}
    assert not {base.name: told for base in bases if (told := loud(of_base(base)))}
