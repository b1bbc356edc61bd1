"""R804: losses and gradient norms that are no good numbers."""

from __future__ import annotations

import pytest
from model_cases import edit
from run_cases import STATE, copied, found, only, train
from tiny import make_base


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-6", tmp_path / "checkpoint-6")


def broken(field, value, steps):
    def change(state):
        for line in state["log_history"]:
            if line["step"] in steps:
                line[field] = value

    return change


def test_a_run_that_diverges(tmp_path, quiet_torch):
    """With a learning rate like this the weights overflow; Transformers logs what comes out."""
    run = train(make_base(tmp_path / "base"), tmp_path / "run", learning_rate=1e30, max_grad_norm=0)
    errors = [f for f in found(run / "checkpoint-6", "R804") if f.severity == "error"]
    assert errors
    assert "up to the last" in errors[0].found


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, "NaN"])
def test_up_to_the_end(folder, value):
    edit(folder / STATE, broken("loss", value, {4, 5, 6}))
    finding = only(folder, "R804")
    assert (finding.severity, finding.where) == ("error", f"{STATE}: log_history")
    assert "at step 4" in finding.found
    assert "3 of 6 lines" in finding.found


def test_in_the_middle(folder):
    edit(folder / STATE, broken("grad_norm", float("inf"), {3}))
    assert only(folder, "R804").severity == "warning"


def test_a_learning_rate_of_zero_is_no_loss(folder):
    edit(folder / STATE, broken("learning_rate", 0.0, {6}))
    assert not found(folder, "R804")
