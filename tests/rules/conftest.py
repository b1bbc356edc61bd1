"""Bases for the tests of rules, each written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_cases import copied
from rule_cases import llama


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embedding and head are two tensors."""
    return llama(tmp_path_factory.mktemp("rules") / "tiny-llama")


@pytest.fixture(scope="session")
def tied_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose embedding and head are one tensor."""
    return llama(tmp_path_factory.mktemp("rules") / "tiny-llama-tied", tied=True)


@pytest.fixture(scope="session")
def base_with_tokenizer(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Path:
    """A Llama with a tokenizer, as Transformers writes them."""
    from tiny import make_base

    return make_base(tmp_path_factory.mktemp("rules") / "with-tokenizer")


@pytest.fixture
def with_tokenizer(base_with_tokenizer: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return copied(base_with_tokenizer, tmp_path / "model")
