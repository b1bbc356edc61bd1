"""The levels of a config that say something of text."""

from __future__ import annotations

import pytest

from suture.formats.model_config import text_levels


@pytest.mark.parametrize("inner", [None, 3, "x", []])
def test_the_top_alone(inner):
    config = {"vocab_size": 3, "text_config": inner}
    assert text_levels(config) == (config,)
    assert text_levels({}) == ({},)


def test_the_text_model():
    assert text_levels({"a": 1, "text_config": {"b": 2}})[1:] == ({"b": 2},)
