"""compressed-tensors: a weight that is quantised anew is what the library makes of the same values."""

import itertools

import numpy as np
import pytest
import torch
from compressed_tensors_cases import eight_bits, integers, settings
from packed_cases import random_bytes, stored, uniform
from requantize_cases import quantized, same_values

from suture.errors import UsageError
from suture.formats.quantized.compressed_tensors import SCHEME
from suture.formats.quantized.requantize import quantizer_of

NAME = "a.q.weight"
STRATEGIES = ("tensor", "channel", "group", "block")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def fp8(strategy, dtype=torch.bfloat16):
    """Every E4M3 but its NaN."""
    tensors, args, _ = eight_bits(strategy, dtype)
    codes = tensors[NAME].view(torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    return {**tensors, NAME: codes.view(torch.float8_e4m3fn)}, {**args, "type": "float"}


def nvfp4(of_all=2000.0):
    scales = (uniform(33, 4, low=1, high=400)).to(torch.float8_e4m3fn)
    tensors = {
        "weight_packed": random_bytes(33, 32),
        "weight_scale": scales,
        "weight_global_scale": torch.tensor(of_all),
    }
    args = {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group",
        "group_size": 16,
        "format": "nvfp4-pack-quantized",
    }
    return {f"a.q.{kind}": value for kind, value in tensors.items()}, args


def cases():
    """What can be quantised again: each with its arguments."""
    for strategy, dtype in itertools.product(STRATEGIES, FLOATS):
        yield eight_bits(strategy, dtype)[:2]
        yield fp8(strategy, dtype)
    yield nvfp4()


def values_of(shape):
    """Rows of many sizes; one of zeros."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * torch.logspace(-3, 1, shape[0])[:, None]
    x[7] = 0
    return x


@pytest.mark.parametrize(("tensors", "args"), list(cases()))
def test_the_library_gives_the_same(tmp_path, tensors, args):
    pytest.importorskip("compressed_tensors", reason="the library whose quantiser this is")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    own = QuantizationArgs(**{k: v for k, v in args.items() if k != "format"})
    scale, of_all = tensors["a.q.weight_scale"], tensors.get("a.q.weight_global_scale")
    with stored(tmp_path, tensors, settings(args)) as given:
        x = values_of(SCHEME.find(given)[NAME].info.shape)
        found, *_ = quantized(given, SCHEME, x.numpy(), NAME)
    down, across = len(x) // scale.shape[0], x.shape[1] // scale.shape[1]
    if "block_structure" in args:
        down, across = map(int, args["block_structure"].split("x"))
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % across, 0, -len(x) % down))
    blocks = padded.unflatten(0, (-1, down)).unflatten(2, (-1, across))
    if of_all is not None:
        own.scale_dtype = torch.float8_e4m3fn
    wanted, zero = calculate_qparams(blocks.amin((1, 3)), blocks.amax((1, 3)), own, of_all)
    wanted = wanted.to(scale.dtype)
    assert np.array_equal(found["scales"].view(np.uint8), wanted.contiguous().view(torch.uint8).numpy().reshape(-1))
    codes = quantize(x, wanted.float(), zero.float(), own, global_scale=of_all)
    if of_all is not None:
        from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

        codes = pack_fp4_to_uint8(codes)
    else:
        codes = codes.to(tensors[NAME].dtype)
    ours, theirs = found["codes"].view(np.uint8), codes.view(torch.uint8).numpy().reshape(-1)
    zeros = {0x80: 0} if args.get("type") == "float" else {}
    assert np.array_equal(without(ours, zeros), without(theirs, zeros))


def without(codes, other):
    """-0 is 0."""
    return np.where(codes == 0x80, 0, codes) if other else codes


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp8_whose_largest_value_is_the_largest_code_stays(tmp_path, strategy, dtype):
    tensors, args = fp8(strategy, dtype)
    tensors[NAME][:, ::4] = 448.0
    with stored(tmp_path, tensors, settings(args)) as given:
        assert same_values(given, SCHEME, NAME)


@pytest.mark.parametrize("of_all", [2000.0, 0.7])
def test_nvfp4_whose_largest_value_is_the_largest_code_stays(tmp_path, of_all):
    tensors, args = nvfp4(of_all)
    tensors["a.q.weight_packed"][:, ::8] = 0x77
    with stored(tmp_path, tensors, settings(args)) as given:
        assert same_values(given, SCHEME, NAME)


@pytest.mark.parametrize(
    ("tensors", "args"),
    [integers()[:2], integers(symmetric=False)[:2], eight_bits("channel", zero=True)[:2]],
    ids=["packed", "asymmetric", "zero-points"],
)
def test_other_forms_are_refused(tmp_path, tensors, args):
    with stored(tmp_path, tensors, settings(args)) as given:
        one = SCHEME.find(given)[NAME]
        with pytest.raises(UsageError, match="only symmetric int8, FP8 and NVFP4"):
            quantizer_of(one.packed).granule(one.info, one.packed)
