"""Measures on sampled rows: against the whole matrices, and on shapes that the sample has to fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, HIDDEN, Q0, adapter, llama, random
from safetensors.torch import load_file
from zoo import FAMILIES, load

import suture
from suture import pipeline
from suture.measures import STRIPE_ROWS, STRIPES, stripes
from suture.values import Options


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama."""
    return llama(tmp_path_factory.mktemp("base") / "tiny-llama")


def measures(base, tuned):
    case = pipeline.load_case(base, tuned, Options(), pipeline.Reading(), deep=True, measured=True)
    assert case.measures is not None
    return case.measures


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@given(st.integers(0, 10_000))
def test_stripes(n_rows):
    found = list(stripes(n_rows))
    assert all(0 <= s.start <= s.stop <= n_rows for s in found)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(found)), "no row twice"
    assert sum(s.stop - s.start for s in found) == min(n_rows, STRIPES * STRIPE_ROWS)
    assert not n_rows or (found[0].start == 0 and found[-1].stop == n_rows)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt-oss"])
def test_matrices_that_are_measured_whole(base_of, tmp_path, monkeypatch, family):
    """Against the merged files: every orientation, fused experts, experts of their own."""
    monkeypatch.setattr("suture.measures.STRIPES", 1 << 20)  # all rows
    fused = {"target_parameters": ["down_proj"]} if family in ("mixtral", "gpt-oss") else {}
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj"]
    live = get_peft_model(load(FAMILIES[family], base_of(family)), LoraConfig(r=2, target_modules=targets, **fused))
    tiny.trained(live).save_pretrained(tmp_path / "adapter")
    suture.merge(base_of(family), tmp_path / "adapter", tmp_path / "out")
    base, out = (weights(folder) for folder in (base_of(family), tmp_path / "out"))
    moves = measures(base_of(family), tmp_path / "adapter").moves
    changed = {name for name in base if not base[name].equal(out[name])}
    assert {move.tensor for move in moves} == changed
    for move in moves:
        w, merged = base[move.tensor].double(), out[move.tensor].double()
        assert np.isclose(move.ratio, float((merged - w).norm() / w.norm()), rtol=1e-4), move.tensor


def test_what_cannot_be_computed_with_is_passed_over(tmp_path):
    base = llama(tmp_path / "base", tensors={f"{Q0}.weight": np.zeros((HIDDEN, HIDDEN), np.uint8)})
    assert [m.tensor for m in measures(base, adapter(tmp_path / "adapter", BOTH)).moves] == [
        Q0.replace("0", "1") + ".weight"
    ]


def test_values_that_are_not_numbers_disturb_nothing(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.lora_B.weight": np.full((HIDDEN, 2), np.nan, np.float32)}
    assert len(measures(base, adapter(tmp_path, tensors)).moves) == 2


def test_a_merge_does_not_measure(base, tmp_path):
    tuned = adapter(tmp_path, {**BOTH, "model.norm.weight": random(HIDDEN)}, modules_to_save=["model.norm"])
    case = pipeline.load_case(base, tuned, Options(), pipeline.Reading(), deep=True)
    assert case.measures is None
    assert not [f for f in suture.check(base, tuned) if f.code.startswith("N50")]
