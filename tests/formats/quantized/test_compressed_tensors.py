"""compressed-tensors: what a writer of its layout stores means what the formulas say, beside the right weight."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from compressed_tensors_cases import eight_bits, integers, pack, settings
from packed_cases import assert_same, decoded, names_of_parts, random_bytes, stored, uniform

from suture.errors import FormatError
from suture.formats.quantized.compressed_tensors import SCHEME


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_are_their_formula(tmp_path, bits, symmetric):
    for dtype, shape in itertools.product((torch.bfloat16, torch.float16), ((33, 64), (3, 16), (70, 48))):
        tensors, args, expected = integers(bits, shape, symmetric=symmetric, dtype=dtype)
        ours = decoded(tmp_path, SCHEME, tensors, settings(args), apart=[n for n in tensors if "scale" in n])
        assert_same(ours["a.q.weight"], expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_out_of_order(tmp_path, symmetric):
    tensors, args, _ = integers(symmetric=symmetric)
    order = np.random.default_rng(0).permutation(64)
    codes = tensors["a.q.weight_packed"].numpy().view(np.uint8)
    codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(33, 64)
    tensors["a.q.weight_packed"] = pack(codes[:, order], 4)
    tensors["a.q.weight_g_idx"] = torch.from_numpy(order // 16).int()
    in_order, _, expected = integers(symmetric=symmetric)
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(args))["a.q.weight"], expected[:, torch.from_numpy(order)])
    in_order["a.q.weight_g_idx"] = torch.full((64,), -1, dtype=torch.int32)
    assert_same(decoded(tmp_path, SCHEME, in_order, settings(args))["a.q.weight"], expected)


def test_packed_integers_with_zeros_as_they_are(tmp_path):
    """Those of whole matrices and of blocks are not packed."""
    codes, zero = np.random.default_rng(0).integers(0, 16, (33, 40)), torch.tensor([-5], dtype=torch.int8)
    scale = uniform(1).bfloat16()
    tensors = {"weight_packed": pack(codes, 4), "weight_scale": scale, "weight_shape": torch.tensor([33, 40])}
    tensors = {f"a.{kind}": value for kind, value in {**tensors, "weight_zero_point": zero}.items()}
    args = {"num_bits": 4, "symmetric": False, "strategy": "tensor"}
    expected = torch.from_numpy((codes - 8 + 5) * scale.double().numpy()).float().bfloat16()
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(args))["a.weight"], expected)
    for wrong in (zero.short(), zero.expand(33)):
        with pytest.raises(FormatError, match="weight_zero_point: I"):
            decoded(tmp_path, SCHEME, {**tensors, "a.weight_zero_point": wrong}, settings(args))


@pytest.mark.parametrize("strategy", ["tensor", "channel", "group", "block"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_are_their_formula(tmp_path, strategy, zero, dtype):
    tensors, args, expected = eight_bits(strategy, dtype, zero)
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(args, format="int-quantized"))["a.q.weight"], expected)


def test_floats_of_eight_bits_are_their_formula(tmp_path):
    codes = random_bytes(16, 256).view(torch.float8_e4m3fn)
    for scales in (uniform(1), uniform(1).reshape(()), uniform(16, 1).bfloat16(), uniform(16, 1).half()):
        tensors = {"a.q.weight": codes, "a.q.weight_scale": scales, "a.q.input_scale": torch.tensor([2.0])}
        args = {"type": "float", "strategy": "tensor" if scales.dtype == torch.float32 else "channel"}
        ours = decoded(tmp_path, SCHEME, tensors, settings(args, format="float-quantized"))["a.q.weight"]
        assert_same(ours, (codes.float() * scales.float()).to(scales.dtype))


def test_small_floats_are_their_formula(tmp_path):
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = random_bytes(9, 64)
    nibbles = torch.stack([codes & 15, codes >> 4], -1).reshape(9, 128).long()
    values = torch.where(nibbles > 7, -sizes[nibbles & 7], sizes[nibbles & 7])
    scales = random_bytes(9, 8, seed=2).clamp(1, 126).view(torch.float8_e4m3fn)
    tensors = {"weight_packed": codes, "weight_scale": scales, "weight_global_scale": torch.tensor([448.0])}
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    ours = decoded(tmp_path, SCHEME, {f"a.{k}": v for k, v in tensors.items()}, settings(args))["a.weight"]
    assert_same(ours, (values * (scales.float() / 448).repeat_interleave(16, 1)).bfloat16())
    tensors["weight_global_scale"] = torch.tensor(447.0)  # without an axis, it leaves the quotient in BF16
    ours = decoded(tmp_path, SCHEME, {f"a.{k}": v for k, v in tensors.items()}, settings(args))["a.weight"]
    quotient = (scales.float() / 447).bfloat16().float()
    assert_same(ours, (values * quotient.repeat_interleave(16, 1)).bfloat16())

    scales = random_bytes(9, 4, seed=2)
    scales[0] = torch.tensor([0, 1, 254, 255])
    tensors = {"weight_packed": codes, "weight_scale": scales}
    args |= {"strategy": "group", "group_size": 32}
    ours = decoded(tmp_path, SCHEME, {f"a.{k}": v for k, v in tensors.items()}, settings(args))["a.weight"]
    powers = torch.where(scales == 255, torch.inf, torch.exp2(scales.double() - 127)).repeat_interleave(32, 1)
    assert_same(ours, (values * powers).bfloat16())

    codes = random_bytes(9, 96)
    bits = (codes[..., None] >> torch.arange(8)) & 1
    six = (bits.reshape(9, 128, 6) * 2 ** torch.arange(6)).sum(-1)
    exponent, fraction = six >> 3 & 3, (six & 7).double()
    sizes = torch.where(exponent == 0, fraction / 8, (1 + fraction / 8) * 2.0 ** (exponent - 1))
    args |= {"num_bits": 6}
    tensors = {"a.weight_packed": codes, "a.weight_scale": scales}
    ours = decoded(tmp_path, SCHEME, tensors, settings(args))["a.weight"]
    assert_same(ours, (torch.where(six > 31, -sizes, sizes) * powers).bfloat16())

    codes = random_bytes(9, 128).view(torch.float8_e4m3fn)
    args |= {"num_bits": 8, "scale_dtype": "torch.uint8"}
    tensors = {"a.weight": codes, "a.weight_scale": scales}
    ours = decoded(tmp_path, SCHEME, tensors, settings(args, format="mxfp8-quantized"))["a.weight"]
    assert_same(ours, (codes.double() * powers).bfloat16())


def test_weights_of_several_groups(tmp_path):
    four, args4, expected4 = integers(name="a.k")
    three, args3, expected3 = integers(3, symmetric=False, name="a.q")
    asymmetric, args, expected = integers(symmetric=False, name="a.v")
    tensors = {**four, **three, **asymmetric, "a.o.weight": torch.ones(4, 4), "norm.weight": torch.ones(4)}
    ours = decoded(tmp_path, SCHEME, tensors, settings(args4, args3, args, args4, format="mixed-precision"))
    assert ours.keys() == {"a.k.weight", "a.q.weight", "a.v.weight"}
    assert_same(ours["a.k.weight"], expected4)
    assert_same(ours["a.q.weight"], expected3)
    assert_same(ours["a.v.weight"], expected)


def test_a_row_of_one_group_is_described_by_every_strategy_that_says_so(tmp_path):
    tensors, args, expected = integers(shape=(3, 16))
    channel = {**args, "strategy": "channel", "group_size": None}
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(args, channel))["a.q.weight"], expected)


def test_scales_of_attention_go_with_the_first_weight_below(tmp_path):
    tensors, args, expected = integers(name="l.0.attn.q_proj")
    scales = {f"l.0.attn.{what}_scale": torch.ones(1) for what in "qkv"} | {"l.0.attn.q_proj.k_scale": torch.ones(1)}
    plain = {"l.1.attn.k_proj.weight": torch.randn(4, 6), "l.1.attn.k_scale": torch.ones(1)}
    nobodys = {"l.10.attn.k_scale": torch.ones(1), "l.10.attn_norm.weight": torch.ones(3)}
    tensors = {**tensors, **scales, **plain, **nobodys}
    parts = names_of_parts(tmp_path, SCHEME, tensors, settings(args))
    assert parts["l.0.attn.q_proj.weight"] == {name for name in tensors if name.startswith("l.0.")}
    assert parts["l.1.attn.k_proj.weight"] == plain.keys()
    assert parts.keys() == {"l.0.attn.q_proj.weight", "l.1.attn.k_proj.weight"}
    ours = decoded(tmp_path, SCHEME, tensors, settings(args))
    assert_same(ours["l.0.attn.q_proj.weight"], expected)
    assert_same(ours["l.1.attn.k_proj.weight"], plain["l.1.attn.k_proj.weight"])


def test_dense_weights_stay_and_their_scales_go(tmp_path):
    weight = torch.randn(4, 6).half()
    tensors = {"a.weight": weight, "a.weight_scale": torch.ones(4, 1), "a.weight_zero_point": torch.zeros(4, 1)}
    group = {"strategy": "channel", "format": "dense"}
    for config in (settings(group), settings(format="dense"), settings(group, status="decompressed")):
        assert_same(decoded(tmp_path, SCHEME, tensors, config)["a.weight"], weight)
        assert names_of_parts(tmp_path, SCHEME, tensors, config)["a.weight"] == tensors.keys()
    with pytest.raises(FormatError, match="of status 'frozen'"):
        decoded(tmp_path, SCHEME, tensors, settings(group, status="frozen"))
    with pytest.raises(FormatError, match="beside a scale"):
        decoded(tmp_path, SCHEME, tensors, settings({"strategy": "channel"}, format="float-quantized"))
    assert decoded(tmp_path, SCHEME, {"a.weight": weight}, settings(group)) == {}


def test_words():
    four, eight = integers()[1], {"type": "float", "strategy": "block", "block_structure": [128, 128]}
    assert SCHEME.words(settings(four)) == "compressed-tensors int4, groups of 16"
    both = "compressed-tensors float8, blocks of 128 × 128; int8, a scale for each channel"
    assert SCHEME.words(settings(eight, {"strategy": "channel"})) == both
    assert SCHEME.words({"config_groups": 3}) == "compressed-tensors"


def test_rows_need_no_more_than_themselves(tmp_path):
    """A row range reads its own bytes, and those of its scales and zeros."""
    tensors, args, _ = integers(symmetric=False)
    read_bytes = []
    with stored(tmp_path, tensors, settings(args)) as given:

        def read(info, offset, buffer):
            read_bytes.append(np.asarray(buffer).nbytes)
            given.read(info, offset, buffer)

        [one] = SCHEME.find(replace(given, read=read)).values()
        assert sum(read_bytes) == 16
        rows = SCHEME.open(one.info, one.packed, read)
        read_bytes.clear()
        rows(10, 12)
        assert sum(read_bytes) == 2 * 32 + 2 * 8 + 4 * 4
