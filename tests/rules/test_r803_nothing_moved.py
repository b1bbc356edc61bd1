"""R803: tensors that did not move between two checkpoints."""

from __future__ import annotations

import pytest
from model_cases import edit, reweigh
from run_cases import STATE, WEIGHTS, copied, found, only, train
from safetensors.numpy import load_file
from tiny import make_base
from transformers import TrainerCallback

LEDGER = "suture_ledger.json"


@pytest.fixture
def run(trained_run, tmp_path):
    return copied(trained_run, tmp_path / "run")


class Frozen(TrainerCallback):
    """Takes the gradients away after two steps: what an optimiser of other parameters amounts to."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step >= 2:
            model.zero_grad(set_to_none=True)


def test_a_run_that_stands_still(tmp_path, quiet_torch):
    run = train(make_base(tmp_path / "base"), tmp_path / "run", Frozen())
    both = found(run, "R803", deep=True)
    assert [f.severity for f in both] == ["error", "error"]
    assert "unchanged since checkpoint-2" in both[0].found
    assert not found(run, "R803"), "nothing was read"


def test_some_tensors(run):
    before = load_file(run / "checkpoint-2" / WEIGHTS)
    name = next(n for n in before if "lora_B" in n)
    reweigh(run / "checkpoint-4", lambda t: t.update({name: before[name]}), WEIGHTS)
    finding = only(run, "R803", deep=True)
    assert (finding.severity, name in finding.where) == ("warning", True)


def test_a_learning_rate_of_zero(run):
    (run / "checkpoint-4" / WEIGHTS).write_bytes((run / "checkpoint-2" / WEIGHTS).read_bytes())
    assert [f.severity for f in found(run, "R803", deep=True)] == ["error"]

    def still(state):
        for line in state["log_history"]:
            line["learning_rate"] = 0.0

    edit(run / "checkpoint-4" / STATE, still)
    assert not found(run, "R803", deep=True)


def test_without_a_ledger_names_tell_what_trains(run):
    for n in (2, 4, 6):
        (run / f"checkpoint-{n}" / LEDGER).unlink()
    assert not found(run, "R803", deep=True)
    before = load_file(run / "checkpoint-2" / WEIGHTS)
    copy = "base_model.model.lm_head.base_layer.weight"
    for n in (2, 4):
        reweigh(run / f"checkpoint-{n}", lambda t: t.update({copy: before[min(before)]}), WEIGHTS)
    assert not found(run, "R803", deep=True), "a copy of the base's matrix does not train"


def test_a_run_that_moves(run):
    assert not found(run, "R803", deep=True)
