"""ModelOpt's 8-bit floats, and experts in 4 bits beside FP8, quantised anew."""

import numpy as np
import pytest
import torch
from packed_cases import random_bytes, stored, uniform
from requantize_cases import W, quantized, same_values

from suture.formats.quantized import fp8, modelopt

E4M3 = torch.float8_e4m3fn
SCALE = "m.q_proj.weight_scale"


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * 0.02


def library(name):
    """A module of modelopt.torch.quantization.qtensor."""
    return pytest.importorskip(f"modelopt.torch.quantization.qtensor.{name}")


@pytest.mark.parametrize(
    ("scales", "how"),
    [((), {}), ((96,), {"axis": 0}), ((1, 2), {"block_sizes": {0: 128, 1: 128}})],
    ids=["tensor", "rows", "blocks"],
)
def test_fp8_is_modelopts(tmp_path, scales, how):
    tensor, values = library("fp8_tensor").FP8QTensor, normal(96, 256)
    whole, wanted = tensor.quantize(values, **how)
    tensors = {W: random_bytes(96, 256).view(E4M3), SCALE: uniform(*scales)}
    with stored(tmp_path, tensors, {"quant_method": "modelopt"}) as given:
        parts, *_ = quantized(given, modelopt.SCHEME, values.numpy())
    # One division there, a reciprocal and a product here: the last bit of a scale can differ, and with it a few codes.
    assert np.allclose(parts["scales"].reshape(-1), wanted.reshape(-1).numpy(), rtol=2e-7)
    codes = whole._quantized_data[:96].view(torch.uint8).reshape(-1).numpy()
    assert np.mean(parts["codes"] != codes) < 1e-3


def test_mxfp8_is_modelopts(tmp_path):
    tensor, values = library("mxfp8_tensor").MXFP8QTensor, normal(48, 96)
    values[5] = 0
    whole, wanted = tensor.quantize(values)
    tensors = {W: random_bytes(48, 96).view(E4M3), SCALE: random_bytes(48, 3)}
    with stored(tmp_path, tensors, {"quant_method": "modelopt", "quant_algo": "MXFP8"}) as given:
        parts, *_ = quantized(given, modelopt.SCHEME, values.numpy())
    some = np.abs(values.numpy()).reshape(48, 3, 32).max(-1).reshape(-1) > 0  # the scale of zeros is anybody's
    assert np.array_equal(parts["scales"][some], wanted.reshape(-1).numpy()[some])
    assert np.array_equal(parts["codes"], whole._quantized_data.view(torch.uint8).reshape(-1).numpy())


def test_experts_of_four_bits_give_their_own_values_back(tmp_path):
    """The largest code of every block is 6, so that its power of two comes out again."""
    name, codes = "m.experts.down_proj", random_bytes(2, 64, 64)
    codes[:, ::32, ::16] = 0x77
    powers = torch.randint(100, 140, (2, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    tensors = {name: codes.view(torch.int8), f"{name}_scale_inv": powers.view(torch.float8_e8m0fnu)}
    with stored(tmp_path, tensors, {"weight_block_size": [32, 32]}) as given:
        parts, *_ = quantized(given, fp8.SCHEME, name=name)
        assert same_values(given, fp8.SCHEME, name)
    assert np.array_equal(parts["scales"], powers.reshape(-1).numpy())
