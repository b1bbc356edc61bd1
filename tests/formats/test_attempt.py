"""A refusal is written down; a mistake of the program is not."""

from __future__ import annotations

import pytest

from suture.errors import FormatError
from suture.formats.attempt import attempt


def test_a_result_and_a_refusal():
    bad: dict[str, str] = {}

    def refuse():
        raise FormatError("cut off", where="x")

    assert attempt(bad, "a", lambda: 3) == 3
    assert attempt(bad, "b", refuse) is None
    assert bad == {"b": "cut off"}


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        attempt({}, "a", lambda: 1 // 0)
