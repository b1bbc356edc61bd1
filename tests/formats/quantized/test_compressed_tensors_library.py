"""compressed-tensors: what the library writes is decoded as the library decodes it."""

from __future__ import annotations

import itertools

import pytest
import torch
from compressed_tensors_cases import settings
from packed_cases import assert_same, decoded, names_of_parts, random_bytes

from suture.formats.quantized.compressed_tensors import SCHEME

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = ((24, 64), (33, 96), (9, 40))

INTEGERS = [
    {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": size}
    for bits, symmetric, (strategy, size) in itertools.product(
        range(1, 9), (True, False), (("group", 8), ("channel", None), ("tensor", None))
    )
]
BYTES = [
    {"num_bits": bits, "type": kind, "symmetric": symmetric, "strategy": strategy, **more}
    for (bits, kind, symmetric), (strategy, more) in itertools.product(
        ((8, "int", True), (8, "int", False), (4, "int", True), (8, "float", True)),
        (
            ("group", {"group_size": 8}),
            ("channel", {}),
            ("tensor", {}),
            ("block", {"block_structure": [16, 24]}),
        ),
    )
]
SMALL_FLOATS = [
    ("nvfp4-pack-quantized", {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    ("mxfp4-pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    ("mxfp6-pack-quantized", {"num_bits": 6, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    ("mxfp8-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
]


def from_library(compressor, args, shape, dtype):
    """What a compressor of the library makes of a random weight, and what it makes of that again."""
    pytest.importorskip("compressed_tensors", reason="the library that writes these files")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.initialize import initialize_module_for_quantization

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    module = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    initialize_module_for_quantization(module, scheme, force_zero_point=False)
    generator = torch.Generator().manual_seed(len(str(args)))
    state = {name: value.detach() for name, value in module.state_dict().items()}
    state["weight"] = torch.randn(shape, generator=generator).to(dtype)
    scale = state["weight_scale"]
    levels = 2 ** args["num_bits"] if args.get("type", "int") == "int" else 12
    state["weight_scale"] = (torch.rand(scale.shape, generator=generator) + 0.5).mul(4 / levels).to(scale.dtype)
    if args.get("scale_dtype"):
        state["weight_scale"] = torch.exp2(torch.randint(-4, 4, scale.shape, generator=generator).float()).to(dtype)
    if "weight_global_scale" in state:
        state["weight_global_scale"] = torch.tensor([123.4])
        state["weight_scale"] = (state["weight_scale"] * 123.4).to(torch.float8_e4m3fn).to(dtype)
    if "weight_zero_point" in state:
        low = 2 ** (args["num_bits"] - 1)
        state["weight_zero_point"] = torch.randint(-low, low, scale.shape, generator=generator).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(compressor)
    packed = compressor.compress(state, scheme)
    expected = compressor.decompress({k: v.clone() for k, v in packed.items()}, scheme)["weight"]
    return {f"a.q.{name}": value.contiguous() for name, value in packed.items()}, expected.detach()


@pytest.mark.parametrize("args", INTEGERS, ids=str)
def test_packed_integers_are_the_librarys(tmp_path, args):
    for shape, dtype in zip(SHAPES, FLOATS, strict=True):
        tensors, expected = from_library("pack-quantized", args, shape, dtype)
        config = settings(args, format="pack-quantized")
        assert_same(decoded(tmp_path, SCHEME, tensors, config)["a.q.weight"], expected)


@pytest.mark.parametrize("args", BYTES, ids=str)
def test_bytes_are_the_librarys(tmp_path, args):
    name = f"{args['type']}-quantized"
    for shape, dtype in zip(SHAPES, FLOATS, strict=True):
        tensors, expected = from_library(name, args, shape, dtype)
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(args, format=name))["a.q.weight"], expected)


@pytest.mark.parametrize(("name", "args"), SMALL_FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_small_floats_are_the_librarys(tmp_path, name, args, dtype):
    args = {"type": "float", **args}
    tensors, expected = from_library(name, args, (33, 96), dtype)
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(args, format=name))["a.q.weight"], expected)


@pytest.mark.parametrize(("name", "args"), SMALL_FLOATS)
def test_every_code_and_scale_is_the_librarys(tmp_path, name, args):
    pytest.importorskip("compressed_tensors", reason="the library that reads these files")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = {"type": "float", **args}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    n = 256 * args["group_size"]
    codes = random_bytes(16, n * args["num_bits"] // 8)
    state = {"weight_packed": codes, "weight_scale": torch.arange(256, dtype=torch.uint8).repeat(16, 1)}
    if name == "mxfp8-quantized":
        state["weight"] = state.pop("weight_packed").view(torch.float8_e4m3fn)
    of_all = [None]
    if "nvfp4" in name:
        state["weight_scale"] = state["weight_scale"].view(torch.float8_e4m3fn)
        of_all = [torch.tensor([123.4]), torch.tensor(123.4), torch.tensor([0.0])]  # ModelOpt's have no axis
    for value in of_all:
        if value is not None:
            state["weight_global_scale"] = value
        expected = BaseCompressor.get_value_from_registry(name).decompress(dict(state), scheme)["weight"]
        tensors = {f"a.q.{kind}": value for kind, value in state.items()}
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(args, format=name))["a.q.weight"], expected)


def test_a_model_of_several_formats_is_what_the_library_decompresses(tmp_path):
    pytest.importorskip("compressed_tensors", reason="the library that writes these files")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.int4, self.int8, self.fp8 = (torch.nn.Linear(64, 48, bias=False) for _ in range(3))
            self.kept = torch.nn.Linear(64, 48)

    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"}
    config = QuantizationConfig(
        config_groups={
            "a": {"targets": ["int4"], "weights": {"num_bits": 4, "group_size": 32, "symmetric": False}},
            "b": {"targets": ["int8"], "weights": {"strategy": "channel"}, "input_activations": activations},
            "c": {
                "targets": ["fp8"],
                "weights": {"type": "float", "strategy": "block", "block_structure": [32, 32]},
                "input_activations": {**activations, "type": "float", "strategy": "token", "dynamic": True},
            },
        },
        ignore=["kept"],
        quantization_status="frozen",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Model().to(torch.bfloat16)
    apply_quantization_config(model, config)
    for module in (model.int4, model.int8, model.fp8):
        args, scale = module.quantization_scheme.weights, module.weight_scale
        height, width = 48 // scale.shape[0], 64 // scale.shape[1]
        blocks = module.weight.detach().float().unflatten(0, (-1, height)).unflatten(2, (-1, width)).transpose(1, 2)
        values = calculate_qparams(blocks.amin((2, 3)), blocks.amax((2, 3)), args)
        module.weight_scale.data, module.weight_zero_point.data = values[0].to(scale.dtype), values[1].to(args.zp_dtype)
    model.int8.input_scale.data.fill_(0.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    saved = compressor.quantization_config.model_dump(mode="json")
    assert saved["format"] == "mixed-precision"
    tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
    ours = decoded(tmp_path, SCHEME, tensors, saved)
    compressor.decompress_model(model)
    assert ours.keys() == {"int4.weight", "int8.weight", "fp8.weight"}
    for name, values in ours.items():
        assert_same(values, model.get_parameter(name).detach())
    assert "int8.input_scale" in names_of_parts(tmp_path, SCHEME, tensors, saved)["int8.weight"]
