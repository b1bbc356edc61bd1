"""torchao: what the library takes apart, and Transformers saves, is decoded as the library decodes it."""

from __future__ import annotations

import itertools
import json
import warnings

import pytest
import torch
from packed_cases import assert_same, random_bytes, uniform
from safetensors.torch import save_file
from torchao_cases import NAME, decoded, int4, tiles

from suture.formats.quantized.torchao import SCHEME
from suture.formats.safetensors import read_header

FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(scope="module")
def library():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchao", reason="the library that writes these files")
        from torchao.prototype.safetensors import safetensors_support
    return safetensors_support


def check(folder, library, *tensors):
    """Subclasses, by way of a file with the library's own metadata."""
    for tensor in tensors:
        parts, metadata = library.flatten_tensor_state_dict({NAME: tensor, "norm.weight": torch.ones(3)})
        save_file({name: part.contiguous() for name, part in parts.items()}, folder / "whole.safetensors", metadata)
        header = read_header(folder, "whole.safetensors").shard.metadata
        ours = decoded(folder, parts, header)
        assert ours.keys() == {NAME}
        assert_same(ours[NAME], tensor.dequantize())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(48, 64), (3, 16, 64)])
def test_int8_is_the_librarys(tmp_path, library, dtype, shape):
    from torchao.quantization import Int8Tensor, MappingType, PerGroup, PerRow, PerTensor

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for granularity, mapping in itertools.product((PerRow(), PerTensor(), PerGroup(16)), MappingType):
        if mapping.name in ("SYMMETRIC", "ASYMMETRIC"):
            one = Int8Tensor.from_hp(weight, granularity, mapping)
            check(tmp_path, library, one)
            one.zero_point, one.act_quant_scale = None, torch.ones(1)
            check(tmp_path, library, one)


@pytest.mark.parametrize("dtype", FLOATS)
def test_intx_is_the_librarys(tmp_path, library, dtype):
    from torchao.quantization import IntxUnpackedToInt8Tensor, MappingType

    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bits, block in itertools.product(range(1, 9), ((1, 64), (1, 8), (48, 64), (16, 32))):
        target = getattr(torch, f"int{bits}")
        one = IntxUnpackedToInt8Tensor.from_hp(weight, block, target, mapping_type=MappingType.ASYMMETRIC)
        check(tmp_path, library, one)
        # A zero in floats makes the difference inexact.
        one.zero_point = torch.randn(one.scale.shape, generator=torch.Generator().manual_seed(1)).to(dtype) * 3
        one.qdata = random_bytes(48, 64).view(torch.int8)
        check(tmp_path, library, one)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(48, 64), (3, 16, 64)])
def test_float8_is_the_librarys(tmp_path, library, dtype, shape):
    from torchao.quantization import Float8Tensor, PerRow, PerTensor

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for kind, granularity in itertools.product(
        (torch.float8_e4m3fn, torch.float8_e5m2), (PerRow(), PerTensor(), PerRow(dim=len(shape) - 2))
    ):
        one = Float8Tensor.from_hp(weight, kind, granularity)
        check(tmp_path, library, one)
        one.qdata = random_bytes(*shape).view(kind)
        one.scale = uniform(*shape[:-2], 8, 4)
        check(tmp_path, library, one)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("swizzled", [False, True])
def test_mx_is_the_librarys(tmp_path, library, dtype, swizzled):
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    for shape, kind in itertools.product(
        ((48, 64), (200, 192), (2, 128, 64)), (torch.float8_e4m3fn, torch.float8_e5m2, torch.float4_e2m1fn_x2)
    ):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        one = MXTensor.to_mx(weight, kind, 32, is_swizzled_scales=swizzled)
        one = MXTensor(one.qdata, one.scale, kind, 32, dtype, one.kernel_preference, None, swizzled)
        check(tmp_path, library, one)
        one.qdata = random_bytes(*one.qdata.shape).view(one.qdata.dtype)
        one.scale = random_bytes(*one.scale.shape, seed=1).view(torch.float8_e8m0fnu)
        check(tmp_path, library, one)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("swizzled", [False, True])
def test_nvfp4_is_the_librarys(tmp_path, library, dtype, swizzled):
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    for shape, of_all in (
        ((48, 64), None),
        ((200, 144), torch.tensor(0.0123)),
        ((2, 128, 64), torch.tensor(0.0123)),
        ((2, 128, 64), torch.tensor([0.1, 0.2]).reshape(2, 1, 1)),
    ):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        one = NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=of_all, is_swizzled_scales=swizzled)
        one = NVFP4Tensor(one.qdata, one.scale, 16, dtype, of_all, of_all, swizzled)
        check(tmp_path, library, one)
        one.qdata = random_bytes(*one.qdata.shape)
        one.scale = random_bytes(*one.scale.shape, seed=1).view(torch.float8_e4m3fn)
        check(tmp_path, library, one)


def test_four_bits_are_named_as_the_library_names_them(tmp_path, library):
    """Their values it has no code for on a CPU."""
    from torchao.quantization import Int4Tensor, Int4TilePackedTo4dTensor

    for kind, write in ((Int4Tensor, int4), (Int4TilePackedTo4dTensor, tiles)):
        tensors, metadata, expected = write()
        parts = {name.rpartition("_weight_")[2]: part for name, part in tensors.items()}
        one = kind(**parts, block_size=[1, 32], shape=expected.shape)
        theirs, header = library.flatten_tensor_state_dict({NAME: one})
        assert theirs.keys() == tensors.keys()
        assert json.loads(header[NAME])["_data"].items() >= json.loads(metadata[NAME])["_data"].items()
        assert_same(decoded(tmp_path, theirs, header)[NAME], expected)


def test_a_model_that_transformers_saves(tmp_path, library):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=32, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
        how = TorchAoConfig(Int8WeightOnlyConfig())
        model = LlamaForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.bfloat16, quantization_config=how)
        model.save_pretrained(tmp_path / "packed", max_shard_size="40KB")
    files = sorted(path.name for path in (tmp_path / "packed").glob("*.safetensors"))
    headers = [read_header(tmp_path / "packed", name) for name in files]
    assert len(headers) > 1
    saved = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    tensors, _ = library.flatten_tensor_state_dict(model.state_dict())
    assert tensors.keys() == {tensor.name for header in headers for tensor in header.tensors}
    metadata = {key: text for header in headers for key, text in header.shard.metadata.items()}
    ours = decoded(tmp_path, tensors, metadata, saved)
    assert len(ours) == 14
    for name, values in ours.items():
        assert_same(values, model.get_parameter(name).dequantize().detach())
    assert SCHEME.words(saved) == "torchao Int8WeightOnlyConfig"
