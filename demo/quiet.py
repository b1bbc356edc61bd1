"""Silences the two warnings that PEFT is known to give here, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def expected_warnings() -> Iterator[None]:
    """PEFT warns of the tied embedding, which is what the demo is about, and asks Transformers by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`", category=UserWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
