"""A workshop for the healthy adapters, one a session."""

from __future__ import annotations

import pytest
from workshop import Workshop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory, quiet_torch: None) -> Workshop:
    """Makes bases and adapters, each once."""
    return Workshop(tmp_path_factory.mktemp("workshop"))
