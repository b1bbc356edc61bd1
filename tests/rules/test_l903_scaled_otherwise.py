"""L903: another scale than the config's."""

from __future__ import annotations

from live_cases import found
from tiny import wrapped


def test_alpha_that_was_changed_afterwards():
    model = wrapped()
    model.peft_config["default"].lora_alpha = 64
    (finding,) = found(model, "L903")
    assert "2 instead of 16" in finding.found


def test_scales_that_differ_because_the_config_says_so():
    assert not found(wrapped(use_rslora=True, alpha_pattern={"q_proj": 32}, rank_pattern={"v_proj": 2}), "L903")
