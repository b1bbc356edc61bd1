"""GPTQ: written and decoded by its libraries, by a writer of its layout, and hostile files."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_cases import assert_same, decoded, names_of_parts, stored, uniform

from suture.errors import FormatError
from suture.formats.quantized import unpack
from suture.formats.quantized.gptq import BITS, SCHEME
from suture.values import Checkpoint

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((64, 96), (32, 64), (256, 32))  # (out, in)


def settings(bits=4, size=32, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": False, "checkpoint_format": "gptq", **more}


def integers(n, *shape, seed=0):
    """Whole numbers below n."""
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(seed))


def groups_of(n_in, size, in_any_order=False):
    """The group of each input."""
    groups = torch.arange(n_in, dtype=torch.int32) // size
    return groups[torch.randperm(n_in, generator=torch.Generator().manual_seed(3))] if in_any_order else groups


def words_of(codes, bits):
    """Codes (rows, n) as I32 (rows, n · bits / 32): one bit after the other, the lowest of each first."""
    spread = (codes.numpy()[..., None] >> np.arange(bits)) & 1
    stream = spread.reshape(len(codes), -1).astype(np.uint8)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view("<i4").copy())


def written(shape, bits, size, *, added=1, in_any_order=False, dtype=torch.float16, zeros=None):
    """The tensors of a weight by the published layout, and its values by the published formula."""
    n_out, n_in = shape
    g_idx = groups_of(n_in, size, in_any_order)
    n_groups = -(-n_in // size)
    codes = integers(1 << bits, n_in, n_out)
    zeros = integers(1 << bits, n_groups, n_out, seed=1) if zeros is None else zeros
    scales = uniform(n_groups, n_out).to(dtype)
    low = min(added, 1)  # a stored zero is not below 0: what is below is a matter of its own
    zeros = zeros.clamp(min=low)
    tensors = {
        "m.qweight": words_of(codes.T, bits).T,
        "m.qzeros": words_of(zeros - added, bits),
        "m.scales": scales,
        "m.g_idx": g_idx,
        "m.bias": torch.ones(n_out, dtype=dtype),
        "other.weight": torch.ones(2, 2, dtype=dtype),
    }
    values = (codes - zeros[g_idx.long()]).to(dtype) * scales[g_idx.long()]
    return tensors, values.T


# --- the published layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "dtype"), list(itertools.product(BITS, FLOATS)))
@pytest.mark.parametrize("in_any_order", [False, True])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2"])
def test_layout(tmp_path, bits, dtype, in_any_order, name):
    for shape, size in itertools.product(SHAPES, (16, 32, 64, -1)):
        length = shape[1] if size == -1 else size
        added = {"gptq": 1, "gptq_v2": 0}[name]
        tensors, expected = written(shape, bits, length, added=added, in_any_order=in_any_order, dtype=dtype)
        said = settings(bits, size, checkpoint_format=name, desc_act=in_any_order)
        found = decoded(tmp_path, SCHEME, tensors, said, apart=["m.scales", "m.g_idx"])
        assert found.keys() == {"m.weight"}
        assert_same(found["m.weight"], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_words_that_are_not_full(tmp_path, bits):
    tensors, expected = written((37, 41), bits, 16)
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(bits, 16))["m.weight"], expected)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_below_which_one_is_subtracted(tmp_path, bits):
    tensors, expected = written((64, 96), bits, 32, added=0)
    words = tensors["m.qzeros"].numpy().view(np.uint32)
    if bits == 3:  # each by itself: 0 becomes 7
        zeros = integers(8, 3, 64, seed=1)
        tensors["m.qzeros"] = words_of((zeros - 1) % 8, 3)
    else:  # from the whole word: 0 borrows from the zero above
        one_of_each = sum(1 << shift for shift in range(0, 32, bits))
        tensors["m.qzeros"] = torch.from_numpy((words - np.uint32(one_of_each)).view(np.int32))
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(bits))["m.weight"], expected)


def test_a_module_of_its_own_bits_and_groups(tmp_path):
    tensors, expected = written((64, 96), 8, 16)
    said = settings(4, 32, dynamic={"+:m": {"bits": 8, "group_size": 16}})
    assert_same(decoded(tmp_path, SCHEME, tensors, said)["m.weight"], expected)


def test_without_a_table_of_groups(tmp_path):
    tensors, expected = written((64, 96), 4, 32)
    del tensors["m.g_idx"]
    assert_same(decoded(tmp_path, SCHEME, tensors, settings())["m.weight"], expected)
    assert_same(decoded(tmp_path, SCHEME, tensors, {"quant_method": "gptq"})["m.weight"], expected)
    with pytest.raises(FormatError, match=r"m.qweight: there is no m.g_idx"):
        decoded(tmp_path, SCHEME, tensors, settings(desc_act=True))


def test_scales_of_any_value(tmp_path):
    for dtype, size in itertools.product(FLOATS, (8, 64)):
        tensors, _ = written((64, 64), 4, size, dtype=dtype)
        special = torch.tensor([0.0, -1.0, 6e4, 1e-7, 6e-8, float("inf"), float("nan"), -0.0])
        tensors["m.scales"] = special.repeat(64 // size, 8).to(dtype)
        groups, codes = tensors["m.g_idx"].long(), integers(16, 64, 64)
        zeros = integers(16, 64 // size, 64, seed=1).clamp(min=1)
        expected = ((codes - zeros[groups]).to(dtype) * tensors["m.scales"][groups]).T
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(4, size))["m.weight"], expected)


def test_all_that_belongs_to_a_weight_is_a_part_of_it(tmp_path):
    tensors, _ = written((64, 96), 4, 32)
    parts = {"m.qweight", "m.qzeros", "m.scales", "m.g_idx"}
    assert names_of_parts(tmp_path, SCHEME, tensors, settings()) == {"m.weight": parts}


def test_words():
    assert SCHEME.words(settings(4, 128)) == "GPTQ 4 bits, groups of 128"
    assert SCHEME.words(settings(8, -1)) == "GPTQ 8 bits, a group a row"


# --- the libraries themselves -------------------------------------------------------------------------------------


def gptqmodel():
    """The modules of GPT-QModel that pack and decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gptqmodel", reason="the library that writes these files")
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.utils import model
    return TorchLinear, model


def linear(shape):
    layer = torch.nn.Linear(shape[1], shape[0])
    layer.weight.data = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    return layer


@pytest.mark.parametrize(("bits", "name"), list(itertools.product(BITS, ("gptq", "gptq_v2"))))
@pytest.mark.parametrize("in_any_order", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gptqmodel(tmp_path, bits, name, in_any_order, dtype):
    layer_of, model = gptqmodel()
    shapes = SHAPES if bits == 3 else (*SHAPES, (36, 40))
    for (n_out, n_in), size in itertools.product(shapes, (16, 32, -1)):
        length = n_in if size == -1 else size
        n_groups = -(-n_in // length)
        layer = layer_of(bits, size, False, in_any_order, n_in, n_out, bias=True)
        scales = uniform(n_out, n_groups, low=0.1, high=0.4)
        # Zeros of 0, one of which less borrows from its neighbour, are among these.
        zeros = integers(1 << bits, n_out, n_groups).float()
        layer.pack_original(linear((n_out, n_in)), scales, zeros, groups_of(n_in, length, in_any_order))
        layer.scales = layer.scales.to(dtype)
        expected = layer.eval().dequantize_weight().T
        if name == "gptq":
            model.convert_gptq_v2_to_v1_format_module(layer, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        tensors = {f"m.{key}": value for key, value in layer.state_dict().items()}
        said = settings(bits, size, checkpoint_format=name, desc_act=in_any_order)
        assert_same(decoded(tmp_path, SCHEME, tensors, said)["m.weight"], expected)


@pytest.mark.parametrize("bits", BITS)
def test_any_words_are_decoded_as_gptqmodel_does(tmp_path, bits):
    layer_of, model = gptqmodel()
    (n_out, n_in), size = (64, 96), 32
    layer = layer_of(bits, size, False, False, n_in, n_out)
    for i, key in enumerate(("qweight", "qzeros")):
        layer.register_buffer(key, torch.randint_like(getattr(layer, key), -(1 << 31), (1 << 31) - 1))
        assert getattr(layer, key).unique().numel() > 8 + i
    layer.scales = uniform(*layer.scales.shape).half()
    tensors = {f"m.{key}": value.clone() for key, value in layer.state_dict().items()}
    model.convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    assert_same(
        decoded(tmp_path, SCHEME, tensors, settings(bits))["m.weight"], layer.eval().dequantize_weight().T.contiguous()
    )


def autogptq():
    """AutoGPTQ's layer without the rest of the package, which asks for an old Transformers."""
    if "auto_gptq" not in sys.modules:
        spec = importlib.util.find_spec("auto_gptq")
        if spec is None:
            pytest.skip("auto_gptq, which wrote these files, is not installed")
        package = sys.modules["auto_gptq"] = types.ModuleType("auto_gptq")
        package.__path__ = list(spec.submodule_search_locations)
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    return QuantLinear


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("in_any_order", [False, True])
def test_autogptq(tmp_path, bits, in_any_order):
    layer_of = autogptq()
    for n_out, n_in in SHAPES:
        layer = layer_of(bits, 32, n_in, n_out, bias=False)
        zeros = integers(1 << bits, n_out, n_in // 32).float().clamp(min=1)
        plain = torch.nn.Linear(n_in, n_out, bias=False, dtype=torch.float16)
        scales = uniform(n_out, n_in // 32, low=0.1, high=0.4)
        groups = groups_of(n_in, 32, in_any_order)
        # The layer packs without a limit: its writer has made sure that each weight is a code.
        codes, group = integers(1 << bits, n_out, n_in), groups.long()
        plain.weight.data = (codes - zeros[:, group]) * scales[:, group]
        layer.pack(plain, scales, zeros.clone(), groups)
        layer.scales = layer.scales.half()
        tensors = {f"m.{key}": value for key, value in layer.state_dict().items()}
        found = decoded(tmp_path, SCHEME, tensors, settings(bits, 32, desc_act=in_any_order))["m.weight"]
        assert torch.equal(found.T, layer(torch.eye(n_in, dtype=torch.float16)))


# --- hostile files ------------------------------------------------------------------------------------------------


def without(*names):
    return lambda t: {k: v for k, v in t.items() if k not in names}


def replaced(name, change):
    return lambda t: {**t, name: change(t[name])}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("m.scales"), "m.qweight: there is no m.scales"),
        (without("m.qzeros"), "m.qweight: there is no m.qzeros"),
        (without("m.qweight"), "m.g_idx: there is no m.qweight"),
        (without("m.qweight", "m.g_idx"), "m.qzeros: there is no m.qweight"),
        (lambda t: {**t, "m.weight": torch.ones(64, 96)}, "m.weight: it stands beside a qweight"),
        (replaced("m.qweight", lambda x: x.long()), r"m.qweight: I64 \[12, 64\]"),
        (replaced("m.qweight", lambda x: x[:-1]), r"m.qweight: I32 \[11, 64\]"),
        (replaced("m.qweight", lambda x: x[:, :-1]), r"m.qweight: I32 \[12, 63\]"),
        (replaced("m.qweight", lambda x: x.reshape(-1)), r"m.qweight: I32 \[768\]"),
        (replaced("m.qweight", lambda x: x[:0]), r"m.qweight: I32 \[0, 64\]"),
        (replaced("m.qzeros", lambda x: x.short()), r"m.qzeros: I16 \[3, 8\]"),
        (replaced("m.qzeros", lambda x: x[:, :-1]), r"m.qweight: I32 \[12, 64\], with qzeros \[3, 7\]"),
        (replaced("m.qzeros", lambda x: x[:-1]), r"m.qzeros: I32 \[2, 8\]"),
        (replaced("m.scales", lambda x: x.int()), r"m.scales: I32 \[3, 64\]"),
        (replaced("m.scales", lambda x: x.double()), r"m.scales: F64 \[3, 64\]"),
        (replaced("m.scales", lambda x: x[:, :-1]), r"m.qweight: I32 \[12, 64\]"),
        (replaced("m.scales", lambda x: x[0]), r"m.scales: F16 \[64\]"),
        (replaced("m.scales", lambda x: x[:0]), r"m.scales: F16 \[0, 64\]"),
        (replaced("m.g_idx", lambda x: x.long()), r"m.g_idx: I64 \[96\]"),
        (replaced("m.g_idx", lambda x: x[None]), r"m.g_idx: I32 \[1, 96\]"),
        (replaced("m.g_idx", lambda x: x[:-8]), "m.qweight"),
        (replaced("m.g_idx", lambda x: x[:0]), r"m.g_idx: I32 \[0\]"),
        (replaced("m.g_idx", lambda x: x + 1), "m.g_idx: groups 1 to 3"),
        (replaced("m.g_idx", lambda x: x - 1), "m.g_idx: groups -1 to 1"),
        (lambda t: {**t, "m.scales": t["m.scales"][:2], "m.qzeros": t["m.qzeros"][:2]}, "m.scales: scales of 2 groups"),
    ],
)
def test_malformed(tmp_path, change, named):
    tensors, _ = written((64, 96), 4, 32)
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, SCHEME, change(tensors), settings())


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"bits": 5}, "bits is 5"),
        ({"bits": True}, "bits is True"),
        ({"bits": "4"}, "bits is '4'"),
        ({"bits": [4]}, r"bits is \[4\]"),
        ({"bits": 8}, "m.qweight: .* expected: the words of 8 bits"),
        ({"checkpoint_format": "gptq_p"}, "checkpoint_format is 'gptq_p'"),
        ({"checkpoint_format": None, "format": "marlin"}, "format is 'marlin'"),
        ({"group_size": 64}, "m.scales: scales of 3 groups"),
        ({"group_size": -1}, "m.scales: scales of 3 groups"),
        ({"group_size": -2}, "m.scales: scales of 3 groups"),
        ({"group_size": "32"}, "group_size is '32'"),
    ],
)
def test_settings_that_are_not_known(tmp_path, said, named):
    tensors, _ = written((64, 96), 4, 32)
    with pytest.raises(FormatError, match=f"(?s){named}"):
        decoded(tmp_path, SCHEME, tensors, settings() | said)


def test_three_bits_of_words_that_are_not_full(tmp_path):
    tensors, _ = written((64, 40), 3, 8)
    with pytest.raises(FormatError, match=r"m.qweight: I32"):
        decoded(tmp_path, SCHEME, tensors, settings(3, 8))


def test_groups_without_a_table_have_one_length(tmp_path):
    tensors, _ = written((64, 96), 4, 20)
    with pytest.raises(FormatError, match=r"m.scales: scales of 5 groups"):
        decoded(tmp_path, SCHEME, without("m.g_idx")(tensors), {})


def test_what_says_nothing_of_weights_is_let_be(tmp_path):
    tensors = {"a.scales": torch.ones(4), "qweight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    with stored(tmp_path, tensors, settings()) as given:
        assert SCHEME.find(given) == {}


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
def test_classes_that_hold_weights_the_other_way_round_are_refused(kind):
    config = {"model_type": kind, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    checkpoint = Checkpoint(Path(), config, {}, (), None, {}, ())
    with pytest.raises(FormatError, match="the other way round"):
        unpack(checkpoint, lambda *_: None)
