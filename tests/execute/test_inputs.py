"""Inputs that are not what the plan was made from stop the merge before it writes, or before it appears."""

import os
from dataclasses import replace

import pytest
from execute.made_plans import make_pair, make_plan

from suture import execute
from suture.errors import InputChanged
from suture.execute.inputs import state


@pytest.fixture
def pair(tmp_path):
    return make_pair(tmp_path / "in")


def refuse(pair, plan, out, match):
    with pytest.raises(InputChanged, match=match):
        execute.run(plan, pair.inputs, out)
    assert not out.exists()
    assert not (out.parent / ".out.suture").exists()


@pytest.mark.parametrize("name", ["base/model-00002-of-00003.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("change", [lambda p: os.truncate(p, 100), lambda p: p.unlink()], ids=["cut", "gone"])
def test_a_weight_file_that_was_cut_or_removed(pair, tmp_path, name, change):
    plan = make_plan(pair)
    change(pair.folder / name)
    refuse(pair, plan, tmp_path / "out", name)


def test_a_side_file_that_is_gone(pair, tmp_path):
    plan = make_plan(pair)
    (pair.folder / "base" / "tokenizer.json").unlink()
    refuse(pair, plan, tmp_path / "out", "tokenizer.json: the file is gone")


@pytest.mark.parametrize("changes", [{"dtype": "F16"}, {"begin": 0}, {"name": "other"}, {"shape": (96, 200)}])
def test_a_plan_for_other_tensors(pair, tmp_path, changes):
    plan = make_plan(pair)
    pair.base["w1"] = replace(pair.base["w1"], **changes)
    refuse(pair, plan, tmp_path / "out", "w1: the tensor is not where the plan says")


def test_a_file_that_changes_during_the_merge(pair, tmp_path):
    path = pair.folder / "base" / "model-00001-of-00003.safetensors"
    plan = make_plan(pair)
    with pytest.raises(InputChanged, match="changed during the merge"):
        execute.run(plan, pair.inputs, tmp_path / "out", progress=lambda n: os.utime(path, ns=(1, 1)))
    assert not (tmp_path / ".out.suture").exists()


def test_a_file_that_was_exchanged_for_one_of_the_same_size_and_date(pair):
    plan, path = make_plan(pair), pair.folder / "base" / "model-00001-of-00003.safetensors"
    before, date = state(plan, pair.inputs), path.stat().st_mtime_ns
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(date, date))
    other.replace(path)
    assert state(plan, pair.inputs) != before


def test_the_state_is_that_of_every_file(pair):
    plan = make_plan(pair)
    states = {state(plan, pair.inputs)}
    for path in sorted(p for p in pair.folder.rglob("*") if p.is_file()):
        os.utime(path, ns=(5, 5))
        states.add(state(plan, pair.inputs))
    assert len(states) == 1 + 3 + 1 + 2
