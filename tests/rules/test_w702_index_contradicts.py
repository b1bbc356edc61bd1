"""W702: index, shards and headers."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from model_cases import INDEX, copied, edit, found, only, reweigh
from safetensors.numpy import load_file

from suture.model_folder import read_model_folder
from suture.rules.w702_index_contradicts import RULE


@pytest.fixture
def folder(base_of, tmp_path):
    return copied(base_of("llama"), tmp_path / "model")


def shards(folder):
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def test_a_missing_file(folder):
    (folder / shards(folder)[1]).unlink()
    finding = only(folder, "W702")
    assert (finding.severity, finding.where) == ("error", f"{INDEX}: weight_map")
    assert "00002-of" in finding.found
    assert not found(folder, "W704"), "one defect, one rule"


def test_listed_and_in_no_file(folder):
    edit(folder / INDEX, lambda i: i["weight_map"].update({"model.extra.weight": shards(folder)[0]}))
    assert "1 tensors are listed and in no file: model.extra.weight" in only(folder, "W702").found


def test_in_a_file_and_not_listed(folder):
    edit(folder / INDEX, lambda i: i["weight_map"].pop("model.norm.weight"))
    assert "not listed: model.norm.weight" in only(folder, "W702").found


def test_listed_elsewhere(folder):
    first = shards(folder)[0]
    edit(folder / INDEX, lambda i: i["weight_map"].update({"model.norm.weight": first}))
    assert "another file" in only(folder, "W702").found


def test_stored_twice(folder):
    one, other = shards(folder)[:2]
    name, array = next(iter(load_file(folder / one).items()))
    reweigh(folder, lambda t: t.update({name: array}), other)
    (finding,) = (f for f in found(folder, "W702") if "more than once" in f.found)
    assert name in finding.found


class Name(str):
    """A name that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)


def test_many_names_stored_twice_are_looked_up(folder):
    """And not compared with each other, which takes minutes where a whole model is stored twice."""
    model = read_model_folder(folder)
    some = next(iter(model.tensors.values()))
    starts = {"a": 0, "b": 0, "c": 300}  # the third has names of its own
    files = {f: tuple(replace(some, name=Name(f"t{i}"), file=f) for i in range(n, n + 300)) for f, n in starts.items()}
    spoilt = replace(model, headers=files, weights=tuple(files), documents={})
    found = [f for f in RULE.model(spoilt) if "stored more than once" in f.found]
    assert found[0].found.startswith("300 tensors")
    assert Name.compared < 20 * 300


def test_a_count_in_the_place_of_a_size(folder):
    """What Axolotl's streaming merge writes."""
    n = len(json.loads((folder / INDEX).read_text())["weight_map"])
    edit(folder / INDEX, lambda i: i["metadata"].update(total_size=n))
    finding = only(folder, "W702")
    assert (finding.severity, finding.where) == ("warning", f"{INDEX}: total_size")


def test_no_index(folder):
    (folder / INDEX).unlink()
    assert "no index" in only(folder, "W702").found


def test_a_file_of_another_name(base_of, tmp_path):
    folder = copied(base_of("llama-tied"), tmp_path / "one")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert "no index" in only(folder, "W702").found


def test_an_index_of_a_part(folder):
    last = shards(folder)[-1]
    (folder / last).unlink()

    def drop(index):
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f != last}

    edit(folder / INDEX, drop)
    assert any(f"of {len(shards(folder)) + 1} files" in f.found for f in found(folder, "W702"))


def test_one_file_without_an_index(base_of):
    assert not found(base_of("llama-tied"), "W702")


def test_an_index_without_a_size(folder):
    edit(folder / INDEX, lambda i: i.pop("metadata"))
    assert not found(folder, "W702")
