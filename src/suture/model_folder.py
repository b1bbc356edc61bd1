"""A finished model folder as it is, with nothing assumed to be whole or to agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from suture.stats import Stats
from suture.values import Arch, Json, TensorInfo


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files of a model folder say, each for itself."""

    folder: Path
    files: Mapping[str, int]  # every file below the folder → its size in bytes
    config: Json  # of config.json; empty where it cannot be read
    documents: Mapping[str, Json]  # the other JSON files right in the folder, those that can be read
    unreadable: Mapping[str, str]  # file → what is wrong with it
    headers: Mapping[str, tuple[TensorInfo, ...]]  # safetensors file → its tensors; adapters' files are not among them
    arch: Arch | None  # None where config.json or the weights do not tell
    vocabulary: Mapping[str, int] | None = None  # token → id, of the tokenizer in the folder
    same: Mapping[tuple[str, str], bool] = field(default_factory=dict)  # two tensors that may be tied → whether equal
    stats: Mapping[str, Stats] | None = None  # by tensor; None when only headers were read
