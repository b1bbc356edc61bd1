"""Weights quantised anew: what the libraries' own quantisers give, and nothing new for what was a code already."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from hypothesis import given
from hypothesis import strategies as st
from packed_cases import random_bytes, stored, uniform
from requantize_cases import quantized, same_values
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from suture.errors import FormatError, UsageError
from suture.formats.quantized import bitsandbytes4, fbgemm_fp8, fp8, modelopt, mxfp4
from suture.formats.quantized.requantize import dequantized, libraries
from suture.formats.quantized.small_floats import values_of
from suture.formats.quantized.small_floats_encode import KINDS, nearest

W = "m.q_proj.weight"
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def normal(*shape, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
def test_nearest_is_torchs(dtype):
    name = {E4M3: "F8_E4M3"}.get(dtype, "F8_E5M2")
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0)).int()
    codes = torch.from_numpy(values_of(name)[: KINDS[name].largest + 1].copy())
    ties = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([bits.view(torch.float32), normal(50_000) * 500, codes, ties, -ties, -codes])
    x = x[x.abs() <= codes.max()]
    assert np.array_equal(nearest(x.numpy(), name), x.to(dtype).view(torch.uint8).numpy())


def test_what_passes_the_largest_is_the_largest():
    x = np.array([449, 1e30, np.inf, -np.inf, 6.5, -7], np.float32)
    assert nearest(x, "F8_E4M3").tolist()[:4] == [0x7E, 0x7E, 0x7E, 0xFE]
    assert nearest(x, "E2M1").tolist() == [7, 7, 7, 15, 7, 15]
    assert nearest(np.array([np.nan], np.float32), "F8_E4M3").tolist() == [0x7F]


@given(st.floats(-8, 8, width=32))
def test_four_bits_are_the_nearest(x):
    values = values_of("E2M1")
    code = int(nearest(np.array([x], np.float32), "E2M1")[0])
    off = np.abs(values.astype(np.float64) - x)
    assert off[code] == off.min()
    ties = [k for k in range(16) if off[k] == off.min() and values[k] != values[code]]
    assert not ties or code % 2 == 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"scale_fmt": "ue8m0"}, {"weight_block_size": [64, 32]}, {"weight_block_size": None}],
    ids=["blocks", "powers", "smaller", "tensor"],
)
@pytest.mark.parametrize("shape", [(256, 384), (3, 128, 256)])
def test_fp8_is_transformers(tmp_path, settings, shape):
    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config(**settings))
    before = Fp8Quantize(quantizer).convert({W: normal(*shape)})
    values = normal(*shape, seed=4)
    values.view(-1)[:100] = 0
    after = Fp8Quantize(quantizer).convert({W: values})
    with stored(tmp_path, before, settings) as given:
        found, *_ = quantized(given, fp8.SCHEME, values.reshape(-1, shape[-1]).numpy())
    scales = after["m.q_proj.weight_scale_inv"].reshape(-1)
    wanted = scales.view(torch.uint8) if settings.get("scale_fmt") else scales
    assert np.array_equal(found["scales"], wanted.numpy())
    assert np.array_equal(found["codes"], after[W].view(torch.uint8).reshape(-1).numpy())


@pytest.mark.parametrize(
    ("weight", "scales", "settings"),
    [
        ((200, 130), uniform(2, 2), {}),
        ((200, 130), uniform(2, 2).bfloat16(), {}),
        ((7, 5), uniform(1), {"weight_block_size": None}),
        ((3, 7, 5), uniform(3), {"weight_block_size": None}),
        ((3, 7, 6), uniform(), {"weight_block_size": None}),
    ],
)
def test_fp8_of_any_shape_is_as_near_as_it_can_be(tmp_path, weight, scales, settings):
    tensors = {W: random_bytes(*weight).view(E4M3), "m.q_proj.weight_scale_inv": scales}
    values = normal(*weight).reshape(-1, weight[-1]).numpy()
    with stored(tmp_path, tensors, settings) as given:
        parts, _, info, packed = quantized(given, fp8.SCHEME, values)
        shaped = {r: (0, x.reshape(packed.parts[r].shape)) for r, x in parts.items()}
        after = dequantized(info, packed, given.read, len(values), shaped)
    assert np.abs(after - values).max() <= np.abs(values).max() / 448 * 16 * 1.01
    assert np.linalg.norm(after - values) < 0.03 * np.linalg.norm(values)


def test_fbgemm_has_a_scale_for_each_output(tmp_path):
    tensors = {W: random_bytes(9, 48).view(E4M3), f"{W}_scale": uniform(9, 1)}
    values = normal(9, 48).numpy()
    with stored(tmp_path, tensors) as given:
        parts, *_ = quantized(given, fbgemm_fp8.SCHEME, values)
    assert np.allclose(parts["scales"], np.abs(values).max(axis=1) / 448, rtol=1e-6)


def test_mxfp4_gives_its_own_values_back(tmp_path):
    """All codes; scales of blocks whose largest code is 6 are the same, others can be smaller for the same values."""
    name = "m.experts.down_proj"
    scales = torch.randint(100, 140, (3, 10, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with stored(tmp_path, {f"{name}_blocks": random_bytes(3, 10, 2, 16), f"{name}_scales": scales}) as given:
        assert same_values(given, mxfp4.SCHEME, name)


def test_mxfp4_by_the_papers_formula(tmp_path):
    name, values = "m.experts.down_proj", normal(2, 64, 5).numpy()
    values[0, :32, 0] = 0
    tensors = {f"{name}_blocks": random_bytes(2, 5, 2, 16), f"{name}_scales": random_bytes(2, 5, 2)}
    with stored(tmp_path, tensors) as given:
        parts, *_ = quantized(given, mxfp4.SCHEME, values.reshape(-1, 5), name)
    codes, scales = parts["codes"].reshape(2, 5, 2, 16), parts["scales"].reshape(2, 5, 2)
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for e, o, g in np.ndindex(2, 5, 2):
        block = values[e, 32 * g : 32 * g + 32, o].astype(np.float64)
        if not block.any():
            assert not (codes[e, o, g] & 0x77).any()
            continue
        shared = int(np.floor(np.log2(np.abs(block).max()))) - 2
        assert scales[e, o, g] == shared + 127
        for i, x in enumerate(block / 2.0**shared):
            code = int(codes[e, o, g, i // 2]) >> 4 * (i % 2) & 15
            off = [abs(min(abs(x), 6) - value) for value in e2m1]
            assert off[code & 7] == min(off)
            assert code >> 3 == (x < 0)


def nvfp4(values, second):
    """By the formula, in numpy's float64, as its own implementation."""
    groups = values.astype(np.float64).reshape(-1, 16)
    scales = torch.from_numpy(np.abs(groups).max(axis=1) / 6 / second).float().clamp(max=448).to(E4M3)
    return groups, scales


def test_nvfp4_by_the_formula(tmp_path):
    values, second = normal(9, 64).numpy(), 0.02 * 5 / (6 * 448)
    tensors = {
        W: random_bytes(9, 32),
        "m.q_proj.weight_scale": random_bytes(9, 4).view(E4M3),
        "m.q_proj.weight_scale_2": torch.tensor(second),
    }
    settings = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    with stored(tmp_path, tensors, settings) as given:
        parts, *_ = quantized(given, modelopt.SCHEME, values)
    groups, scales = nvfp4(values, np.float32(second))
    assert np.array_equal(parts["scales"], scales.view(torch.uint8).numpy())
    codes = np.stack([parts["codes"] & 15, parts["codes"] >> 4], -1).reshape(groups.shape)
    exact = groups / (scales.double().numpy()[:, None] * np.float64(np.float32(second)))
    off = np.abs(values_of("E2M1")[None, None].astype(np.float64) - exact[..., None])
    assert np.take_along_axis(off, codes[..., None].astype(int), -1)[..., 0] == pytest.approx(off.min(-1), abs=1e-6)


def test_nvfp4_is_modelopts(tmp_path):
    tensor = pytest.importorskip("modelopt.torch.quantization.qtensor.nvfp4_tensor").NVFP4QTensor
    values = normal(32, 256)
    second = tensor.get_weights_scaling_factor_2(values)
    whole, scales, _ = tensor.quantize(values, 16, None, second, try_tensorrt=False)
    tensors = {W: random_bytes(32, 128), "m.q_proj.weight_scale": random_bytes(32, 16).view(E4M3)}
    tensors["m.q_proj.weight_scale_2"] = second
    with stored(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}) as given:
        parts, *_ = quantized(given, modelopt.SCHEME, values.numpy())
    assert np.array_equal(parts["scales"], scales.to(E4M3).view(torch.uint8).reshape(-1).numpy())
    theirs = whole._quantized_data.reshape(-1).numpy()
    # Minus zero counts as zero.
    for half in (0, 4):
        ours, other = (x >> half & 15 for x in (parts["codes"], theirs))
        assert np.array_equal(np.where(ours & 7, ours, 0), np.where(other & 7, other, 0))


def test_experts_in_nvfp4_are_refused(tmp_path):
    tensors = {
        W: random_bytes(3, 9, 32),
        "m.q_proj.weight_scale": random_bytes(3, 9, 4).view(E4M3),
        "m.q_proj.weight_scale_2": uniform(3),
    }
    with (
        stored(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}) as given,
        pytest.raises(UsageError, match="experts in NVFP4"),
    ):
        quantized(given, modelopt.SCHEME)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("size", [32, 64, 256, 4096])
@pytest.mark.parametrize("shape", [(64, 96), (33, 50), (7, 27), (128, 512)])
def test_four_bits_of_any_block(tmp_path, kind, nested, size, shape):
    before, state = quantize_4bit(normal(*shape), blocksize=size, quant_type=kind, compress_statistics=nested)
    tensors = {W: before, **{f"{W}.{k}": v for k, v in state.as_dict(packed=True).items()}}
    values = normal(*shape, seed=4)
    codes, other = quantize_4bit(values, blocksize=size, quant_type=kind)
    with stored(tmp_path, tensors) as given:
        found, _, _, packed = quantized(given, bitsandbytes4.SCHEME, values.numpy())
    assert np.array_equal(found["codes"], codes.reshape(-1).numpy())
    scales = found["absmax"]
    if nested:
        outer = np.repeat(found["nested_absmax"], 256)[: len(scales)]
        scales = state.state2.code.numpy()[scales] * outer + np.float32(packed.settings["offset"])
        assert np.allclose(scales, other.absmax.numpy(), rtol=0.05)
    else:
        assert np.array_equal(scales, other.absmax.numpy())


def test_a_size_that_the_library_does_not_know(tmp_path):
    before, state = quantize_4bit(normal(64, 64), blocksize=64, quant_type="nf4")
    tensors = {W: before, **{f"{W}.{k}": v for k, v in state.as_dict(packed=True).items()}}
    tensors[f"{W}.quant_map"] = tensors[f"{W}.quant_map"] + 1e-3
    with stored(tmp_path, tensors) as given, pytest.raises(FormatError, match="another map"):
        quantized(given, bitsandbytes4.SCHEME)


def test_libraries_are_named_with_their_versions(tmp_path):
    before, state = quantize_4bit(normal(64, 64), blocksize=64, quant_type="nf4")
    tensors = {W: before, **{f"{W}.{k}": v for k, v in state.as_dict(packed=True).items()}}
    with stored(tmp_path, tensors) as given:
        packed = bitsandbytes4.SCHEME.find(given)[W].packed
    assert libraries([packed]) == f"bitsandbytes {importlib.import_module('bitsandbytes').__version__}"
