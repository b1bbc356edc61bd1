"""L904: an adapter that does not train."""

from __future__ import annotations

import pytest
from live_cases import found
from peft import PeftModel
from tiny import make_model, wrapped


@pytest.fixture
def saved(tmp_path):
    wrapped().save_pretrained(tmp_path)
    return tmp_path


def test_an_adapter_loaded_as_peft_loads_it(saved):
    (finding,) = found(PeftModel.from_pretrained(make_model(), saved), "L904")
    assert "frozen" in finding.found
    assert "is_trainable=True" in finding.do


def test_one_loaded_to_train(saved):
    assert not found(PeftModel.from_pretrained(make_model(), saved, is_trainable=True), "L904")
