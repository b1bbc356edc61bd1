"""Weights as compressed-tensors stores them, written by its published layout, and what they mean by its formulas."""

from __future__ import annotations

import numpy as np
import torch
from packed_cases import random_bytes, uniform


def settings(*weights, status="compressed", **more):
    """A quantization_config with one group for each of these weights' arguments, a format among them."""
    groups = {
        f"group_{i}": {"format": args.get("format"), "weights": {k: v for k, v in args.items() if k != "format"}}
        for i, args in enumerate(weights)
    }
    return {"quant_method": "compressed-tensors", "quantization_status": status, "config_groups": groups, **more}


def pack(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Unsigned codes in int32 along the rows, written bit by bit."""
    digits = (codes[..., None] >> np.arange(bits)) & 1
    digits = digits.reshape(len(codes), -1)
    digits = np.pad(digits, ((0, 0), (0, -digits.shape[1] % 32))).reshape(len(codes), -1, 32)
    return torch.from_numpy((digits.astype(np.int64) << np.arange(32)).sum(-1).astype(np.uint32).view(np.int32))


def integers(bits=4, shape=(33, 64), size=16, symmetric=True, dtype=torch.bfloat16, name="a.q"):
    """Packed integers in groups of columns, and the weight that they mean, by the formula."""
    random = np.random.default_rng(bits)
    codes = random.integers(0, 1 << bits, shape)
    scales = uniform(shape[0], shape[1] // size).to(dtype)
    zeros = random.integers(0, 1 << bits, scales.shape) if not symmetric else np.full(scales.shape, 1 << bits - 1)
    tensors = {"weight_packed": pack(codes, bits), "weight_scale": scales, "weight_shape": torch.tensor(shape)}
    if not symmetric:
        tensors["weight_zero_point"] = pack(zeros.T, bits).T.contiguous()
    exact = (codes - zeros.repeat(size, 1)) * scales.double().numpy().repeat(size, 1)
    args = {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": size}
    expected = torch.from_numpy(exact).float().to(dtype)
    return {f"{name}.{kind}": value for kind, value in tensors.items()}, args, expected


def eight_bits(strategy, dtype=torch.bfloat16, zero=False):
    """Signed bytes, and the weight that they mean, by the formula."""
    codes = random_bytes(33, 40).view(torch.int8)
    down, across = {"tensor": (33, 40), "channel": (1, 40), "group": (1, 8), "block": (16, 24)}[strategy]
    grid = (-(-33 // down), -(-40 // across))
    scales = uniform(*grid).to(dtype)
    zeros = random_bytes(*grid, seed=3).view(torch.int8) if zero else torch.zeros(grid, dtype=torch.int8)

    def spread(values):
        return values.double().repeat_interleave(down, 0).repeat_interleave(across, 1)[:33, :40]

    expected = ((codes - spread(zeros)) * spread(scales)).float().to(dtype)
    tensors = {"a.q.weight": codes, "a.q.weight_scale": scales}
    if zero:
        tensors["a.q.weight_zero_point"] = zeros
    args = {"num_bits": 8, "symmetric": not zero, "strategy": strategy}
    args |= {"block": {"block_structure": "16x24"}, "group": {"group_size": 8}}.get(strategy, {})
    return tensors, args, expected


def changed(tensors, changes, name="a.q"):
    changed = {**tensors, **{f"{name}.{kind}": value for kind, value in changes.items()}}
    return {key: value for key, value in changed.items() if value is not None}
