"""Training with proof: what trains is what is saved, and what is saved is what resumes."""

from __future__ import annotations

import logging
from importlib.util import find_spec

from suture.errors import MissingExtra

NEEDED = ("torch", "transformers", "peft", "accelerate", "trl", "datasets", "pydantic", "yaml")

if _missing := [name for name in NEEDED if find_spec(name) is None]:
    raise MissingExtra(
        f"training needs packages that are not installed: {', '.join(_missing)}", do="pip install 'suture[train]'"
    )

# bitsandbytes tells at every import, also where nothing is quantised, how its CPU code could be faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
