"""R806: the ledger, and the files that it was written for."""

from __future__ import annotations

import pytest
from model_cases import edit, reweigh
from run_cases import WEIGHTS, copied, found, only
from safetensors.numpy import load_file


@pytest.fixture
def folder(trained_run, tmp_path):
    return copied(trained_run / "checkpoint-4", tmp_path / "checkpoint-4")


def first(folder):
    return min(load_file(folder / WEIGHTS))


def test_a_tensor_that_was_dropped(folder):
    name = first(folder)
    finding = only(reweigh(folder, lambda t: t.pop(name), WEIGHTS), "R806")
    assert finding.severity == "error"
    assert name in finding.where


def test_a_tensor_that_was_added(folder):
    name = first(folder)
    reweigh(folder, lambda t: t.update({name.replace("layers.0", "layers.7"): t[name]}), WEIGHTS)
    assert "not in the ledger" in only(folder, "R806").found


def test_another_shape(folder):
    name = first(folder)
    assert "shape" in only(reweigh(folder, lambda t: t.update({name: t[name][:2]}), WEIGHTS), "R806").found


def test_other_values(folder):
    name = first(folder)
    reweigh(folder, lambda t: t[name].__setitem__((0, 0), 7), WEIGHTS)
    assert not found(folder, "R806"), "nothing was read"
    assert "other bytes" in only(folder, "R806", deep=True).found


@pytest.mark.parametrize(("field", "value"), [("lora_alpha", 99), ("target_modules", ["q_proj"]), ("use_rslora", True)])
def test_an_edited_config(folder, field, value):
    edit(folder / "adapter_config.json", lambda c: c.update({field: value}))
    assert only(folder, "R806").where == f"adapter_config.json: {field}"


def test_an_edited_config_is_told_once(folder):
    edit(folder / "adapter_config.json", lambda c: c.update(lora_alpha=99))
    assert only(folder, "R806", deep=True).where == "adapter_config.json: lora_alpha"


def test_what_does_not_change_the_adapter(folder):
    edit(
        folder / "adapter_config.json",
        lambda c: c.update(inference_mode=False, target_modules=c["target_modules"][::-1]),
    )
    assert not found(folder, "R806")


def test_files(folder):
    (folder / "optimizer.pt").write_bytes(b"PK")
    assert only(folder, "R806", deep=True).where == "optimizer.pt"
    (folder / "optimizer.pt").unlink()
    assert "optimizer.pt" in only(folder, "R806").found


def test_a_run_as_it_was_written(trained_run):
    assert not found(trained_run, deep=True)
