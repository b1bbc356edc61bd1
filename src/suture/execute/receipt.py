"""The record beside a finished merge: what went in, what computed it, and the sha256 of what came out."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import threadpoolctl

import suture
from suture import compiled
from suture.codec import to_json
from suture.execute.device import Device
from suture.execute.inputs import Inputs
from suture.values import KeptUpdates, Plan, Receipt

RECEIPT = "suture_receipt.json"
SCHEMA = 1


def kernel_name(formulas: object = None, quantizers: str = "") -> str:
    """Library, version and core of what rounds: BLAS adds in another order on another core, and so does a device.

    Args:
        quantizers: the libraries that quantise what the kernel has computed.
    """
    found = [
        " ".join(str(lib[key]) for key in ("internal_api", "version", "architecture") if lib.get(key))
        for lib in sorted(threadpoolctl.threadpool_info(), key=lambda lib: str(lib["filepath"]))
        if lib["user_api"] == "blas" and "numpy" in lib["filepath"]
    ]
    own = "" if compiled.why_not() else f"fused {compiled.VERSION}, "
    if isinstance(formulas, Device):
        own = f"{formulas.name}, "
    after = f", {quantizers}" if quantizers else ""
    return f"{own}numpy {np.__version__}, {found[0] if found else _built_with()}{after}"


@dataclass(frozen=True, slots=True)
class Made:
    """What a merge has put down: whose plan, hashes by file name, where they were wanted, files that are links, and
    what rounding left of the updates.
    """

    plan_id: str
    sha256: Mapping[str, str]
    base_sha256: Mapping[str, str]
    linked: tuple[str, ...]
    kept: KeptUpdates | None = None


def make_receipt(plan: Plan, inputs: Inputs, kernel: str, made: Made) -> Receipt:
    """The receipt of a merge. It holds no time and no host name."""
    return Receipt(
        schema=SCHEMA,
        plan_id=made.plan_id,
        base=_name(inputs.checkpoint.folder),
        base_fingerprint=plan.base_fingerprint,
        adapter=_name(inputs.adapter.folder) if inputs.adapter.file else "",
        adapter_sha256=plan.adapter_sha256,
        options=plan.options,
        kernel=kernel,
        versions={
            "numpy": np.__version__,
            "python": platform.python_version(),
            "suture": suture.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
        sha256=dict(sorted(made.sha256.items())),
        untied=plan.untied,
        notes=plan.notes,
        base_sha256=made.base_sha256,
        linked=made.linked,
        kept=made.kept,
    )


def receipt_bytes(receipt: Receipt) -> bytes:
    """The receipt as it is written."""
    return (json.dumps(to_json(receipt), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _built_with() -> str:
    """The BLAS that numpy names itself, for one that cannot be asked (Accelerate, a system library)."""
    config = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"] if isinstance(config, dict) else {}
    return " ".join(str(blas[key]) for key in ("name", "version") if blas.get(key)) or "unknown BLAS"


def _name(folder: Path) -> str:
    """The folder's name, or id and revision of a snapshot in the Hub's cache: models--ORG--NAME/snapshots/REVISION."""
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name}"
    return folder.name
