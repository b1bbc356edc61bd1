"""N508: what rounding takes from an update."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from rule_cases import findings
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import suture
from suture import pipeline
from suture.values import Options


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_torch):
    """A base in bf16."""
    root = tmp_path_factory.mktemp("rounding")
    model = tiny.make_model().to(torch.bfloat16)
    model.save_pretrained(root / "base")
    return root / "base"


def saved(folder, out, std):
    """An adapter in float32 whose updates have this size."""
    model = tiny.wrapped(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=std)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize(("std", "severities"), [(1e-5, ["warning"]), (3e-4, ["info"]), (3e-2, [])])
def test_the_smaller_the_update_the_more_is_lost(folder, tmp_path, std, severities):
    found = findings(folder, saved(folder, tmp_path, std), "N508")
    assert [f.severity for f in found] == severities
    assert all("BF16" in f.found and "--dtype f32" in f.do for f in found)


def test_nothing_is_lost_in_float32(folder, tmp_path):
    tuned = saved(folder, tmp_path, 1e-5)
    assert findings(folder, tuned, "N508")
    assert not findings(folder, tuned, "N508", Options(dtype="F32"))


def test_the_loss_is_what_a_merge_loses(folder, tmp_path):
    """The other implementation: merge in both types, and compare."""
    tuned = saved(folder, tmp_path / "adapter", 3e-4)
    for dtype in ("BF16", "F32"):
        suture.merge(folder, tuned, tmp_path / dtype, options=Options(dtype=dtype))
    case = pipeline.load_case(folder, tuned, Options(), pipeline.Reading(), "samples")
    base, short, whole = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "BF16", tmp_path / "F32"))
    assert len(case.measures.moves) == 6
    for move in case.measures.moves:
        w, got, exact = (x[move.tensor].double() for x in (base, short, whole))
        assert np.isclose(move.nearest.lost, float((got - exact).norm() / (exact - w).norm()), rtol=1e-3)
        assert np.isclose(move.ratio, float((exact - w).norm() / w.norm()), rtol=1e-3)


def test_at_random_it_is_noise_and_no_warning(folder, tmp_path):
    """As asked for; and to nearest the finding says what the choice would do."""
    tuned = saved(folder, tmp_path, 1e-5)
    (found,) = findings(folder, tuned, "N508", Options(rounding="stochastic"))
    assert found.severity == "info"
    assert "at random keeps" in found.found
    assert "--rounding" not in found.do
    (found,) = findings(folder, tuned, "N508")
    assert "--rounding stochastic keeps all of it on average, and adds noise of" in found.do
    assert not findings(folder, tuned, "N508", Options(rounding="stochastic", dtype="F32"))


def test_what_is_kept_is_what_a_merge_keeps(folder, tmp_path):
    """The other implementation: the merged files, in both ways of rounding."""
    tuned = saved(folder, tmp_path / "adapter", 3e-4)
    ways = {"nearest": Options(), "stochastic": Options(rounding="stochastic", seed=4), "whole": Options(dtype="F32")}
    for name, options in ways.items():
        suture.merge(folder, tuned, tmp_path / name, options=options)
    case = pipeline.load_case(folder, tuned, ways["stochastic"], pipeline.Reading(), "samples")
    files = {n: load_file((tmp_path / n if n in ways else folder) / "model.safetensors") for n in ("base", *ways)}
    for move in case.measures.moves:
        w, whole = (files[n][move.tensor].double() for n in ("base", "whole"))
        for name in ("nearest", "stochastic"):
            applied, delta, kept = files[name][move.tensor].double() - w, whole - w, getattr(move, name)
            assert np.isclose(kept.share, float((applied * delta).sum() / delta.square().sum()), rtol=2e-3)
            assert np.isclose(kept.cosine, float((applied * delta).sum() / applied.norm() / delta.norm()), rtol=2e-3)
            assert np.isclose(kept.lost, float((applied - delta).norm() / delta.norm()), rtol=2e-3)
        assert abs(move.stochastic.share - 1) < 0.2 < move.stochastic.lost


def test_headers_alone_do_not_tell(folder, tmp_path):
    assert not [f for f in suture.check(folder, saved(folder, tmp_path, 1e-5)) if f.code == "N508"]
