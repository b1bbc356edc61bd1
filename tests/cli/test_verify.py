"""suture verify"""

from __future__ import annotations

import pytest
from zoo import FAMILIES
from zoo_adapters import peft_merge

import suture.pipeline


@pytest.fixture(scope="module")
def merged(base, adapters, tmp_path_factory):
    """A folder for each adapter, merged by Suture."""
    root = tmp_path_factory.mktemp("merged")
    for name in ("qv", "head"):
        suture.pipeline.merge(base, adapters / name, root / name)
    return root


def test_a_right_merge(run, base, adapters, merged):
    result = run("verify", base, adapters / "head", merged / "head")
    assert result.exit_code == 0
    assert result.stdout.endswith("verified\n")
    assert "✓ tensors that change: 1 checked" in result.stdout
    assert "✗" not in result.stdout
    assert "logits" not in result.stdout


def test_the_options_are_the_receipts_unless_some_are_given(run, base, adapters, tmp_path):
    out = tmp_path / "out"
    assert run("merge", base, adapters / "qv", "-o", out, "--dtype", "f16", "--ignore", "N502").exit_code == 0
    result = run("verify", base, adapters / "qv", out)
    assert result.exit_code == 0
    assert "✓ options: 2 checked; as the receipt says: --dtype f16 --ignore N502\n" in result.stdout
    assert "weight files as planned" in result.stdout
    result = run("verify", base, adapters / "qv", out, "--tied", "untie")
    assert "as the receipt says" not in result.stdout
    assert "weight files as planned" not in result.stdout


def test_the_forward_pass(run, base, adapters, merged):
    result = run("verify", base, adapters / "qv", merged / "qv", "--logits", "--device", "cpu", "--full")
    assert result.exit_code == 0
    assert "  top 1       100.00% equal" in result.stdout


def test_the_merge_of_another_adapter(run, base, adapters, merged):
    result = run("verify", base, adapters / "qv", merged / "head")
    assert result.exit_code == 3
    assert "✗ tensors that change" in result.stdout
    assert "✗ model.layers.0.self_attn.q_proj.weight: unchanged" in result.stdout
    assert "0.000 of the update applied" in result.stdout
    assert result.stdout.endswith("not verified\n")


def test_a_wrong_merge_of_another_tool(document, base, adapters, tmp_path):
    """PEFT adds a LoRA on the tied head to the embedding too."""
    peft_merge(FAMILIES["llama-tied"], base, adapters / "head", tmp_path / "out")
    code, found = document("verify", base, adapters / "head", tmp_path / "out")
    assert (code, found["ok"]) == (3, False)
    assert found["wrong"]


def test_json(document, base, adapters, merged):
    code, found = document("verify", base, adapters / "qv", merged / "qv")
    assert (code, found["ok"], found["wrong"]) == (0, True, [])


def test_a_folder_that_is_not_there(run, base, adapters, tmp_path):
    assert run("verify", base, adapters / "qv", tmp_path / "nowhere").exit_code == 10
