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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "NaN"])
def test_up_to_the_end(folder, value):
    edit(folder / STATE, broken("loss", value, {4, 5, 6}))
    finding = only(folder, "R804")
    assert (finding.severity, finding.where) == ("error", f"{STATE}: log_history")
    assert "at step 4" in finding.found
    assert "3 of 6 lines" in finding.found


def test_in_the_middle(folder):
    edit(folder / STATE, broken("grad_norm", float("inf"), {3}))
    assert only(folder, "R804").severity == "warning"


def zeros(folder, steps, **fields):
    def change(state):
        for line in state["log_history"]:
            if line["step"] in steps:
                line.update(fields)

    edit(folder / STATE, change)


@pytest.mark.parametrize("norm", [0.0, None])
def test_zeros_up_to_the_end_without_a_gradient(folder, norm):
    zeros(folder, {4, 5, 6}, loss=0.0, grad_norm=norm)
    if norm is None:
        edit(folder / STATE, lambda s: [line.pop("grad_norm", None) for line in s["log_history"]])
    finding = only(folder, "R804")
    assert finding.severity == "warning"
    assert "from step 4 on" in finding.found


def test_no_gradient_from_the_first_step(folder):
    zeros(folder, range(7), grad_norm=0.0)
    finding = only(folder, "R804")
    assert finding.severity == "warning"
    assert "grad_norm is 0 in the last 6 of 6 lines, from step 1" in finding.found


@pytest.mark.parametrize(
    ("steps", "fields"),
    [
        ({6}, {"loss": 0.0}),  # a small loss, rounded
        ({4, 5, 6}, {"loss": 0.0, "grad_norm": 0.4}),
        ({5, 6}, {"loss": 0.0, "grad_norm": 0.0}),
        ({2, 3, 4}, {"loss": 0.0, "grad_norm": 0.0}),
        ({4, 5, 6}, {"loss": -0.3}),
        (range(7), {"loss": 0.0, "grad_norm": 0.0, "rewards/chosen": 0.1}),
        (range(7), {"loss": 0.0, "grad_norm": 0.0, "reward": 1.0, "kl": 0.0}),
        (range(7), {"loss": 0.0, "grad_norm": 0.0, "completions/mean_length": 9.0}),
        (range(7), {"loss": 10**400}),
    ],
)
def test_numbers_that_are_healthy(folder, steps, fields):
    zeros(folder, steps, **fields)
    assert not found(folder, "R804")


def test_a_learning_rate_of_zero_is_no_loss(folder):
    edit(folder / STATE, broken("learning_rate", 0.0, {6}))
    assert not found(folder, "R804")
