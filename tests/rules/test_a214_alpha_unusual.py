"""A214: an alpha that no one trains with."""

from __future__ import annotations

import pytest
from rule_cases import BOTH, adapter, findings, only


@pytest.mark.parametrize(("alpha", "effect"), [(0, "nothing is added"), (-8, "subtracted")])
def test_zero_and_negative(base, tmp_path, alpha, effect):
    assert effect in only(base, adapter(tmp_path, BOTH, lora_alpha=alpha), "A214").found


def test_in_a_pattern(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, alpha_pattern={"q_proj": 0}), "A214")
    assert finding.where == "adapter_config.json: alpha_pattern: q_proj"


def test_small_and_odd_but_positive(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, lora_alpha=0.5, alpha_pattern={"v_proj": 1}), "A214")


def test_none_at_all(base, tmp_path):
    tuned = adapter(tmp_path, BOTH)
    config = tuned / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 4, ', ""))
    assert "8 is taken instead" in only(base, tuned, "A214").found
