"""What the quantization_config of compressed-tensors says of weights: config_groups, each perhaps in its own format.

Which weight belongs to which group is not read from `targets` and `ignore`: the headers show it. A weight belongs to
the group that describes how it is stored; one that no group describes is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from suture.errors import FormatError
from suture.values import Json

# How weights lie in the files: the formats of the library, those alike put together.
PACKED, BYTES, DENSE = "pack-quantized", "naive-quantized", "dense"
NVFP4, MXFP4, MXFP6, MXFP8 = "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized"
_SAME: Mapping[str, str] = {"int-quantized": BYTES, "float-quantized": BYTES}
_LAYOUTS = (PACKED, BYTES, DENSE, NVFP4, MXFP4, MXFP6, MXFP8)
_ANY = ("mixed-precision", "fakequant", None)  # the groups say it, or nobody does
_SPARSE = ("sparse-bitmask", "sparse-24-bitmask", "marlin-24")
_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_MAX_GROUPS = 256
_WHERE = "config.json: quantization_config"


@dataclass(frozen=True, slots=True)
class Group:
    """How the weights of a config group are quantised.

    Attributes:
        layouts: how they may lie in the files.
        kind: "int" or "float".
        width: columns of a group or a block; 0 where all columns of a row share a scale.
        height: rows of a block; 1 where each row has its own scales, 0 where all share one.
    """

    layouts: tuple[str, ...]
    kind: str
    bits: int
    symmetric: bool
    strategy: str
    width: int
    height: int

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of the scales of a matrix. Groups that do not divide its columns are no grid: (0, 0)."""
        rows, cols = shape
        if "group" in self.strategy and cols % self.width:
            return 0, 0
        return (-(-rows // self.height) if self.height else 1), (-(-cols // self.width) if self.width else 1)

    def __str__(self) -> str:
        blocks = f"blocks of {self.height} × {self.width}" if self.strategy == "block" else f"groups of {self.width}"
        return f"{self.kind}{self.bits}, " + (blocks if self.width else f"a scale for each {self.strategy}")


def groups_of(settings: Json) -> tuple[Group, ...]:
    """The distinct groups whose weights are quantised.

    Raises:
        FormatError: a setting is malformed or unknown, or says that weights alone are not the model.
    """
    top = _format(settings, "")
    _refuse_more(settings)
    groups = settings.get("config_groups") or {}
    if not isinstance(groups, Mapping) or len(groups) > _MAX_GROUPS:
        _wrong("config_groups", groups, f"at most {_MAX_GROUPS} groups, by name")
    found: dict[Group, None] = {}
    for name, scheme in groups.items():
        where = f"config_groups.{name}"
        if not isinstance(scheme, Mapping):
            _wrong(where, scheme, "what its weights are quantised to, as every saved config says")
        if scheme.get("weights") is not None:
            own = _format(scheme, f"{where}.")
            found[_group(scheme["weights"], _layouts(own if own is not None else top), f"{where}.weights")] = None
    return tuple(found)


def words(settings: Json) -> str:
    """Such as "compressed-tensors int4, groups of 128"."""
    try:
        described = "; ".join(sorted({str(group) for group in groups_of(settings)}))
    except FormatError:
        described = ""
    return f"compressed-tensors {described}".rstrip()


def _format(settings: Mapping[str, Any], where: str) -> str | None:
    name = settings.get("format")
    if name in _SPARSE:
        _wrong(f"{where}format", name, f"one of {', '.join(_LAYOUTS)}: sparse weights are not read")
    if name not in (*_LAYOUTS, *_SAME, *_ANY):
        _wrong(f"{where}format", name, f"one of {', '.join((*_LAYOUTS, *_SAME))}")
    return name


def _layouts(name: str | None) -> tuple[str, ...]:
    return _LAYOUTS if name in _ANY else (_SAME.get(str(name), str(name)),)


def _refuse_more(settings: Json) -> None:
    """What changes the model beside its quantised weights."""
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, DENSE):
        _wrong("sparsity_config.format", sparsity["format"], f"{DENSE}: sparse weights are not read")
    transform = settings.get("transform_config")
    if isinstance(transform, Mapping) and (places := _transformed(transform)):
        _wrong("transform_config", ", ".join(places), "weights only: what else is rotated is no part of any weight")


def _transformed(transform: Mapping[str, Any]) -> list[str]:
    """What is rotated beside weights: these are stored as they are after the rotation."""
    groups = transform.get("config_groups") or {}
    schemes = groups.values() if isinstance(groups, Mapping) else [groups]
    lists = [scheme.get("apply") if isinstance(scheme, Mapping) else None for scheme in schemes]
    applied = [one for some in lists for one in (some if isinstance(some, list) else [some])]
    places = {str(one.get("location") if isinstance(one, Mapping) else one) for one in applied}
    return sorted(places - {"weight_input", "weight_output"})


def _group(weights: Any, layouts: tuple[str, ...], where: str) -> Group:
    if not isinstance(weights, Mapping):
        _wrong(where, weights, "num_bits, type, strategy …")
    kind, symmetric = str(weights.get("type", "int")).lower(), weights.get("symmetric", True)
    if kind not in ("int", "float"):
        _wrong(f"{where}.type", kind, "int or float")
    if not isinstance(symmetric, bool):
        _wrong(f"{where}.symmetric", symmetric, "true or false")
    bits = _number(weights.get("num_bits", 8), f"{where}.num_bits", 1, 8)
    group_size = weights.get("group_size")
    if group_size is not None:
        group_size = _number(group_size, f"{where}.group_size", -1, 1 << 30)
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "tensor" if group_size is None else "group" if group_size > 0 else "channel"
    strategy = str(strategy).lower()
    if strategy not in _STRATEGIES:
        _wrong(f"{where}.strategy", strategy, f"one of {', '.join(_STRATEGIES)}")
    width, height = 0, int(strategy != "tensor")
    if "group" in strategy:
        width = _number(group_size, f"{where}.group_size", 1, 1 << 30)
    elif strategy == "block":
        height, width = _block(weights.get("block_structure"), f"{where}.block_structure")
    return Group(layouts, kind, bits, symmetric, strategy, width, height)


def _block(value: Any, where: str) -> tuple[int, int]:
    """[rows, columns], or in old configs "128x128"."""
    sizes = value.split("x") if isinstance(value, str) else value
    if isinstance(value, str):
        sizes = [int(size) if size.isascii() and size.isdigit() and len(size) < 10 else size for size in sizes]
    if not isinstance(sizes, list) or len(sizes) != 2:
        _wrong(where, value, "two numbers")
    return _number(sizes[0], where, 1, 1 << 30), _number(sizes[1], where, 1, 1 << 30)


def _number(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high or not value:
        _wrong(where, value, f"a number from {low} to {high}")
    return int(value)


def _wrong(where: str, found: Any, expected: str) -> NoReturn:
    raise FormatError(f"{where} is {str(found)[:120]!r}", where=_WHERE, expected=expected)
