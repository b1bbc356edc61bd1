"""L910: an adapter that is called like a module."""

from __future__ import annotations

import pytest
from live_cases import found
from tiny import wrapped


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_called_mlp():
    (finding,) = found(wrapped(adapter_name="mlp"), "L910")
    assert "called mlp" in finding.found


def test_an_adapter_of_any_other_name():
    assert not found(wrapped(adapter_name="poems"), "L910")
    assert not found(wrapped(), "L910")
