"""Measures on sampled rows: against the whole matrices, and on shapes that the sample has to fit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, HIDDEN, Q0, adapter, llama, random
from safetensors.torch import load_file
from zoo import FAMILIES, load

import suture
import suture.measures
from suture import pipeline
from suture.measures import kept
from suture.measures.rounding import spread
from suture.measures.sampling import STRIPE_ROWS, STRIPES, stripes
from suture.values import Operation, Options, Source, TensorInfo


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Llama."""
    return llama(tmp_path_factory.mktemp("base") / "tiny-llama")


def measures(base, tuned):
    case = pipeline.load_case(base, tuned, Options(), pipeline.Reading(), "samples")
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
    monkeypatch.setattr("suture.measures.sampling.STRIPES", 1 << 20)  # all rows
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
    case = pipeline.load_case(base, tuned, Options(), pipeline.Reading(), "values")
    assert case.measures is None
    assert not [f for f in suture.check(base, tuned) if f.code.startswith("N50")]


def test_a_list_of_many_tokens(base_of, tmp_path):
    """More tokens than are looked at; and every kind of row that a sample may hold twice."""
    live = get_peft_model(
        load(FAMILIES["llama"], base_of("llama")),
        LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=list(range(90, 10, -1))),
    )
    for name, parameter in live.named_parameters():
        if "trainable_tokens" in name:
            parameter.data += 0.1 * parameter.data.std() * torch.randn(parameter.shape)
    live.save_pretrained(tmp_path)
    (seen,) = measures(base_of("llama"), tmp_path).places
    assert (seen.is_whole, seen.n_astray) == (False, 0)
    assert 10 < seen.n_looked_at < 80
    assert 0.9 < seen.length < 1.1


def test_dora_before_it_is_stretched(base_of, tmp_path):
    """Against the product of PEFT's own factors, on layers in both orientations and on an embedding."""
    live = tiny.trained(
        get_peft_model(
            load(FAMILIES["gpt2"], base_of("gpt2")), LoraConfig(r=2, use_dora=True, target_modules=["c_attn", "wte"])
        )
    )
    live.save_pretrained(tmp_path)
    turns = {turn.tensor: turn.ratio for turn in measures(base_of("gpt2"), tmp_path).turns}
    layers = {name: module for name, module in live.named_modules() if hasattr(module, "get_delta_weight")}
    assert len(turns) == len(layers)
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight.detach()
        expected = float(layer.get_delta_weight("default").detach().norm() / weight.norm())
        assert np.isclose(turns[name.removeprefix("base_model.model.") + ".weight"], expected, rtol=1e-4), name


def test_what_every_merge_measures_of_its_rounding(base, tmp_path, monkeypatch):
    """Of all rows it is what the matrices have together; the receipt and the forecast tell it, 32 bits have none."""
    tuned, options = adapter(tmp_path / "adapter", BOTH), Options(dtype="BF16", rounding="stochastic", seed=3)
    case = pipeline.load_case(base, tuned, options, pipeline.Reading(), "samples")
    receipt = suture.merge(base, tuned, tmp_path / "out", options=options)
    assert receipt.kept == suture.forecast(base, tuned, options=options).kept
    assert receipt.kept.n_matrices == 2
    monkeypatch.setattr(suture.measures, "FEW_STRIPES", 1 << 20)
    found, moves = kept(case.checkpoint, case.adapter, case.draft.operations), case.measures.moves
    total = sum(m.update**2 for m in moves)
    for name in ("nearest", "stochastic"):
        expected = sum(getattr(m, name).share * m.update**2 for m in moves) / total
        assert np.isclose(getattr(found, name).share, expected, atol=1e-5)
        assert np.isclose(getattr(found, name).share, getattr(receipt.kept, name).share, atol=0.1)
    assert suture.merge(base, tuned, tmp_path / "f32").kept is None


def test_few_matrices_stand_for_many():
    numbers = [operation_of(k) for k in range(100)]
    assert spread(numbers[:5], 32) == numbers[:5]
    found = spread(numbers, 32)
    assert len({op.tensor for op in found}) == 32
    assert found[0] == numbers[0]
    assert found[-1] in numbers[-4:]


def operation_of(number):
    info = TensorInfo(f"w{number}", "BF16", (4, 4), "model.safetensors", 0, 32)
    return Operation(info.name, "merge", Source("base", info), (), "BF16", (4, 4), 4, 1, info.file, 0, 32)


def test_numbers_that_are_none_have_no_survival(base, tmp_path):
    tensors = {**BOTH, f"{Q0}.lora_B.weight": np.full((HIDDEN, 2), np.nan, np.float32)}
    case = pipeline.load_case(base, adapter(tmp_path, tensors), Options(dtype="F16"), pipeline.Reading(), "samples")
    found = kept(case.checkpoint, case.adapter, case.draft.operations)
    assert np.isfinite([found.nearest.share, found.stochastic.lost]).all()
    assert [m.is_finite for m in case.measures.moves] == [False, True]
