"""A Hugging Face model folder → Checkpoint: config, index and shard headers, checked against each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

from suture.errors import FormatError, InputError, PickleRefused
from suture.formats import hub, pickles
from suture.formats.files import inside, quoted
from suture.formats.jsonfile import read_json_object
from suture.formats.listing import ADAPTER_CONFIG, file_names, is_private, other_weights, side_files
from suture.formats.quantized import unpack
from suture.formats.reading import TensorReader
from suture.formats.safetensors import Header, read_header
from suture.values import Checkpoint, Json, TensorInfo

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<total>\d+)\.\w+$")
PICKLED = re.compile(r"^(pytorch_)?model(-\d+-of-\d+)?\.bin$")


@dataclass(frozen=True, slots=True)
class _Weights:
    """Names of the weight files, and what the index says of them (tensor → file) if there is one."""

    files: tuple[str, ...]
    index_file: str | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(
    source: str | Path, *, revision: str | None = None, allow_pickle: bool = False, need_weights: bool = True
) -> Checkpoint:
    """The model in a folder or on the Hub, from its config and its headers; no weight is read.

    Args:
        source: a folder, or the id of a Hub repository.
        revision: branch, tag or commit of the Hub repository.
        allow_pickle: convert `.bin` weights in a private folder first, which then is the checkpoint's folder.
        need_weights: when False, a folder without weight files gives a checkpoint without tensors.

    Raises:
        InputError: the source does not exist or cannot be read.
        FormatError: config, index or weights are malformed, incomplete, or contradict each other.
        PickleRefused: the only weights are pickled.
    """
    folder = hub.locate(source, revision, allow_pickle=allow_pickle, need_weights=need_weights)
    config = _read_config(folder)
    weights = _find_weights(folder)
    if weights is None and (pickled := _pickled_weights(folder)):
        if allow_pickle:
            folder = pickles.converted(folder, pickled)
            weights = _find_weights(folder)
        elif need_weights:
            raise _refused(folder, pickled)
    if weights is None:
        if need_weights:
            raise _no_weights(folder)
        weights = _Weights(())
    headers = [read_header(folder, name) for name in weights.files]
    tensors = _join(folder, headers)
    _check_index(folder, weights, tensors)
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=tensors,
        shards=tuple(header.shard for header in headers),
        index_file=weights.index_file,
        index_metadata=weights.metadata,
        side_files=side_files(folder),
    )


def read_dense(
    source: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    shapes: Callable[[Json], Mapping[str, tuple[int, ...]]] | None = None,
) -> Checkpoint:
    """The same as `read_checkpoint`; where its weights are quantised by a known method, the dense model they stand for.

    Args:
        source: also a GGUF file.
        shapes: gives those of the parameters of the class that a config names: few schemes do not store them.

    Raises:
        FormatError: also if scales are missing or misshapen.
    """
    if Path(source).suffix == ".gguf" and Path(source).expanduser().is_file():
        from suture.formats.gguf import read_gguf

        return read_gguf(Path(source).expanduser())
    checkpoint = read_checkpoint(source, revision=revision, allow_pickle=allow_pickle)
    with TensorReader(checkpoint.folder) as reader:
        return unpack(checkpoint, reader.read_into, shapes)


def base_on_disk(name: str) -> Checkpoint | None:
    """The model that a config names, if it lies on this disk: as a folder, or in the Hub's cache. Never downloads.

    The dense model, where its weights are quantised.
    """
    folder = hub.on_disk(name) if name else None
    try:
        return read_dense(folder) if folder is not None else None
    except InputError:
        return None


def _read_config(folder: Path) -> dict[str, Any]:
    names = file_names(folder)
    if CONFIG in names:
        return read_json_object(inside(folder, CONFIG))
    if ADAPTER_CONFIG in names:
        raise FormatError(
            f"{ADAPTER_CONFIG} but no {CONFIG}: this is an adapter",
            where=str(folder),
            expected="a base model",
            do="Give the base model first and the adapter second.",
        )
    raise FormatError(f"there is no {CONFIG}", where=str(folder), expected="a Hugging Face model folder")


def _find_weights(folder: Path) -> _Weights | None:
    """The weight files, as Transformers would choose them; None if there is no safetensors file for the model."""
    names = file_names(folder)
    candidates = [n for n in names if n.endswith(".safetensors") and not n.startswith(".") and not is_private(n)]
    shards = [n for n in candidates if re.match(r"model-\d+-of-\d+\.", n)]
    if INDEX in names:
        return _from_index(folder, candidates)
    if SINGLE in candidates:
        if shards:
            raise _two_sets(folder, SINGLE, shards[0])
        return _Weights((SINGLE,))
    files = [n for n in candidates if n.startswith("model")] or candidates
    _check_numbering(folder, files)
    return _Weights(tuple(files)) if files else None


def _from_index(folder: Path, candidates: Sequence[str]) -> _Weights | None:
    path = inside(folder, INDEX)
    index = read_json_object(path)
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise FormatError("weight_map is not a table of tensor name → file name", where=str(path))
    if not isinstance(metadata, dict):
        raise FormatError("metadata is not a table", where=str(path))
    files = sorted(set(weight_map.values()))
    if not files:
        raise FormatError(
            "weight_map names no tensor", where=str(path), do="Save the model again, or download it again."
        )
    for file in files:
        if "/" in file or not file.endswith(".safetensors"):
            raise FormatError(
                f"weight_map names the file {quoted(file)}",
                where=str(path),
                expected="a .safetensors file in the same folder",
                do="Do not use this folder unless you know who wrote it.",
            )
    present = set(candidates)
    missing = [file for file in files if file not in present]
    if missing and not present:
        return None
    if missing:
        raise _missing_shards(folder, missing[:5], len(missing))
    if SINGLE in present and SINGLE not in files:
        raise _two_sets(folder, SINGLE, INDEX)
    if unlisted := _unlisted_shards(files, present):
        raise FormatError(
            f"the index names no tensor of {quoted(unlisted[0])}",
            where=str(path),
            expected="tensors of every shard of the set",
            do="Save the model again, or download it again.",
        )
    return _Weights(tuple(files), INDEX, weight_map, metadata)


def _unlisted_shards(files: Iterable[str], present: Iterable[str]) -> list[str]:
    """Shards that are there and belong to the same numbered set as listed ones, but are not listed themselves."""
    listed = {file: (match["stem"], match["total"]) for file in files if (match := _SHARD.match(file))}
    sets = set(listed.values())
    found = ((file, _SHARD.match(file)) for file in sorted(present) if file not in listed)
    return [file for file, match in found if match and (match["stem"], match["total"]) in sets]


def _pickled_weights(folder: Path) -> list[str]:
    files = [name for name in file_names(folder) if PICKLED.match(name)]
    _check_numbering(folder, files)
    return files


def _check_numbering(folder: Path, files: Iterable[str]) -> None:
    """Shards named …-00001-of-00003… must all be there, counted from 1 or from 0."""
    groups: dict[tuple[str, int], dict[int, str]] = {}
    for file in files:
        if match := _SHARD.match(file):
            group = groups.setdefault((match["stem"], int(match["total"])), {})
            group[int(match["number"])] = file
    for (_, total), group in sorted(groups.items()):
        first = min(1, *group)
        absent = total - sum(1 for number in group if number < first + total)
        if absent > 0:
            numbers = islice((n for n in count(first) if n not in group), min(absent, 5))
            names = [_renumbered(min(group.values()), number) for number in numbers]
            raise _missing_shards(folder, names, absent)


def _renumbered(file: str, number: int) -> str:
    stem, _, rest = file.rpartition("-of-")
    width = len(stem) - len(stem.rstrip("0123456789"))
    return f"{stem[: len(stem) - width]}{number:0{width}d}-of-{rest}"


def _join(folder: Path, headers: Iterable[Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for tensor in header.tensors:
            if (other := tensors.setdefault(tensor.name, tensor)) is not tensor:
                raise FormatError(
                    f"the tensor {quoted(tensor.name)} is in {other.file} and in {tensor.file}",
                    where=str(folder),
                    expected="each tensor once",
                    do="Remove the files that do not belong to this model.",
                )
    return tensors


def _check_index(folder: Path, weights: _Weights, tensors: Mapping[str, TensorInfo]) -> None:
    """Index and headers must name the same tensors in the same files."""
    if weights.index_file is None:
        return
    listed = weights.weight_map
    absent = sorted(listed.keys() - tensors.keys())
    unlisted = sorted(tensors.keys() - listed.keys())
    moved = sorted(name for name in listed.keys() & tensors.keys() if listed[name] != tensors[name].file)
    complaints = [
        f"{len(names)} {what} ({', '.join(quoted(n) for n in names[:3])}{', …' if len(names) > 3 else ''})"
        for names, what in [
            (absent, "listed but in no file"),
            (unlisted, "in the files but not listed"),
            (moved, "listed in another file than they are in"),
        ]
        if names
    ]
    if complaints:
        raise FormatError(
            f"the index contradicts the headers: tensors {'; '.join(complaints)}",
            where=str(folder / weights.index_file),
            expected="the same tensors in the same files",
            do="Save the model again, or download it again.",
        )


def _missing_shards(folder: Path, names: Sequence[str], n_missing: int) -> FormatError:
    more = f" and {n_missing - len(names)} more" if n_missing > len(names) else ""
    return FormatError(
        f"weight files are missing: {', '.join(quoted(name) for name in names)}{more}",
        where=str(folder),
        do="Finish the download or the copy.",
    )


def _two_sets(folder: Path, one: str, other: str) -> FormatError:
    return FormatError(
        f"two sets of weights: {one} beside {other}",
        where=str(folder),
        expected="one set",
        do="Remove the set that is out of date.",
    )


def _refused(folder: Path, pickled: Sequence[str]) -> PickleRefused:
    return PickleRefused(
        f"the weights are pickled ({pickled[0]}), and opening a pickle can run code",
        where=str(folder),
        expected="model.safetensors",
        do="Use a revision with safetensors, or pass --allow-pickle: tensors are read, code never runs.",
    )


def _no_weights(folder: Path) -> FormatError:
    others = other_weights(folder)
    found = f"; there is {others[0]}, which is not read" if others else ""
    return FormatError(
        f"there are no weights{found}",
        where=str(folder),
        expected="model.safetensors or its shards and index",
        do=f"Finish the download: {INDEX} is there." if INDEX in file_names(folder) else "",
    )
