"""Silences what PEFT and bitsandbytes are known to say here, and nothing else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# At every import bitsandbytes tells how its CPU code for 4 bits could be faster; nothing is in 4 bits here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def expected_warnings() -> Iterator[None]:
    """PEFT warns of the tied embedding, which is what the demo is about, and asks Transformers by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`", category=UserWarning)
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
