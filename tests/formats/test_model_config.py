"""Where a config says things: the levels that say something of text, and a key at any level."""

from __future__ import annotations

import pytest

from suture.formats.model_config import at_every_level, text_levels


@pytest.mark.parametrize("inner", [None, 3, "x", []])
def test_the_top_alone(inner):
    config = {"vocab_size": 3, "text_config": inner}
    assert text_levels(config) == (config,)
    assert text_levels({}) == ({},)


def test_the_text_model():
    assert text_levels({"a": 1, "text_config": {"b": 2}})[1:] == ({"b": 2},)


def test_keys_at_every_level():
    config = {"x": 1, "text_config": {"x": {"y": 2}, "deep": {"y": None}}, "list": [{"x": 3}], "y_z": 4}
    found = dict(at_every_level(config, "x", "y"))
    assert found == {("x",): 1, ("text_config", "x"): {"y": 2}, ("text_config", "deep", "y"): None}
    assert not dict(at_every_level(config, "z"))
