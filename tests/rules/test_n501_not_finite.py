"""N501: values that are no numbers."""

from __future__ import annotations

import model_cases as models
import numpy as np
import pytest
from rule_cases import BOTH, EMBED, Q0, adapter, findings, llama, only, random

import suture
from suture.values import Options

UP = "model.layers.0.mlp.up_proj.weight"
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


@pytest.fixture(scope="module")
def broken_base(tmp_path_factory):
    """A base with a NaN in a matrix that LoRA changes, and one in a matrix that nobody does."""
    bad = random(16, 16)
    bad[1, 3] = np.nan
    return llama(
        tmp_path_factory.mktemp("broken") / "base", tensors={f"{Q0}.weight": bad, UP: np.full((24, 16), bad[1, 3])}
    )


def test_a_base_that_is_broken(broken_base, tmp_path):
    finding = only(broken_base, adapter(tmp_path, BOTH), "N501")
    assert "1 of 256 values looked at are NaN or infinite before the update, in 1 tensor" in finding.found
    assert finding.where == f"model.safetensors: {Q0}.weight"


def test_a_broken_base_is_read_only_with_samples(broken_base, tmp_path):
    assert not [f for f in suture.check(broken_base, adapter(tmp_path, BOTH)) if f.code == "N501"]


def test_a_sum_beyond_float16(base, tmp_path):
    tuned = adapter(tmp_path / "large", {**BOTH, A0: random(2, 16) * 1e4})
    finding = only(base, tuned, "N501", Options(dtype="F16"))
    assert finding.where == f"merged weights: {Q0}.weight"
    assert "written as F16" in finding.found
    for dtype in ("BF16", "F32"):
        assert not findings(base, tuned, "N501", Options(dtype=dtype)), dtype
    assert not findings(base, adapter(tmp_path / "fits", BOTH), "N501", Options(dtype="F16"))


def test_a_cast_beyond_float16(tmp_path):
    """A matrix that the adapter does not change."""
    base = llama(tmp_path / "base", tensors={UP: np.full((24, 16), 7e4, np.float32)})
    tuned = adapter(tmp_path / "adapter", BOTH)
    assert only(base, tuned, "N501", Options(dtype="F16")).where == f"merged weights: {UP}"
    assert not findings(base, tuned, "N501")


def test_an_adapter_that_is_broken_is_told_once(base, tmp_path):
    """What it does to the sums goes without saying."""
    bad = np.full((2, 16), np.nan, np.float32)
    assert (
        only(base, adapter(tmp_path, {**BOTH, A0: bad}), "N501").where
        == f"adapter_model.safetensors: base_model.model.{A0}"
    )


def test_rows_that_are_replaced(base, tmp_path):
    """Embeddings go other ways through the merge; the base's NaN stays where no token is trained."""
    rows = random(32, 16)
    rows[7] = np.inf
    broken = llama(tmp_path / "base", tensors={f"{EMBED}.weight": rows})
    tokens = {f"{EMBED}.token_adapter.trainable_tokens_delta": random(2, 16)}
    tuned = adapter(tmp_path / "adapter", {**BOTH, **tokens}, trainable_token_indices=[1, 2])
    assert "16 of" in only(broken, tuned, "N501").found
    assert not findings(base, tuned, "N501")


def test_a_finished_model(tmp_path):
    bad = random(16, 16)
    bad[1, :2] = np.nan
    folder = llama(tmp_path / "model", tensors={f"{Q0}.weight": bad})
    assert not models.found(folder, "N501"), "nothing was read"
    finding = models.only(folder, "N501", deep=True)
    assert "2 values are NaN and 0" in finding.found
    assert Q0 in finding.where
    assert not models.found(llama(tmp_path / "healthy"), "N501", deep=True)
