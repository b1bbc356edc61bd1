"""L906: ends that are meant to be one and are two."""

from __future__ import annotations

import pytest
from live_cases import found
from tiny import make_model, wrapped


@pytest.mark.filterwarnings("ignore")
def test_a_base_in_bf16_whose_factors_are_copied():
    model = wrapped(make_model().bfloat16(), target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True)
    (finding,) = found(model, "L906")
    assert "ensure_weight_tying" in finding.found


@pytest.mark.filterwarnings("ignore")
def test_ends_that_stay_one():
    ends = ["embed_tokens", "lm_head"]
    assert not found(wrapped(modules_to_save=ends, ensure_weight_tying=True), "L906")
    assert not found(wrapped(modules_to_save=["embed_tokens"]), "L906"), "nothing was promised"
