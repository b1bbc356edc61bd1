"""Bases for the tests of rules, each written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from rule_cases import llama


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embedding and head are two tensors."""
    return llama(tmp_path_factory.mktemp("rules") / "tiny-llama")


@pytest.fixture(scope="session")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embedding and head are one tensor."""
    return llama(tmp_path_factory.mktemp("rules") / "tiny-llama-tied", tied=True)
