"""Weights as torchao stores them, written by its published layout, and what they mean by its formulas."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import packed_cases
import torch
from packed_cases import random_bytes, uniform

from suture.formats.quantized.torchao import SCHEME

NAME = "a.q.weight"


def decoded(folder, tensors, metadata, settings=None, **more):
    """All dense tensors of files whose headers say this."""
    scheme = replace(SCHEME, find=lambda given: SCHEME.find(replace(given, metadata=metadata)))
    return packed_cases.decoded(folder, scheme, tensors, settings, **more)


def described(kind, parts, **fields):
    """Tensors, and what a header says of them."""
    plain = {key: value for key, value in fields.items() if key != "dtypes"}
    dtypes = {key: {"_type": "torch.dtype", "_data": value} for key, value in fields.get("dtypes", {}).items()}
    entry = {"_type": kind, "_data": plain | dtypes, "_tensor_data_names": sorted(parts)}
    metadata = {NAME: json.dumps(entry), "norm.weight": '{"_type": "Tensor"}', "format": "pt"}
    metadata["tensor_names"] = json.dumps([NAME, "norm.weight"])
    return {f"a.q._weight_{part}": tensor for part, tensor in parts.items()}, metadata


def int8(shape=(33, 48), block=(1, 16), dtype="bfloat16", kind="Int8Tensor"):
    """(code − zero) · scale."""
    codes, grid = random_bytes(*shape).view(torch.int8), [n // m for n, m in zip(shape, block, strict=True)]
    scale, zero = uniform(*grid), random_bytes(*grid, seed=2).view(torch.int8)
    tensors, metadata = described(
        kind, {"qdata": codes, "scale": scale, "zero_point": zero}, block_size=list(block), dtypes={"dtype": dtype}
    )
    x = codes.double() - spread(zero, block)
    return tensors, metadata, (x * spread(scale, block)).float().to(getattr(torch, dtype))


def spread(values, block):
    for axis, size in enumerate(block):
        values = values.repeat_interleave(size, axis)
    return values.double()


def int4(shape=(33, 64), size=32, dtype=torch.bfloat16, before=None):
    """code · scale + zero, two codes in a byte."""
    codes = random_bytes(*shape) % 16
    scale = uniform(shape[-1] // size, shape[-2]).expand(*shape[:-2], -1, -1).to(dtype)
    zero = uniform(shape[-1] // size, shape[-2], seed=3).expand(*shape[:-2], -1, -1).to(dtype)
    parts = {"qdata": (codes[..., ::2] | codes[..., 1::2] << 4).view(torch.int8), "scale": scale, "zero_point": zero}
    if before is not None:
        parts["act_pre_scale"] = before
    block = [*[1] * (len(shape) - 1), size]
    tensors, metadata = described("Int4Tensor", parts, block_size=block, shape=list(shape))
    q = codes.double() - 16 * (codes > 7)
    turned = [values.double().transpose(-1, -2).repeat_interleave(size, -1) for values in (scale, zero)]
    return tensors, metadata, (q * turned[0] + turned[1]).to(dtype)


def tiles(shape=(33, 200), size=32):
    """code · scale + zero, the codes packed as each thread of the CUDA kernel packs them."""
    rows, cols = -(-shape[0] // 8) * 8, -(-shape[1] // 1024) * 1024
    codes = (random_bytes(rows, cols) % 16).numpy()
    pairs = codes[:, ::2] << 4 | codes[:, 1::2]
    packed = np.zeros((rows // 8, cols // 128, 32, 4), np.uint32)
    for n_tile, k_outer, t, inner in np.ndindex(*packed.shape):
        n0, base = n_tile * 8 + t // 4, (k_outer * 8 + inner * 2) * 8
        v = [int(pairs[n0, base + t % 4 + at]) for at in (0, 4, 8, 12)]
        low, high = [byte & 15 for byte in v], [byte >> 4 for byte in v]
        packed[n_tile, k_outer, t, inner] = sum(nibble << 4 * i for i, nibble in enumerate(high + low))
    both = torch.stack([uniform(cols // size, rows), uniform(cols // size, rows, seed=3)], -1).bfloat16()
    parts = {"qdata": torch.from_numpy(packed.view(np.int32)), "scale_and_zero": both}
    tensors, metadata = described("Int4TilePackedTo4dTensor", parts, block_size=[1, size], shape=list(shape))
    scale, zero = (both[:, :, i].double().T.repeat_interleave(size, 1) for i in (0, 1))
    exact = (torch.from_numpy(codes).double() - 8) * scale + zero
    return tensors, metadata, exact[: shape[0], : shape[1]].to(torch.bfloat16)


def changed(write, parts=None, fields=None, **entry):
    """A case with other parts, fields of its metadata, or other entries."""
    tensors, metadata, _ = write()
    tensors = tensors | {f"a.q._weight_{part}": tensor for part, tensor in (parts or {}).items()}
    said = json.loads(metadata[NAME])
    said["_data"] |= fields or {}
    metadata[NAME] = json.dumps(said | entry)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata


def small(kind="MXTensor"):
    """A weight of small floats, whose scales are those of its kind."""
    scale = torch.ones(128, 4).to(torch.float8_e8m0fnu if kind == "MXTensor" else torch.float8_e4m3fn)
    fields = {"orig_dtype": "bfloat16"} | ({"elem_dtype": "float4_e2m1fn_x2"} if kind == "MXTensor" else {})
    parts = {"qdata": random_bytes(128, 64), "scale": scale}
    return *described(kind, parts, block_size=32, is_swizzled_scales=False, dtypes=fields), None


def float8():
    parts = {"qdata": random_bytes(16, 64).view(torch.float8_e4m3fn), "scale": torch.ones(16, 1)}
    return *described("Float8Tensor", parts, block_size=[1, 64], dtypes={"dtype": "bfloat16"}), None
