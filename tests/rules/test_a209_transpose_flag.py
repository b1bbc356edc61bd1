"""A209: fan_in_fan_out against the layers."""

from __future__ import annotations

import json
import shutil

import pytest
import tiny
from rule_cases import BOTH, adapter, findings, only


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, quiet_torch):
    """A GPT-2, and an adapter that PEFT saved for its Conv1D layers."""
    root = tmp_path_factory.mktemp("gpt2")
    base = tiny.make_base(root / "base", kind="gpt2")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = tiny.wrapped(tiny.make_model(kind="gpt2"), target_modules=["c_attn", "c_proj"])
    tiny.trained(model).save_pretrained(root / "adapter")
    return base, root / "adapter"


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_what_peft_saves_for_gpt2(gpt2):
    assert not findings(*gpt2, "A209")


def test_the_flag_was_lost(gpt2, tmp_path):
    tuned = shutil.copytree(gpt2[1], tmp_path / "adapter")
    finding = only(gpt2[0], edited(tuned, fan_in_fan_out=False), "A209")
    assert "all 6 changed layers are Conv1D" in finding.found
    assert finding.expected == "true"


def test_the_flag_on_linear_layers(base, tmp_path):
    assert only(base, adapter(tmp_path, BOTH, fan_in_fan_out=True), "A209").expected == "false"


def test_linear_layers_without_the_flag(base, tmp_path):
    assert not findings(base, adapter(tmp_path, BOTH, fan_in_fan_out=False), "A209")


@pytest.mark.parametrize("flag", [True, False])
def test_both_kinds(gpt2, tmp_path, flag):
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = tiny.wrapped(tiny.make_model(kind="gpt2", tie=False), target_modules=["c_attn", "lm_head"])
    tiny.trained(model).save_pretrained(tmp_path)
    assert not findings(gpt2[0], edited(tmp_path, fan_in_fan_out=flag), "A209")
