"""Which key of rank_pattern counts for a module: PEFT's own answer, found without trying each key."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from suture import targets
from suture.errors import FormatError

PIECES = st.sampled_from(
    [
        "a",
        "b",
        ".",
        "a.b",
        "1",
        "_-",
        "a*",
        r"\d",
        "(a|b)",
        "^a",
        r"\.",
        "^",
        r"\-",
        ".*",
        ".+?",
        "(?:a|.b)",
        "[ab]+",
        "a?",
        "$",
    ]
)
KEYS = st.lists(st.lists(PIECES, min_size=1, max_size=4).map("".join), max_size=5, unique=True)
NAMES = st.text("ab.1_-", max_size=8)


@given(KEYS, NAMES)
def test_the_first_is_pefts(keys, name):
    number = {key: i for i, key in enumerate(keys)}
    assert targets.first_match(number, name) == next(
        (i for i, key in enumerate(keys) if re.match(rf"(.*\.)?({key})$", name)), None
    )
    found = targets.matching(keys, name)
    assert found == tuple(key for key in keys if re.match(rf"(.*\.)?({key})$", name))
    assert (found[0] if found else name) == get_pattern_key(keys, name)


@pytest.mark.parametrize(
    ("keys", "name", "first"),
    [
        (["q_proj", "layers.0.q_proj"], "model.layers.0.q_proj", "q_proj"),
        (["layers.0.q_proj", "q_proj"], "model.layers.0.q_proj", "layers.0.q_proj"),
        (["model.layers.1.q_proj"], "model.layers.11.q_proj", None),
        (["layers.0.q"], "model.layersX0.q", "layers.0.q"),  # a dot is any letter
        ([r".*\.1\.q", "layers.0.q"], "layers.0.q", "layers.0.q"),
        (["xq"], "q", None),
        (["q"], "xq", None),
        (["q|v"], "a.v", "q|v"),
        ([], "a", None),
        ([""], "a.", ""),
    ],
)
def test_whole_parts_of_a_path(keys, name, first):
    assert targets.first_match({key: i + 1 for i, key in enumerate(keys)}, name) == (
        None if first is None else keys.index(first) + 1
    )


def test_plain_paths_are_not_compiled(monkeypatch):
    """As EVA and `re.escape` write them, one for each module: more than the 512 that `re` remembers."""
    paths = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(200) for p in "qkvo"]
    monkeypatch.setattr(re, "compile", None)
    for keys, names in (
        (paths, [f"base.{path}" for path in paths]),
        ([f"^{path}" for path in paths], paths),
        ([re.escape(path) for path in paths], paths),
    ):
        number = {key: n for n, key in enumerate(keys)}
        assert [targets.first_match(number, name) for name in names] == list(range(800))
    assert targets.first_match({f"^{paths[0]}": 1}, f"base.{paths[0]}") is None
    assert targets.first_match({re.escape(paths[0]): 1}, paths[0].replace(".", "x")) is None


def test_patterns_are_compiled_once(monkeypatch):
    compiled = []
    real = re.compile
    monkeypatch.setattr(re, "compile", lambda pattern: compiled.append(pattern) or real(pattern))
    keys = {f"compiled_once_(a|{n})": n for n in range(100)}
    for _ in range(3):
        assert targets.first_match(keys, "compiled_once_x") is None
    assert len(compiled) == len(set(compiled)) > 0


def test_what_is_no_expression_is_refused_when_it_is_reached():
    assert targets.first_match({"a": 1, "(": 2}, "a") == 1
    with pytest.raises(FormatError, match="regular expression"):
        targets.first_match({"a": 1, "(": 2}, "b")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.21.2", (0, 21)),
        ("0.17.2.dev0@abc", (0, 17)),
        ("0.18@UNKNOWN", (0, 18)),
        ("1.0", (1, 0)),
        ("", None),
        (None, None),
        ("²", None),
        ("0.²", None),
        ("9" * 5000 + ".1", None),
        ("0.18rc1", None),
        ("unknown", None),
    ],
)
def test_the_version_that_wrote_a_config(text, version):
    assert targets.peft_version({"peft_version": text}) == version
    assert targets.peft_version({}) is None
