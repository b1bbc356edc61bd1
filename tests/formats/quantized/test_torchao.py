"""torchao: what a writer of its layout stores means what the formulas say."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from packed_cases import assert_same, random_bytes, stored, uniform
from torchao_cases import NAME, decoded, described, int4, int8, spread, tiles

from suture.formats.quantized.torchao import SCHEME


def test_every_kind_is_its_formula(tmp_path):
    for dtype, (shape, block), kind in itertools.product(
        ("bfloat16", "float32"),
        (((33, 48), (1, 16)), ((33, 48), (33, 48)), ((2, 12, 48), (1, 4, 24))),
        ("Int8Tensor", "IntxUnpackedToInt8Tensor"),
    ):
        tensors, metadata, expected = int8(shape, block, dtype, kind)
        # One file need not hold all parts.
        assert_same(decoded(tmp_path, tensors, metadata, apart=["a.q._weight_scale"])[NAME], expected)

    codes, scale = random_bytes(16, 256).view(torch.float8_e4m3fn), uniform(4, 2)
    fields = {"dtypes": {"dtype": "bfloat16"}, "block_size": [4, 128]}
    tensors, metadata = described("Float8Tensor", {"qdata": codes, "scale": scale}, **fields)
    expected = (codes.float() * spread(scale, (4, 128)).float()).bfloat16()
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], expected)

    codes, scale = random_bytes(16, 256).view(torch.float8_e5m2), random_bytes(16, 8, seed=1).clamp(90, 150)
    parts = {"qdata": codes, "scale": scale.view(torch.float8_e8m0fnu)}
    fields = {"dtypes": {"elem_dtype": "float8_e5m2", "orig_dtype": "bfloat16"}, "is_swizzled_scales": False}
    tensors, metadata = described("MXTensor", parts, block_size=32, **fields)
    powers = torch.exp2(scale.double() - 127).repeat_interleave(32, 1)
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], (codes.double() * powers).bfloat16())

    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes, scale = random_bytes(9, 64), random_bytes(9, 8, seed=1).clamp(1, 126).view(torch.float8_e4m3fn)
    nibbles = torch.stack([codes & 15, codes >> 4], -1).reshape(9, 128).long()
    values = torch.where(nibbles > 7, -sizes[nibbles & 7], sizes[nibbles & 7])
    parts = {"qdata": codes, "scale": scale, "per_tensor_scale": torch.tensor(0.25)}
    tensors, metadata = described("NVFP4Tensor", parts, block_size=16, dtypes={"orig_dtype": "float16"})
    expected = (values * (scale.float() * 0.25).repeat_interleave(16, 1)).half()
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], expected)


@pytest.mark.parametrize("shape", [(33, 64), (3, 8, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_four_bits_are_their_formula(tmp_path, shape, dtype):
    tensors, metadata, expected = int4(shape, dtype=dtype)
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], expected)


def test_sums_are_rounded_once(tmp_path):
    """5 · 1.65625 lies in the middle of two values of BF16: a zero that float32 would lose decides."""
    tensors, metadata, _ = int4()
    tensors["a.q._weight_qdata"] = torch.full((33, 32), 0x55, dtype=torch.int8)
    for zero, expected in ((2.0**-24, 8.3125), (0.0, 8.25), (-(2.0**-24), 8.25)):
        tensors["a.q._weight_scale"] = torch.full((2, 33), 1.65625).bfloat16()
        tensors["a.q._weight_zero_point"] = torch.full((2, 33), zero).bfloat16()
        assert_same(decoded(tmp_path, tensors, metadata)[NAME], torch.full((33, 64), expected).bfloat16())


@pytest.mark.parametrize("shape", [(33, 200), (8, 1024), (7, 64)])
def test_tiles_are_their_formula(tmp_path, shape):
    tensors, metadata, expected = tiles(shape)
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], expected)


def test_inputs_that_are_scaled_are_columns_that_are(tmp_path):
    before = uniform(64, low=0.5, high=2).bfloat16()
    plain = int4()[2]
    tensors, metadata, _ = int4(before=before)
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], plain.float() * before.float())
    tensors, metadata, plain = int8()
    before = uniform(1, 48, low=0.5, high=2)
    tensors["a.q._weight_act_pre_scale"] = before
    metadata[NAME] = metadata[NAME].replace('"qdata"', '"qdata", "act_pre_scale"')
    assert_same(decoded(tmp_path, tensors, metadata)[NAME], plain.float() * before)


def test_every_part_belongs_to_the_weight(tmp_path):
    tensors, metadata, _ = int8()
    tensors["a.q._weight_act_quant_scale"] = torch.ones(1)
    metadata[NAME] = metadata[NAME].replace('"qdata"', '"qdata", "act_quant_scale"')
    with stored(tmp_path, tensors | {"norm.weight": torch.ones(2), "b._my_scale": torch.ones(2)}) as given:
        [one] = SCHEME.find(replace(given, metadata=metadata)).values()
    assert {part.name for part in one.packed.parts.values()} == tensors.keys()


def test_words():
    assert SCHEME.words({}) == "torchao"
    assert SCHEME.words({"quant_type": "int4_weight_only"}) == "torchao int4_weight_only"
    assert SCHEME.words({"quant_type": {"default": [1]}}) == "torchao"
