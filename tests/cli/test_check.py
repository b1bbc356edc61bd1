"""suture check"""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

LOST = """\
error M301 key-unmatched
  at       adapter_model.safetensors
  found    8 of 8 tensors name nothing in the base model:
             base_model.model.layers.0.self_attn.q_proj.lora_A.weight
             base_model.model.layers.0.self_attn.q_proj.lora_B.weight
             base_model.model.layers.0.self_attn.v_proj.lora_A.weight
             base_model.model.layers.0.self_attn.v_proj.lora_B.weight
             … and 4 more
  expected keys such as base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
  do       One rewriting makes all 8 keys fit: insert model. after base_model.model.
             base_model.model.layers.0.self_attn.q_proj.lora_A.weight
             → base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight

`suture explain M301` tells more.
1 error, 0 warnings
"""


def with_config(adapter, folder, **changes):
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_sound_pair(run, base, adapters):
    result = run("check", base, adapters / "qv")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "0 errors, 0 warnings\n", "")


def test_names_that_lead_nowhere(run, base, adapters):
    result = run("check", base, adapters / "lost")
    assert (result.exit_code, result.stdout, result.stderr) == (1, LOST, "")


def test_news_is_no_error(run, base, adapters):
    result = run("check", base, adapters / "head")
    assert result.exit_code == 0
    assert result.stdout.startswith("info T401 tied-apart\n")
    assert result.stdout.endswith("0 errors, 0 warnings\n")


def test_a_choice_makes_it_one(run, base, adapters):
    assert run("check", base, adapters / "head", "--tied", "refuse").exit_code == 1


def test_json(document, base, adapters):
    code, found = document("check", base, adapters / "lost")
    assert code == 1
    assert (found["n_errors"], found["n_warnings"]) == (1, 0)
    assert [f["code"] for f in found["findings"]] == ["M301"]
    assert document("check", base, adapters / "qv") == (0, {"findings": [], "n_errors": 0, "n_warnings": 0})


def test_an_ignored_error(run, base, adapters, tmp_path):
    odd = with_config(adapters / "qv", tmp_path / "odd", novel_field=1)
    assert run("check", base, odd).exit_code == 1
    result = run("check", base, odd, "--ignore", "a202")
    assert result.exit_code == 0
    assert "error A202 field-unknown  (ignored)" in result.stdout
    assert "0 errors" in result.stdout


@pytest.mark.parametrize(("code", "why"), [("M301", "cannot be ignored"), ("Z999", "no rule")])
def test_what_cannot_be_ignored(run, base, adapters, code, why):
    result = run("check", base, adapters / "qv", "--ignore", code)
    assert result.exit_code == 2
    assert why in result.stderr
    assert "M305" in result.stderr  # what can be


def test_values_are_read_only_when_asked(run, base, adapters, tmp_path):
    shutil.copytree(adapters / "qv", tmp_path / "zero")
    path = tmp_path / "zero" / "adapter_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path)
    assert run("check", base, tmp_path / "zero").exit_code == 0
    assert "error N502 no-effect" in run("check", base, tmp_path / "zero", "--deep").stdout


def test_many_findings_of_one_rule(run, base, adapters, tmp_path):
    result = run(
        "check", base, with_config(adapters / "qv", tmp_path / "odd", **{f"field_{i}": i + 1 for i in range(9)})
    )
    assert "error A202 field-unknown  (9)" in result.stdout
    assert "… and 4 more of A202" in result.stdout
    assert result.stdout.count("  at ") == 5


def test_names_cannot_change_the_terminal(run, base, adapters, tmp_path):
    result = run("check", base, with_config(adapters / "qv", tmp_path / "odd", **{"x\x1b[2J[red]": 1}))
    assert "\x1b" not in result.stdout
    assert "x\\x1b[2J[red]" in result.stdout


def test_a_folder_that_is_not_there(run, document, adapters, tmp_path):
    result = run("check", tmp_path / "nowhere", adapters / "qv")
    assert (result.exit_code, result.stdout) == (10, "")
    assert "nowhere" in result.stderr
    code, found = document("check", tmp_path / "nowhere", adapters / "qv")
    assert code == found["error"]["exit_code"] == 10
    assert found["findings"] == []
