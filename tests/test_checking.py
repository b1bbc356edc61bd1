"""`suture.check`: what is looked at, which rules are told, and what alone can be checked with what is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rule_cases import BOTH, adapter, llama
from tiny import trained, wrapped

import suture
from suture.checking import Selection, check_files
from suture.errors import InputError, UsageError
from suture.rules import RULES


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("checking") / "tiny-llama")


def codes(findings):
    return {f.code for f in findings}


def test_a_pair(base, tmp_path):
    tuned = adapter(tmp_path, BOTH, target_modules=["q_proj", "v_proj"])
    assert codes(suture.check(base, tuned)) >= {"M305"}
    assert check_files(base, tuned).kind == "pair"


def test_a_finished_model(base):
    found = check_files(base)
    assert found.kind == "model"
    assert not found.count("error")


def test_an_adapter_alone_is_checked_with_the_base_that_it_names(base, tmp_path):
    tuned = adapter(tmp_path, BOTH, target_modules=["q_proj", "v_proj"], base_model_name_or_path=str(base))
    found = check_files(tuned)
    assert found.kind == "pair"
    assert "M305" in codes(found.findings)


def test_an_adapter_alone_without_its_base_asks_for_it(tmp_path):
    with pytest.raises(UsageError, match="somebody/somewhere") as caught:
        suture.check(adapter(tmp_path, BOTH, base_model_name_or_path="somebody/somewhere"))
    assert "suture check BASE" in caught.value.do


def test_a_run_is_checked_checkpoint_by_checkpoint_with_its_base(trained_run, tmp_path):
    found = check_files(trained_run)
    assert found.kind == "run"
    assert found.subject == f"3 checkpoints in {trained_run}, with the base"
    assert not found.count("error") + found.count("warning"), found.findings
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    config = run / "checkpoint-2" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    found = check_files(run)
    places = {f.code: f.where for f in found.findings}
    assert places["R801"].startswith("checkpoint-4")
    assert places["M305"].startswith("checkpoint-2/"), "the pair's rules too"


def test_a_run_without_its_base_is_checked_as_far_as_it_goes(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    for folder in run.glob("checkpoint-*"):
        config = folder / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "gone/away"}))
    assert check_files(run).subject.endswith("without the base, which is not on this disk")


def test_a_checkpoint_with_its_base_is_both_a_pair_and_a_run(trained_run, tmp_path):
    base = json.loads((trained_run / "checkpoint-2" / "adapter_config.json").read_text())["base_model_name_or_path"]
    checkpoint = Path(shutil.copytree(trained_run / "checkpoint-2", tmp_path / "checkpoint-2"))
    (checkpoint / "optimizer.pt").unlink()
    found = check_files(base, checkpoint)
    assert found.kind == "pair"
    assert "R801" in codes(found.findings)


def test_a_pair_whose_adapter_is_the_top_of_a_run_is_no_check_of_its_checkpoints(trained_run, tmp_path):
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / "checkpoint-6" / file, run)
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    base = json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert not [f for f in check_files(base, run).findings if f.code[0] == "R"]
    assert "R801" in codes(check_files(run).findings)


def test_a_finished_model_that_a_trainer_left_its_state_beside_is_still_a_model(base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "out"))
    (folder / "trainer_state.json").write_text('{"global_step": 3, "log_history": []}')
    (folder / "pytorch_model.bin").write_bytes(b"old")
    found = check_files(folder)
    assert "the model in" in found.subject
    assert "W703" in codes(found.findings)


def test_a_head_beside_an_adapter_makes_no_model(base, tmp_path):
    tuned = adapter(tmp_path, BOTH, base_model_name_or_path=str(base))
    shutil.copy(base / "config.json", tuned)
    shutil.copy(tuned / "adapter_model.safetensors", tuned / "value_head.safetensors")
    found = check_files(tuned)
    assert found.kind == "pair"
    assert not [f for f in found.findings if f.code[0] == "W"]


def test_a_repair_that_is_in_sight_is_told(base, tmp_path):
    good = adapter(tmp_path / "good", BOTH)
    assert not check_files(base, good).repairs
    ranks = check_files(base, adapter(tmp_path / "ranks", BOTH, r=16))
    assert [r.code for r in ranks.repairs] == ["M304"]
    strange = adapter(tmp_path / "strange", {f"encoder.{name}": array for name, array in BOTH.items()})
    assert not check_files(base, strange).repairs


def test_a_model_in_memory():
    found = suture.check(trained(wrapped()))
    assert codes(found) == {"L911"}


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError):
        suture.check(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [
        ((), (), set(RULES)),
        (("M301",), (), {"M301"}),
        (("m301",), (), {"M301"}),
        (("key-unmatched",), (), {"M301"}),
        (("M301,T4",), ("T402", "T403"), {"M301", *(c for c in RULES if c.startswith("T4"))} - {"T402", "T403"}),
        ((), ("W", "R", "L"), {c for c in RULES if c[0] not in "WRL"}),
    ],
)
def test_rules_are_chosen_by_code_beginning_or_name(select, ignore, expected):
    assert Selection(select, ignore).codes() == expected


@pytest.mark.parametrize("wrong", [("M999",), ("key-unmatch",), ("",), ("M301,",)])
def test_a_choice_that_is_no_rule_is_refused_before_anything_is_read(wrong, tmp_path):
    with pytest.raises(UsageError, match="there is no rule"):
        suture.check(tmp_path / "nowhere", selection=Selection(wrong))


def test_only_what_was_chosen_is_told(base, tmp_path):
    tuned = adapter(tmp_path, BOTH, target_modules=["q_proj", "v_proj"])
    assert not codes(suture.check(base, tuned, selection=Selection(ignore=("M305",)))) & {"M305"}
    assert codes(suture.check(base, tuned, selection=Selection(("M3",)))) == {"M305"}
