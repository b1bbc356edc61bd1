"""Tensors of a GGUF file → those of the Hugging Face model: their names, their shapes, and what has to be undone.

The experts of a layer lie in one tensor each for gate, up and down; the model's files have a tensor for each expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES
from suture.formats.files import quoted
from suture.formats.gguf.header import Stored
from suture.formats.quantized.base import Dense
from suture.formats.quantized.gguf import SCHEME, is_decodable
from suture.values import NOT_STORED, Json, Packed, TensorInfo

# Tensors that hold numbers of the config: see additions.
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

FILE = "model.safetensors"  # that the dense tensors would lie in

_EXPERTS = re.compile(r"blk\.\d+\.ffn_(gate|up|down)_exps\.weight")
_HEADS = re.compile(r"blk\.\d+\.attn_([qk])\.weight")
_PERMUTED = ("llama",)  # the architectures whose rows of q and k were interleaved
_SHIFTED = ("gemma2", "gemma3")  # those to whose norms one was added


@dataclass(frozen=True, slots=True)
class Target:
    """What the tensors of a file become.

    Attributes:
        architecture: `general.architecture` of the file.
        config: of the model.
        dtype: of all dense tensors.
        names: tensors of the file → parameters of the model.
        shapes: of the parameters that the model's files hold.
    """

    architecture: str
    config: Json
    dtype: str
    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


def dense_tensors(stored: Iterable[Stored], target: Target, where: str) -> dict[str, Dense]:
    """The dense tensors by name, in the order of what they are decoded from.

    Raises:
        FormatError: a tensor is not the model's, is missing or misshapen, or of a type that cannot be decoded.
    """
    named = {tensor: _name(tensor, target, where) for tensor in stored if tensor.name not in FACTORS}
    _require_all({tensor.name for tensor in named}, target, where)
    found: dict[str, Dense] = {}
    decodable: dict[str, bool] = {}
    for tensor, name in named.items():
        if not decodable.setdefault(tensor.type, is_decodable(tensor.type)):
            expected = "a type that the package gguf decodes"
            _refuse(tensor, where, f"{tensor.type} values", expected, "Quantise the model to another type.")
        for one in _parts(tensor, name, target, where):
            if one.info.name in found:
                _refuse(tensor, where, f"{quoted(one.info.name)} is there twice", "each weight once")
            found[one.info.name] = one
    return found


def _name(tensor: Stored, target: Target, where: str) -> str:
    """The parameter that a tensor is, or a part of."""
    name = target.names.get(tensor.name)
    if name is None or name not in target.shapes:
        _refuse(
            tensor,
            where,
            f"a tensor that no {target.architecture} model of Transformers has",
            "the weights of the model, and no more",
            "Use the safetensors weights of the model.",
        )
    return name


def _parts(tensor: Stored, name: str, target: Target, where: str) -> Iterator[Dense]:
    shape = target.shapes[name]
    settings = {"type": tensor.type, **undone(tensor, target.architecture), **_heads(tensor, target, where)}
    if match := _EXPERTS.fullmatch(tensor.name):
        n_experts, *rest = tensor.shape
        fused = tensor.shape if match[1] == "down" else (n_experts, 2 * rest[0], *rest[1:])
        if fused != shape:
            _refuse(tensor, where, f"the shape {list(tensor.shape)}", f"a part of {quoted(name)}, {list(shape)}")
        size = tensor.n_bytes // n_experts
        for k in range(n_experts):
            begin = tensor.begin + k * size
            part = TensorInfo(f"{tensor.name}[{k}]", "U8", (size,), tensor.file, begin, begin + size)
            one = f"{name.rpartition('.')[0]}.{k}.{match[1]}_proj.weight"
            yield _dense(one, target.dtype, tuple(rest), Packed(SCHEME.name, {"data": part}, settings))
        return
    # A GGUF file drops axes of one row.
    if [n for n in tensor.shape if n > 1] != [n for n in shape if n > 1] or tensor.shape[-1] != shape[-1]:
        _refuse(tensor, where, f"the shape {list(tensor.shape)}", f"{list(shape)}, which follows from the keys")
    part = TensorInfo(tensor.name, "U8", (tensor.n_bytes,), tensor.file, tensor.begin, tensor.end)
    yield _dense(name, target.dtype, shape, Packed(SCHEME.name, {"data": part}, settings))


def undone(tensor: Stored, architecture: str) -> dict[str, float]:
    """What llama.cpp's converter added to a tensor, as settings of the scheme."""
    is_norm = architecture in _SHIFTED and tensor.name.endswith("norm.weight")
    return {"plus": 1.0} if is_norm else {}


def _heads(tensor: Stored, target: Target, where: str) -> dict[str, int]:
    """The heads inside which rows were interleaved, as settings of the scheme."""
    match = _HEADS.fullmatch(tensor.name)
    if target.architecture not in _PERMUTED or match is None:
        return {}
    heads = target.config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"]
    if type(heads) is not int or heads < 1 or tensor.shape[0] % (2 * heads):
        _refuse(tensor, where, f"{tensor.shape[0]} rows for {quoted(heads)} heads", "an even number of rows a head")
    return {"permute": heads}


def _dense(name: str, dtype: str, shape: tuple[int, ...], packed: Packed) -> Dense:
    n_bytes = DTYPES[dtype].bits // 8
    for size in shape:
        n_bytes *= size
    return Dense(TensorInfo(name, dtype, shape, FILE, NOT_STORED, NOT_STORED + n_bytes), packed)


def _require_all(given: set[str], target: Target, where: str) -> None:
    """A tensor for every parameter of the model; two for one that holds gate and up."""
    missing = sorted(name for name, param in target.names.items() if param in target.shapes and name not in given)
    if missing:
        raise FormatError(
            f"{len(missing)} tensors are missing: {', '.join(quoted(name) for name in missing[:3])}",
            where=where,
            expected=f"all weights of a {target.architecture} model of that size",
            do="Download the file again, or use the safetensors weights of the model.",
        )


def _refuse(tensor: Stored, where: str, found: str, expected: str, do: str = "Download the file again.") -> NoReturn:
    raise FormatError(found, where=f"{where}: {quoted(tensor.name)}", expected=expected, do=do)
