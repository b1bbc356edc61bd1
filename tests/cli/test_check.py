"""suture check"""

from __future__ import annotations

import json
import shutil

from safetensors.numpy import load_file, save_file

LOST = """\
error M301 key-unmatched
  why      Most loaders skip what they cannot place. The merge "succeeds", the new weights equal the base's,
           and the training is lost without an error. It takes one missing level in the names (`model.`), a
           wrapper's prefix (`_orig_mod.`, `module.`), an adapter name that stayed in them (`lora_A.default`),
           or a model class that was rearranged.
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
    checked = f"checked {adapters / 'qv'} on {base}\n\n"
    end = f"0 errors, 0 warnings\nnext: suture merge {base} {adapters / 'qv'} -o OUT\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, checked + end, "")


def test_names_that_lead_nowhere(run, base, adapters):
    result = run("check", base, adapters / "lost")
    next_step = f"next: suture fix {base} {adapters / 'lost'} -o {adapters / 'lost'}-fixed\n"
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout == f"checked {adapters / 'lost'} on {base}\n\n{LOST}{next_step}"


def test_how_far_matrices_move_is_in_the_document(document, base, adapters):
    assert document("check", base, adapters / "qv")[1]["moves"] == []
    code, found = document("check", base, adapters / "qv", "--deep", "--dtype", "bf16")
    assert code == 0
    assert len(found["moves"]) == 4
    for move in found["moves"]:
        assert abs(move["stochastic"]["share"] - 1) < 0.3
        assert 0 < move["nearest"]["lost"] < move["stochastic"]["lost"]


def test_news_is_no_error(run, base, adapters):
    result = run("check", base, adapters / "head")
    assert result.exit_code == 0
    assert "\ninfo T401 tied-apart\n" in result.stdout
    assert "\n0 errors, 0 warnings\n" in result.stdout


def test_a_choice_makes_it_one(run, base, adapters):
    assert run("check", base, adapters / "head", "--tied", "refuse").exit_code == 1


def test_json(document, base, adapters):
    code, found = document("check", base, adapters / "lost")
    assert code == 1
    assert (found["n_errors"], found["n_warnings"]) == (1, 0)
    assert [f["code"] for f in found["findings"]] == ["M301"]
    clean = {"kind": "pair", "findings": [], "n_errors": 0, "n_warnings": 0, "n_infos": 0, "layers": [], "moves": []}
    assert document("check", base, adapters / "qv") == (0, clean)


def test_an_ignored_rule_is_not_told(run, base, adapters, tmp_path):
    odd = with_config(adapters / "qv", tmp_path / "odd", novel_field=1)
    assert run("check", base, odd).exit_code == 1
    result = run("check", base, odd, "--ignore", "a202")
    assert result.exit_code == 0
    assert "A202" not in result.stdout


def test_only_some_rules(run, base, adapters, tmp_path):
    odd = with_config(adapters / "lost", tmp_path / "odd", novel_field=1)
    result = run("check", base, odd, "--select", "A2", "--select", "tied-apart")
    assert "A202" in result.stdout
    assert "M301" not in result.stdout


def test_a_rule_that_there_is_not(run, base, adapters):
    result = run("check", base, adapters / "qv", "--ignore", "Z999")
    assert result.exit_code == 2
    assert "there is no rule 'Z999'" in result.stderr


def test_sarif(run, base, adapters):
    result = run("check", base, adapters / "lost", "--sarif")
    assert result.exit_code == 1
    log = json.loads(result.stdout)
    assert [r["ruleId"] for r in log["runs"][0]["results"]] == ["M301"]


def test_annotations(run, base, adapters):
    result = run("check", base, adapters / "lost", "--github")
    assert result.exit_code == 1
    (line,) = result.stdout.splitlines()
    assert line.startswith("::error file=")
    assert "title=M301 key-unmatched::" in line


def test_two_forms_at_once(run, base, adapters):
    assert run("check", base, adapters / "qv", "--github", "--sarif").exit_code == 2
    result = run("check", base, adapters / "qv", "--json", "--sarif")
    assert result.exit_code == 2
    assert "--json and --sarif" in result.stdout


def test_a_finished_model_alone(run, base, adapters, tmp_path):
    assert "checked the model in" in run("check", base).stdout
    shutil.copytree(base, tmp_path / "merged")
    shutil.copy(adapters / "qv" / "adapter_config.json", tmp_path / "merged")
    shutil.copy(adapters / "qv" / "adapter_model.safetensors", tmp_path / "merged")
    result = run("check", tmp_path / "merged")
    assert result.exit_code == 1
    assert "X601" in result.stdout


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
