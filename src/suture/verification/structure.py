"""The folder around the tensors: shards and index, nothing stale, nothing of the adapter, readable side files."""

from __future__ import annotations

import json
import re
from pathlib import Path

from suture.values import Adapter, Check, Checkpoint, Plan
from suture.verification import reading
from suture.verification.reading import INDEX, SINGLE, Stored

_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
_WEIGHTS = re.compile(
    r"(.*\.safetensors|(pytorch_model|model|consolidated).*\.(bin|pth|pt)|(tf_model|model).*\.h5|flax_model.*\.msgpack)"
)
_ADAPTER = re.compile(r"adapter_(config\.json|model.*)")


def check(folder: Path, stored: Stored, planned: frozenset[str]) -> tuple[Check, ...]:
    """Checks that hold for every merged folder. `planned` are side files that the plan puts there."""
    return (
        Check("weight files", not stored.problems, len(stored.files), "; ".join(stored.problems)),
        _index(stored),
        _shard_names(stored),
        _leftovers(folder, stored, planned),
        _json_files(folder),
    )


def check_planned(plan: Plan, checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> tuple[Check, ...]:
    """Checks of a folder that this plan wrote: headers, texts and side files byte for byte."""
    return _headers(plan, folder), _texts(plan, folder), _side_files(plan, checkpoint, adapter, folder)


def _index(stored: Stored) -> Check:
    """Index and headers name the same tensors in the same files, and the size is the sum of the tensors' bytes."""
    if stored.index is None:
        return Check("index", True, 0, "one file, no index")
    weight_map = stored.index["weight_map"]
    wrong = [f"{n} is not in {f}" for n, f in sorted(weight_map.items()) if _file_of(stored, n) != f]
    wrong += [f"{n} ({t.file}) is not in the index" for n, t in sorted(stored.tensors.items()) if n not in weight_map]
    metadata = stored.index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    n_bytes = sum(t.n_bytes for t in stored.tensors.values())
    if total is not None and total != n_bytes:
        wrong.append(f"metadata.total_size is {total}, the tensors have {n_bytes} bytes")
    return Check("index", not wrong, len(weight_map), _some(wrong))


def _file_of(stored: Stored, name: str) -> str | None:
    tensor = stored.tensors.get(name)
    return None if tensor is None else tensor.file


def _some(told: list[str]) -> str:
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def _shard_names(stored: Stored) -> Check:
    """Names that count shards count all of them."""
    found = [m for f in stored.files if (m := _SHARD.fullmatch(f))]
    numbers = sorted(int(m[2]) for m in found)
    totals = {int(m[3]) for m in found}
    wrong = [] if len(found) in (0, len(stored.files)) else ["only some file names count the shards"]
    first = min(1, min(numbers)) if numbers else 1  # some count from 0
    if found and (len(totals) != 1 or numbers != list(range(first, first + max(totals)))):
        wrong.append(f"shards {numbers} of {sorted(totals)}")
    return Check("shard names", not wrong, len(stored.files), "; ".join(wrong))


def _leftovers(folder: Path, stored: Stored, planned: frozenset[str]) -> Check:
    """No weights that the index does not name, and no adapter that a loader would apply a second time."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in planned)
    wrong = [f"{n} holds weights that are not part of this model" for n in names if _is_stale(n, stored)]
    wrong += [f"{n}: a loader would apply the adapter once more" for n in names if _ADAPTER.fullmatch(n)]
    named = set() if stored.index is None else set(stored.index["weight_map"].values())
    if stored.files == (SINGLE,) and named - {SINGLE}:
        wrong.append(f"{INDEX} names other files beside {SINGLE}: loaders choose one or the other")
    return Check("no other weights", not wrong, len(names), _some(wrong))


def _is_stale(name: str, stored: Stored) -> bool:
    return _WEIGHTS.fullmatch(name) is not None and name not in stored.files and not _ADAPTER.fullmatch(name)


def _json_files(folder: Path) -> Check:
    paths, wrong = sorted(folder.glob("*.json")), []
    for path in paths:
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            reading.require_sound(path, error)
            wrong.append(f"{path.name}: {error}")
    return Check("JSON files", not wrong, len(paths), _some(wrong))


def _headers(plan: Plan, folder: Path) -> Check:
    """Weight files begin with the planned header and have the planned size."""
    wrong = []
    for file in plan.files:
        path, header = folder / file.name, file.header.encode("latin-1")
        if not path.is_file():
            wrong.append(f"{file.name} is missing")
        elif path.stat().st_size != file.n_bytes:
            wrong.append(f"{file.name} has {path.stat().st_size} bytes, planned {file.n_bytes}")
        elif reading.beginning(path, len(header)) != header:
            wrong.append(f"{file.name}: another header than planned")
    return Check("weight files as planned", not wrong, len(plan.files), _some(wrong))


def _texts(plan: Plan, folder: Path) -> Check:
    wrong = [n for n, text in sorted(plan.texts.items()) if reading.beginning(folder / n, None) != text.encode()]
    return Check("generated files", not wrong, len(plan.texts), _some([f"{n} is not as planned" for n in wrong]))


def _side_files(plan: Plan, checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> Check:
    """Copied files have the bytes of their origin."""
    wrong = []
    for side in plan.side_files:
        origin = checkpoint.folder if side.origin == "base" else adapter.folder
        if not reading.same_file(origin / side.name, folder / side.name):
            wrong.append(f"{side.name} is not the {side.origin}'s")
    return Check("copied files", not wrong, len(plan.side_files), _some(wrong))
