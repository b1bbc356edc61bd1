"""L901: a model that is not what its config promises."""

from __future__ import annotations

from live_cases import found
from tiny import wrapped


def test_a_config_that_was_changed_afterwards():
    model = wrapped()
    model.peft_config["default"].target_modules = {"q_proj"}
    (finding,) = found(model, "L901")
    assert "not promised" in finding.found
    assert finding.severity == "error"


def test_a_config_that_asks_for_more_than_there_is():
    model = wrapped()
    model.peft_config["default"].target_modules = {"q_proj", "v_proj", "down_proj", "o_proj"}
    (finding,) = found(model, "L901")
    assert "not in the model" in finding.found


def test_what_peft_builds_is_what_it_promised():
    assert not found(wrapped(), "L901")
    assert not found(wrapped(target_modules="all-linear", modules_to_save=["lm_head"]), "L901")
