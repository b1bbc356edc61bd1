"""N501: values that are no numbers."""

from __future__ import annotations

import model_cases as models
import numpy as np
import pytest
from rule_cases import BOTH, Q0, adapter, findings, llama, only, random

A0 = f"{Q0}.lora_A.weight"


@pytest.mark.parametrize(("value", "words"), [(np.nan, "1 values are NaN and 0"), (-np.inf, "0 values are NaN and 1")])
def test_one_value(base, tmp_path, value, words):
    bad = random(2, 16)
    bad[1, 3] = value
    finding = only(base, adapter(tmp_path, {**BOTH, A0: bad}), "N501")
    assert words in finding.found
    assert A0 in finding.where


def test_large_numbers(base, tmp_path):
    assert not findings(base, adapter(tmp_path, {**BOTH, A0: random(2, 16) * 1e30}), "N501")


def test_a_finished_model(tmp_path):
    bad = random(16, 16)
    bad[1, :2] = np.nan
    folder = llama(tmp_path / "model", tensors={f"{Q0}.weight": bad})
    assert not models.found(folder, "N501"), "nothing was read"
    finding = models.only(folder, "N501", deep=True)
    assert "2 values are NaN and 0" in finding.found
    assert Q0 in finding.where
    assert not models.found(llama(tmp_path / "healthy"), "N501", deep=True)
