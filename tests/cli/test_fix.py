"""suture fix: what is shown, what is written, and the exit code."""

from __future__ import annotations

import json

import pytest
from rule_cases import BOTH, PREFIX, adapter, llama
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("fix") / "tiny-llama")


@pytest.fixture
def broken(tmp_path):
    return adapter(tmp_path / "broken", {PREFIX + name.removeprefix("model."): array for name, array in BOTH.items()})


def test_the_rewriting_is_shown_and_written(run, base, broken, tmp_path):
    result = run("fix", base, broken, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "repaired M301" in result.stdout
    assert f"→ {PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight" in result.stdout
    assert f"suture merge {base} {tmp_path / 'out'}" in result.stdout
    assert set(load_file(tmp_path / "out" / "adapter_model.safetensors")) == {PREFIX + name for name in BOTH}


def test_without_out_it_is_only_shown(run, base, broken, tmp_path):
    result = run("fix", base, broken)
    assert result.exit_code == 0
    assert "would repair M301" in result.stdout
    assert "name a folder with -o" in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_what_cannot_be_repaired_is_an_error(run, base, tmp_path):
    strange = adapter(tmp_path / "strange", {f"encoder.{name}": array for name, array in BOTH.items()})
    result = run("fix", base, strange, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "nothing that can be repaired" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_repair_that_assumes_something_waits_for_unsafe(run, base, tmp_path):
    other = adapter(tmp_path / "other", BOTH, r=16)
    result = run("fix", base, other, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "not repaired M304" in result.stdout
    assert "assumes" in result.stdout
    assert run("fix", base, other, "-o", tmp_path / "out", "--unsafe").exit_code == 0


def test_json(run, base, broken, tmp_path):
    result = run("fix", base, broken, "-o", tmp_path / "out", "--json")
    told = json.loads(result.stdout)
    assert told["out"] == str(tmp_path / "out")
    assert len(told["repairs"][0]["renamed"]) == len(BOTH)
    assert [f["code"] for f in told["before"] if f["severity"] == "error"] == ["M301"]
    assert not [f for f in told["after"] if f["severity"] == "error"]


def test_logits_need_a_place(run, base, broken):
    result = run("fix", base, broken, "--logits")
    assert result.exit_code == 2
    assert "-o" in result.stderr
