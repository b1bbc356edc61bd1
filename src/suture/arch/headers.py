"""What the names of a checkpoint alone tell of a model whose class Transformers does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from suture.values import Arch, Json, Kind, Param, Part, TensorInfo, Tie

_EMBEDDINGS = ("embed", "wte", "word_embeddings")
_INPUTS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_FLAG = "tie_word_embeddings"


def read_headers(config: Json, tensors: Mapping[str, TensorInfo]) -> Arch:
    """Params are the tensors themselves; a tie is seen only where the names say which tensors it joins."""
    params = {n: Param(n, tensors[n].shape, _kind(tensors[n])) for n in sorted(tensors)}
    inputs = [n for n in params if n.endswith(_INPUTS)]
    heads = [n for n in params if n.endswith(_HEADS)]
    embedding = inputs[0] if len(inputs) == 1 else None
    head = heads[0] if len(heads) == 1 else None
    flags = tuple(_flags(config))
    ties: tuple[Tie, ...] = ()
    if flags and embedding and len(heads) <= 1:
        members = (embedding, head or "lm_head.weight")
        ties = (Tie(members, separable=False, why="the code of this model class is not known to Transformers"),)
    return Arch(
        model_class=_class_name(config),
        source="headers",
        params=params,
        parts=tuple(Part(n, n) for n in params),
        ties=ties,
        tie_flags=flags if ties else (),
        input_embedding=embedding.removesuffix(".weight") if embedding else None,
        output_embedding=head.removesuffix(".weight") if head else None,
    )


def _kind(tensor: TensorInfo) -> Kind:
    if len(tensor.shape) < 2:
        return "Other"
    is_embedding = len(tensor.shape) == 2 and any(word in tensor.name for word in _EMBEDDINGS)
    return "Embedding" if is_embedding else "Unknown"


def _flags(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths where the config says "tied"."""
    found: list[tuple[str, ...]] = []
    for key in sorted(value) if isinstance(value, Mapping) else ():
        found += [(*path, key)] if key == _FLAG and value[key] is True else _flags(value[key], (*path, key))
    return found


def _class_name(config: Json) -> str:
    names = config.get("architectures")
    if isinstance(names, (list, tuple)) and names:
        return str(names[0])
    return str(config.get("model_type", "unknown"))
