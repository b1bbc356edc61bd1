"""HQQ: written and decoded by its library, by a writer of its layout, and hostile files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from packed_cases import assert_same, decoded, names_of_parts, stored, uniform

from suture.errors import FormatError
from suture.formats.quantized import affine
from suture.formats.quantized.hqq import PACKINGS, SCHEME

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((64, 96), (48, 128), (8, 384))
BITS = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}
CONFIG = {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}


def number(value):
    return torch.tensor(value, dtype=torch.int32)


def text(value):
    return torch.tensor(list(value.encode()), dtype=torch.uint8)


def written(shape, bits=4, size=32, axis=1, dtype=torch.float16):
    """The tensors of a layer by the published layout, and its values by the published formula."""
    n_values = shape[0] * shape[1]
    random = torch.Generator().manual_seed(0)
    matrix = (-1, size) if axis == 1 else (size, -1)
    codes = torch.randint(0, 1 << bits, (n_values,), generator=random).reshape(matrix)
    scale = uniform(n_values // size).reshape((-1, 1) if axis == 1 else (1, -1)).to(dtype)
    zero = (torch.rand(scale.shape, generator=random) * (1 << bits)).to(dtype)
    per_item, kind = (10, np.int32) if bits == 3 else (8 // bits, np.uint8)
    rows = np.pad(codes.numpy(), ((0, -len(codes) % per_item), (0, 0)))
    items = sum(part << bits * (per_item - 1 - i) for i, part in enumerate(np.split(rows, per_item)))
    state = {
        "W_q": torch.from_numpy(items.astype(kind)), "scale": scale, "zero": zero, "shape": torch.tensor(shape),
        "nbits": number(bits), "group_size": number(size), "axis": number(axis), "packing": text(BITS[bits]),
        "compute_dtype": text(str(dtype)), "unpack_view_dtype": text("torch.uint8"), "bias": torch.ones(shape[0]),
    } | {
        name: torch.tensor(value, dtype=torch.uint8) for name, value in {
            "view_as_float": 0, "quant_scale": 0, "quant_zero": 0, "offload_meta": 0, "encoded_state_dict": 1,
            "stores_quant_config": 1, "channel_wise": 1, "optimize": 1, "round_zero": 1,
        }.items()
    }  # fmt: skip
    values = ((codes.to(dtype) - zero) * scale).reshape(shape)
    return {f"m.{name}": value for name, value in state.items()} | {"other.weight": torch.ones(2, 2)}, values


# --- the published layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "axis"), list(itertools.product(BITS, (0, 1))))
@pytest.mark.parametrize("dtype", FLOATS)
def test_layout(tmp_path, bits, axis, dtype):
    for shape, size in itertools.product(SHAPES, (8, 64, 128)):
        tensors, expected = written(shape, bits, size, axis, dtype)
        found = decoded(tmp_path, SCHEME, tensors, apart=["m.scale", "m.packing"])
        assert found.keys() == {"m.weight"}
        assert_same(found["m.weight"], expected)


@pytest.mark.parametrize(("bits", "axis"), list(itertools.product(BITS, (0, 1))))
def test_rows_longer_than_what_is_decoded_at_a_time(tmp_path, bits, axis, monkeypatch):
    monkeypatch.setattr("suture.formats.quantized.hqq.BLOCK", 50)
    for size in (32, 256):
        tensors, expected = written((48, 128), bits, size, axis)
        assert_same(decoded(tmp_path, SCHEME, tensors)["m.weight"], expected)
    assert affine.BLOCK > 50


def test_groups_that_cross_the_rows_of_the_weight(tmp_path):
    for bits, axis in itertools.product((4, 3), (0, 1)):
        tensors, expected = written((24, 50), bits, 40, axis)
        assert_same(decoded(tmp_path, SCHEME, tensors)["m.weight"], expected)


def test_all_that_belongs_to_a_layer_is_a_part_of_its_weight(tmp_path):
    tensors, _ = written((64, 96))
    parts = {name for name in tensors if name.startswith("m.")} - {"m.bias"}
    assert len(parts) == 19
    assert names_of_parts(tmp_path, SCHEME, tensors) == {"m.weight": parts}


def test_what_is_stored_of_a_layer_can_be_less(tmp_path):
    tensors, expected = written((64, 96))
    for name in ("view_as_float", "quant_scale", "channel_wise", "round_zero", "stores_quant_config"):
        del tensors[f"m.{name}"]
    assert_same(decoded(tmp_path, SCHEME, tensors)["m.weight"], expected)


def test_words():
    assert SCHEME.words({"quant_config": CONFIG}) == "HQQ 4 bits, groups of 64, axis 1"
    assert SCHEME.words({"quant_config": {"self_attn.q_proj": CONFIG}}) == "HQQ"


# --- the library itself -------------------------------------------------------------------------------------------


def from_library(shape, nbits, size, axis, dtype, is_viewed=False):
    """A layer of hqq."""
    quantize = pytest.importorskip("hqq.core.quantize", reason="the library that writes these files")
    layer = torch.nn.Linear(shape[1], shape[0], dtype=dtype)
    layer.weight.data = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) * 0.02
    config = quantize.BaseQuantizeConfig(nbits=nbits, group_size=size, axis=axis, view_as_float=is_viewed)
    return quantize.HQQLinear(layer, config, compute_dtype=dtype, device="cpu")


def tensors_of(layer):
    return {f"m.{name}": value.data for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("nbits", [8, 6, 5, 4, 3, 2, 1.58, 1])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_librarys(tmp_path, nbits, axis, dtype):
    for shape, size in itertools.product(SHAPES[1:], (8, 64, None)):
        layer = from_library(shape, nbits, size, axis, dtype)
        assert_same(decoded(tmp_path, SCHEME, tensors_of(layer))["m.weight"], layer.dequantize())


@pytest.mark.parametrize("dtype", FLOATS)
def test_codes_stored_as_floats(tmp_path, dtype):
    for nbits, axis in itertools.product((8, 4, 3, 2, 1), (0, 1)):
        layer = from_library((64, 96), nbits, 32, axis, dtype, is_viewed=True)
        tensors = tensors_of(layer)
        assert tensors["m.W_q"].dtype == dtype
        assert_same(decoded(tmp_path, SCHEME, tensors)["m.weight"], layer.dequantize())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [0, 1])
def test_any_codes_scales_and_zeros_are_decoded_as_the_library_does(tmp_path, dtype, axis):
    for nbits, size in itertools.product((8, 4, 3, 2, 1), (8, 64)):
        layer = from_library((48, 128), nbits, size, axis, dtype)
        random = torch.Generator().manual_seed(nbits)
        raw = torch.randint(0, 256, (layer.W_q.nbytes,), dtype=torch.uint8, generator=random)
        if nbits == 3:  # the two bits above the codes are never set
            raw[3::4] &= 0x3F
        layer.W_q.data = raw.view(layer.W_q.dtype).reshape(layer.W_q.shape)
        shape = layer.meta["scale"].shape
        for name, digits in (("scale", 9), ("zero", 5)):  # subnormal ones and large ones, of both signs
            power = torch.randint(-digits, 3, shape, generator=random)
            layer.meta[name] = (torch.randn(shape, generator=random) * 10.0**power).to(dtype)
        layer.meta["zero"].view(-1)[:3] = torch.tensor([float("inf"), float("nan"), 65504.0])
        assert_same(decoded(tmp_path, SCHEME, tensors_of(layer))["m.weight"], layer.dequantize())


def test_what_transformers_saves(tmp_path):
    pytest.importorskip("hqq.core.quantize", reason="the library that writes these files")
    from hqq.core.quantize import HQQLinear
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=64))
    expected = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            layer = from_library(tuple(module.weight.shape), 4, 32, 1, torch.bfloat16)
            expected[f"{name}.weight"] = layer.dequantize()
            model.set_submodule(name, layer)
    assert any(isinstance(module, HQQLinear) for module in model.modules())
    model.save_pretrained(tmp_path / "saved")
    found = decoded(tmp_path / "read", SCHEME, load_file(tmp_path / "saved" / "model.safetensors"))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert_same(values, expected[name])


# --- hostile files ------------------------------------------------------------------------------------------------


def without(name):
    return lambda t: {k: v for k, v in t.items() if k != name}


def replaced(name, value):
    return lambda t: {**t, name: value(t[name]) if callable(value) else value}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((without(f"m.{n}"), f"m.W_q: there is no m.{n}") for n in ("scale", "zero", "shape", "nbits", "group_size")),
        *((without(f"m.{n}"), f"m.W_q: there is no m.{n}") for n in ("axis", "packing", "compute_dtype")),
        (lambda t: {**t, "m.weight": torch.ones(64, 96)}, "m.weight: it stands beside a W_q"),
        (lambda t: {**t, "m.zero_scale": torch.ones(2, 8)}, "m.zero_scale: a layer whose scales are quantised"),
        (lambda t: {**t, "m.scale_q": torch.ones(2, 8)}, "m.scale_q: a layer whose scales are quantised"),
        (replaced("m.quant_zero", torch.tensor(1, dtype=torch.uint8)), "m.quant_zero: a layer whose scales"),
        (replaced("m.channel_wise", torch.tensor(0, dtype=torch.uint8)), "m.channel_wise: a layer whose scales"),
        (replaced("m.W_q", lambda x: x[:-1]), "m.W_q: 3,040 bytes of U8"),
        (replaced("m.W_q", lambda x: x.to(torch.int8)), "m.W_q: 3,072 bytes of I8"),
        (replaced("m.W_q", lambda x: x.view(torch.float16)), "m.W_q: 3,072 bytes of F16"),
        (replaced("m.view_as_float", torch.tensor(1, dtype=torch.uint8)), "m.W_q: 3,072 bytes of U8"),
        (replaced("m.view_as_float", torch.ones(2, dtype=torch.uint8)), "m.view_as_float: 2 numbers"),
        (replaced("m.scale", lambda x: x[:-1]), "m.scale: 191 values of F16"),
        (replaced("m.scale", lambda x: x.float()), "m.scale: 192 values of F32"),
        (replaced("m.zero", lambda x: x.bfloat16()), "m.zero: 192 values of BF16"),
        (replaced("m.zero", lambda x: x[:0]), "m.zero: 0 values of F16"),
        (replaced("m.shape", torch.tensor([64, 96, 1])), "m.shape: shape"),
        (replaced("m.shape", torch.tensor([64, -96])), "m.shape: shape"),
        (replaced("m.shape", torch.tensor([1 << 40, 1 << 40])), "m.W_q: 3,072 bytes of U8"),
        (replaced("m.shape", torch.tensor([64, 97])), "m.W_q: 3,072 bytes of U8"),
        (replaced("m.shape", torch.ones(100)), "m.shape: 400 bytes of F32"),
        (replaced("m.shape", torch.ones(2, dtype=torch.float16)), "m.shape: 4 bytes of F16"),
        (replaced("m.shape", torch.full((2,), float("nan"))), "m.shape: 8 bytes of F32"),
        (replaced("m.nbits", torch.tensor(float("nan"))), "m.packing: 4bit_u8 of nan bits"),
        (replaced("m.nbits", number(3)), "m.packing: 4bit_u8 of 3 bits"),
        (replaced("m.nbits", torch.ones(0, dtype=torch.int32)), "m.nbits: 0 numbers"),
        (replaced("m.axis", number(2)), "m.axis: axis 2"),
        (replaced("m.group_size", number(0)), "m.group_size: groups of 0"),
        (replaced("m.group_size", number(-32)), "m.group_size: groups of -32"),
        (replaced("m.group_size", number(31)), "m.group_size: groups of 31"),
        (replaced("m.group_size", torch.tensor(float("nan"))), "m.group_size: 4 bytes of F32"),
        (replaced("m.group_size", number(64)), "m.scale: 192 values of F16"),
        (replaced("m.packing", text("5bit_u8")), "m.packing: 5bit_u8 of 4 bits"),
        (replaced("m.packing", number([4, 5])), "m.packing: values of I32"),
        (replaced("m.packing", torch.zeros(10_000, dtype=torch.uint8)), "m.packing: 10,000 bytes of U8"),
        (replaced("m.compute_dtype", text("torch.float64")), "m.compute_dtype: torch.float64"),
        (replaced("m.compute_dtype", text("exit()")), r"m.compute_dtype: exit\(\)"),
    ],
)
def test_malformed(tmp_path, change, named):
    tensors, _ = written((64, 96))
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, SCHEME, change(tensors))


def test_items_are_full_but_in_three_bits(tmp_path):
    tensors, _ = written((2, 10), 4, 4, 1)
    assert len(tensors["m.scale"]) % 2
    with pytest.raises(FormatError, match=r"m.W_q: 12 bytes of U8"):
        decoded(tmp_path, SCHEME, tensors)


def test_every_packing_is_tested():
    assert set(BITS.values()) == set(PACKINGS)


def test_what_says_nothing_of_weights_is_let_be(tmp_path):
    tensors = {"a.scale": torch.ones(4), "W_q": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    with stored(tmp_path, tensors) as given:
        assert SCHEME.find(given) == {}
