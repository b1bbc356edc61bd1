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
        assert np.isclose(move.loss, float((got - exact).norm() / (exact - w).norm()), rtol=1e-3)
        assert np.isclose(move.ratio, float((exact - w).norm() / w.norm()), rtol=1e-3)


def test_headers_alone_do_not_tell(folder, tmp_path):
    assert not [f for f in suture.check(folder, saved(folder, tmp_path, 1e-5)) if f.code == "N508"]
