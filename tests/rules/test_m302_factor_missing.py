"""M302: half a pair."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, Q1, adapter, findings, only


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_one_factor_is_missing(base, tmp_path, factor):
    tensors = {name: array for name, array in BOTH.items() if name != f"{Q1}.{factor}.weight"}
    finding = only(base, adapter(tmp_path, tensors), "M302")
    assert f"{Q1}.{factor}.weight" in finding.found


def test_both_factors_are_there(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH), "M302")
