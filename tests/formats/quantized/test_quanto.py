"""optimum-quanto: state dicts of the library's modules, and of a writer of their layout, decoded as it decodes them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import packed_cases
import pytest
import torch
from packed_cases import assert_same, names_of_parts, random_bytes, uniform

from suture.errors import FormatError
from suture.formats.quantized.quanto import SCHEME

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
NAME = "a.q.weight"


def decoded(folder, tensors, settings=None, shapes=None, **more):
    """All dense tensors, of a model whose class has these shapes."""
    scheme = replace(SCHEME, find=lambda given: SCHEME.find(replace(given, shapes=lambda: shapes or {})))
    return packed_cases.decoded(folder, scheme, tensors, settings, **more)


# --- the library itself -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("optimum.quanto", reason="the library that writes these files")


@pytest.mark.parametrize("kind", ["qint2", "qint4", "qint8", "qfloat8_e4m3fn", "qfloat8_e5m2", "qfloat8_e4m3fnuz"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_modules_are_the_librarys(tmp_path, library, kind, dtype):
    torch.manual_seed(0)
    # In groups of 128, 96 and 32; rows that have no groups; an odd number of rows.
    sizes = ((256, 32), (192, 10), (160, 7), (130, 6), (64, 9), (128, 5))
    model = torch.nn.Sequential(*(torch.nn.Linear(n, m) for n, m in sizes), torch.nn.Linear(8, 4)).to(dtype)
    library.quantize(model, weights=library.qtypes[kind], exclude="6")
    library.freeze(model)
    shapes = {name: tuple(module.weight.shape) for name, module in model.named_children()}
    shapes = {f"{name}.weight": shape for name, shape in shapes.items()}
    tensors = dict(model.state_dict())
    apart = [name for name in tensors if name.endswith("._scale")]
    ours = decoded(tmp_path, tensors, {"weights": kind.removeprefix("q")}, shapes, apart=apart)
    assert ours.keys() == shapes.keys() - {"6.weight"}
    for name, values in ours.items():
        assert_same(values, model.get_parameter(name).dequantize().detach())
    with torch.device("meta"):
        again = torch.nn.Sequential(*(torch.nn.Linear(n, m) for n, m in sizes), torch.nn.Linear(8, 4)).to(dtype)
    library.requantize(again, dict(tensors), library.quantization_map(model), device=torch.device("cpu"))
    for name, values in ours.items():
        assert_same(values, again.get_parameter(name).dequantize().detach())


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_points_are_the_librarys(tmp_path, library, dtype):
    from optimum.quanto import MaxOptimizer
    from optimum.quanto.tensor.weights.qbits import WeightQBitsTensor

    weight = torch.randn(12, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    for kind, size in itertools.product((library.qint2, library.qint4), (64, None)):
        scale, shift = MaxOptimizer()(weight, kind, 0, size, zeropoint=True)
        assert shift.dtype == torch.uint8
        one = WeightQBitsTensor.quantize(weight, kind, 0, size, scale, shift, optimized=False)
        tensors = {}
        one.save_to_state_dict(tensors, f"{NAME}.", keep_vars=False)
        assert_same(decoded(tmp_path, tensors, shapes={NAME: (12, 192)})[NAME], one.dequantize())


@pytest.mark.parametrize("kind", ["qint4", "qint8"])
def test_convolutions_are_the_librarys(tmp_path, library, kind):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.Conv2d(8, 6, 4)).bfloat16()
    library.quantize(model, weights=library.qtypes[kind])
    library.freeze(model)
    shapes = {"0.weight": (8, 3, 5, 5), "1.weight": (6, 8, 4, 4)}
    ours = decoded(tmp_path, dict(model.state_dict()), shapes=shapes)
    assert ours.keys() == shapes.keys()
    for name, values in ours.items():
        assert_same(values, model.get_parameter(name).dequantize().detach())


def test_activations_alone(tmp_path, library):
    model = torch.nn.Sequential(torch.nn.Linear(8, 4)).bfloat16()
    library.quantize(model, activations=library.qint8)
    tensors = dict(model.state_dict())
    ours = decoded(tmp_path, tensors)
    assert_same(ours["0.weight"], model[0].weight.detach())
    assert names_of_parts(tmp_path, SCHEME, tensors)["0.weight"] == tensors.keys() - {"0.bias"}


# --- the layout, without the library ------------------------------------------------------------------------------


def few(bits=4, rows=33, width=40, dtype=torch.bfloat16, zero=False):
    """Rows of codes, packed one below the other, and what they mean."""
    codes = (random_bytes(rows, width) % (1 << bits)).int()
    n = -(-rows * bits // 8)
    packed = torch.zeros(n, width, dtype=torch.int32)
    for row in range(rows):
        packed[row % n] |= codes[row] << bits * (row // n)
    scale, shift = uniform(rows, 1).to(dtype), uniform(rows, 1, seed=3).to(dtype)
    expected = ((codes * scale.double()).to(dtype).double() - shift.double()).to(dtype)
    if zero:
        shift = random_bytes(rows, 1) % (1 << bits)
        expected = ((codes - shift.int()) * scale.double()).to(dtype)
    tensors = {"_data._data": packed.byte(), "_scale": scale, "_shift": shift}
    return {f"{NAME}.{kind}": value for kind, value in tensors.items()}, expected


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_few_bits_are_their_formula(tmp_path, bits, zero, dtype):
    for rows in (1, 2, 3, 4, 33):
        tensors, expected = few(bits, rows, dtype=dtype, zero=zero)
        settings = {"weights": f"int{bits}"}
        assert_same(decoded(tmp_path, tensors, settings)[NAME], expected)
    tensors, expected = few(bits, 36, 32, dtype, zero)
    assert_same(decoded(tmp_path, tensors, shapes={NAME: (12, 96)})[NAME], expected.reshape(12, 96))
    assert_same(decoded(tmp_path, tensors, shapes={NAME: (36, 32)})[NAME], expected)


def test_eight_bits_are_their_formula(tmp_path):
    for dtype, codes in itertools.product(
        FLOATS,
        (
            random_bytes(33, 40).view(torch.int8),
            random_bytes(33, 40).view(torch.float8_e4m3fn),
            random_bytes(33, 40).view(torch.float8_e5m2),
            random_bytes(33, 40).view(torch.float8_e4m3fnuz),
        ),
    ):
        for scale in (uniform(33, 1).to(dtype), uniform(1).reshape(()).to(dtype)):
            tensors = {f"{NAME}._data": codes, f"{NAME}._scale": scale}
            expected = (codes.to(torch.float32) * scale.float()).to(dtype)
            assert_same(decoded(tmp_path, tensors)[NAME], expected)
        # A convolution: a row of the dense matrix is a part of a row of codes.
        shape = (33, 4, 2, 5)
        tensors = {f"{NAME}._data": codes.reshape(shape), f"{NAME}._scale": uniform(33, 1, 1, 1).to(dtype)}
        expected = (codes.to(torch.float32) * uniform(33, 1).to(dtype).float()).to(dtype)
        assert_same(decoded(tmp_path, tensors)[NAME], expected.reshape(shape))


def test_every_part_belongs_to_its_weight(tmp_path):
    tensors, _ = few()
    more = {"a.q.input_scale": torch.ones(()), "a.q.output_scale": torch.ones(())}
    plain = {"b.weight": torch.ones(2, 3), "b.input_scale": torch.ones(())}
    others = {"a.q.bias": torch.ones(33), "norm.weight": torch.ones(3), "c.input_scale": torch.ones(())}
    others |= {"d.weight": torch.ones(4).byte(), "d.input_scale": torch.ones(())}
    others |= {"e.weight": torch.ones(()), "e.input_scale": torch.ones(())}
    parts = names_of_parts(tmp_path, SCHEME, {**tensors, **more, **plain, **others})
    assert parts == {NAME: tensors.keys() | more.keys(), "b.weight": set(plain)}


def test_words():
    assert SCHEME.words({"weights": "int4"}) == SCHEME.words({"weights": "qint4"}) == "quanto int4"
    assert SCHEME.words({}) == "quanto"


# --- hostile files ------------------------------------------------------------------------------------------------


def eight():
    return {f"{NAME}._data": random_bytes(33, 40).view(torch.int8), f"{NAME}._scale": torch.ones(33, 1)}


FEW, EIGHT = few()[0], eight()


@pytest.mark.parametrize(
    ("tensors", "changes", "settings", "named"),
    [
        (FEW, {"_scale": None}, {}, "weight._data._data: there is no a.q.weight._scale"),
        (FEW, {"_shift": None}, {}, "weight._data._data: there is no a.q.weight._shift"),
        (FEW, {"_data._data": None}, {}, "weight._scale: there is no a.q.weight._data._data"),
        (FEW, {"_data": torch.ones(33, 40).char()}, {}, "weight._shift: beside a.q.weight._data"),
        (FEW, {"_data._data": torch.ones(17, 40).char()}, {}, r"weight._data._data: I8 \[17, 40\]"),
        (FEW, {"_data._data": torch.ones(17).byte()}, {}, r"weight._data._data: U8 \[17\]"),
        (FEW, {"_data._data": torch.ones(17, 0).byte()}, {}, r"weight._data._data: U8 \[17, 0\]"),
        (FEW, {"_data._data": torch.ones(18, 40).byte()}, {}, r"weight._scale: 33 rows beside 18"),
        (FEW, {"_scale": torch.ones(33, 2).bfloat16()}, {}, r"weight._scale: BF16 \[33, 2\]"),
        (FEW, {"_scale": torch.ones(()).bfloat16()}, {}, r"weight._scale: BF16 \[\]"),
        (FEW, {"_scale": torch.ones(33, 1).int()}, {}, r"weight._scale: I32 \[33, 1\]"),
        (FEW, {"_shift": torch.ones(33, 1)}, {}, r"weight._shift: F32 \[33, 1\]"),
        (FEW, {"_shift": torch.ones(32, 1).bfloat16()}, {}, r"weight._shift: BF16 \[32, 1\]"),
        (FEW, {}, {"weights": "int2"}, "weight._data._data: codes of int4"),
        (FEW, {}, {"weights": "int8"}, "weight._data._data: codes of int4"),
        (EIGHT, {"_scale": None}, {}, "weight._data: there is no a.q.weight._scale"),
        (EIGHT, {"_data": None}, {}, "weight._scale: there is no"),
        (EIGHT, {"_data": torch.ones(33, 40)}, {}, "weight._data: F32"),
        (EIGHT, {"_data": torch.ones(33).char()}, {}, r"weight._data: I8 \[33\]"),
        (EIGHT, {"_data": torch.ones(0, 40).char()}, {}, r"weight._data: I8 \[0, 40\]"),
        (EIGHT, {"_scale": torch.ones(1, 40)}, {}, r"weight._scale: F32 \[1, 40\]"),
        (EIGHT, {"_scale": torch.ones(33, 1).double()}, {}, r"weight._scale: F64 \[33, 1\]"),
        (EIGHT, {"_shift": torch.ones(33, 1)}, {}, "weight._shift: beside"),
        (EIGHT, {}, {"weights": "float8"}, "weight._data: codes of int8"),
        (EIGHT, {}, {"weights": 8}, "weight._data: codes of int8"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, changes, settings, named):
    tensors = {**tensors, **{f"{NAME}.{kind}": value for kind, value in changes.items()}}
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, {name: value for name, value in tensors.items() if value is not None}, settings)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (None, "36 groups of 32, or as many rows"),
        ((12, 97), r"codes of \[36, 32\]"),
        ((24, 48), r"codes of \[36, 32\]"),
        ((1152,), r"codes of \[36, 32\]"),
        ((), r"codes of \[36, 32\]"),
        ((0, 96), r"codes of \[36, 32\]"),
    ],
)
def test_a_shape_that_the_codes_do_not_have_is_named(tmp_path, shape, named):
    tensors, _ = few(4, 36, 32)
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, tensors, shapes={} if shape is None else {NAME: shape})
