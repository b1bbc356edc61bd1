"""Quantised checkpoints, read as the dense models that they stand for. One file a scheme.

`unpack` replaces, in the tensor table of a checkpoint, each packed weight with the dense tensor that it means, and
takes `quantization_config` out of the config. All that comes after (architecture, rules, plans, kernels, verification)
sees a dense model; only a reader that knows `Checkpoint.packed` decodes.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES
from suture.formats.files import inside
from suture.formats.jsonfile import read_json_object
from suture.formats.model_config import at_every_level
from suture.formats.quantized.base import Dense, Given, Read, Rows, Scheme, Shapes
from suture.values import Checkpoint, Json, Packed, Quantization, TensorInfo

__all__ = ["Dense", "Given", "Read", "Rows", "Scheme", "open_rows", "scheme_of", "unpack"]

KEY = "quantization_config"
# quant_method of the config → the files of this folder that know its weights.
METHODS: Mapping[str, tuple[str, ...]] = {
    "awq": ("awq",),
    "bitsandbytes": ("bitsandbytes4", "bitsandbytes8"),
    "compressed-tensors": ("compressed_tensors",),
    "fbgemm_fp8": ("fbgemm_fp8",),
    "fp8": ("fp8",),
    "gptq": ("gptq",),
    "hqq": ("hqq",),
    "modelopt": ("modelopt",),
    "mxfp4": ("mxfp4",),
    "quanto": ("quanto",),
    "torchao": ("torchao",),
}
# Files beside config.json that describe the weights where it says nothing → quant_method.
_QUANTO_MAP = "quanto_qmap.json"  # module → what its weights and activations are
DESCRIPTIONS: Mapping[str, str] = {
    _QUANTO_MAP: "quanto",
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
_OLD_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}  # in quant_config.json
# Classes made of Conv1D: what GPTQ stores is their weight as it is, and a square one would not tell.
_TRANSPOSED = ("gpt2", "imagegpt", "openai-gpt", "decision_transformer", "clvp")


def open_rows(info: TensorInfo, packed: Packed, read: Read) -> Rows:
    """A function that decodes rows of a dense tensor: see `Scheme.open`."""
    return scheme_of(packed.scheme).open(info, packed, read)


def unpack(checkpoint: Checkpoint, read: Read, shapes: Callable[[Json], Shapes] | None = None) -> Checkpoint:
    """The dense model that a quantised checkpoint stands for; any other checkpoint as it is.

    A method that is not known, or has left no weight, leaves the checkpoint as it is as well: the rules speak of it.

    Args:
        shapes: gives those of the parameters of the class that a config names.

    Raises:
        FormatError: scales are missing or misshapen, or the config names methods that contradict each other.
    """
    methods = {_method(settings): settings for settings in _said(checkpoint)}
    if not methods or not methods.keys() <= METHODS.keys():
        return checkpoint
    if len(methods) > 1:
        raise FormatError(
            f"quantised by {' and by '.join(sorted(methods))}", where="config.json", expected="one method"
        )
    [(method, settings)] = methods.items()
    _refuse_transposed(method, checkpoint.config)
    config = _without(checkpoint.config)
    given = Given(
        tensors=checkpoint.tensors,
        settings=settings,
        dtype=_dtype(checkpoint.config),
        read=read,
        metadata={key: value for shard in checkpoint.shards for key, value in shard.metadata.items()},
        shapes=functools.cache(lambda: shapes(config) if shapes is not None else {}),
    )
    schemes = [scheme_of(name) for name in METHODS[method]]
    found: dict[str, Dense] = {}
    for scheme in schemes:
        found |= scheme.find(given)
    if not found:
        return checkpoint
    used = next((s for s in schemes if any(d.packed.scheme == s.name for d in found.values())), schemes[0])
    parts = {part.name for one in found.values() for part in one.packed.parts.values()}
    plain = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in parts}
    return replace(
        checkpoint,
        config=config,
        tensors=plain | {name: one.info for name, one in found.items()},
        packed={name: one.packed for name, one in found.items()},
        quantization=Quantization(method, used.words(settings), given.dtype, checkpoint.config),
    )


def _refuse_transposed(method: str, config: Json) -> None:
    if method == "gptq" and (kind := config.get("model_type")) in _TRANSPOSED:
        raise FormatError(
            f"GPTQ of {kind}, whose layers hold their weights the other way round",
            where="config.json",
            expected="a class with ordinary linear layers",
            do="Give the 16-bit original as BASE.",
        )


def scheme_of(name: str) -> Scheme:
    """The scheme of a file of this folder; none is imported before it is needed."""
    scheme: Scheme = importlib.import_module(f"{__name__}.{name}").SCHEME
    return scheme


def _said(checkpoint: Checkpoint) -> list[Json]:
    """quantization_config, at every level where there is one, or what stands for it."""
    found = at_every_level(checkpoint.config, KEY)
    said = [value for _, value in found if isinstance(value, Mapping) and value]
    file = next((name for name in DESCRIPTIONS if name in checkpoint.side_files), None)
    if said or file is None:
        return said
    settings = read_json_object(inside(checkpoint.folder, file))
    if file == _QUANTO_MAP:
        kinds = {str(module.get("weights")) for module in settings.values() if isinstance(module, Mapping)}
        settings = {"weights": kinds.pop()} if len(kinds) == 1 else {}
    return [{_OLD_NAMES.get(k, k): v for k, v in settings.items()} | {"quant_method": DESCRIPTIONS[file]}]


def _method(settings: Json) -> str:
    return str(settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else ""))


def _dtype(config: Json) -> str:
    """The model's dtype by its config; BF16 where it says nothing."""
    names = {dtype.torch_name: name for name, dtype in DTYPES.items() if dtype.computable}
    for key in ("dtype", "torch_dtype"):
        for _, value in at_every_level(config, key):
            if isinstance(value, str) and value in names:
                return names[value]
    return "BF16"


def _without(config: Json) -> Json:
    """The config without quantization_config, at every level."""
    dense = copy.deepcopy(dict(config))
    for path, _ in list(at_every_level(config, KEY)):
        level: dict[str, Any] = dense
        for name in path[:-1]:
            level = level[name]
        del level[path[-1]]
    return dense
