"""AWQ: written and decoded by its libraries, by a writer of its layouts, and hostile files."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from packed_cases import assert_same, decoded, names_of_parts, stored, uniform

from suture.errors import FormatError
from suture.formats.quantized.awq import SCHEME

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHAPES = ((64, 128), (8, 256), (72, 64))  # (out, in)
GEMM, GEMV, FAST = "gemm", "gemv", "gemv_fast"


def settings(version=GEMM, size=32, **more):
    return {"quant_method": "awq", "bits": 4, "group_size": size, "version": version, "zero_point": True, **more}


def integers(n, *shape, seed=0):
    """Whole numbers below n."""
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(seed))


def words_of(codes, order):
    """Eight codes as one I32: the n-th half of a byte holds the order[n]-th code."""
    eights = codes.numpy().astype(np.uint32).reshape(len(codes), -1, 8)
    return torch.from_numpy(sum(eights[..., place] << np.uint32(4 * n) for n, place in enumerate(order)).view("<i4"))


def padded(values, size):
    """Columns of groups, filled up with zeros to what a kernel of gemv reads at a time."""
    at_once = 8 * {16: 8, 32: 4, 64: 2}.get(size, 1)
    return torch.nn.functional.pad(values, (0, -values.shape[1] % at_once))


def fast_words(codes):
    """Codes (out, in) as I16 (out / 4, in), one at a time: the place of each, read off the library's kernel."""
    n_out, n_in = codes.shape
    words = np.zeros((n_out // 4, n_in), np.uint16)
    for i, j in itertools.product(range(n_out), range(n_in)):
        block, rest = divmod(j, 32)
        eighth, two, one = (
            rest // 8,
            rest // 2 % 4,
            rest % 2,
        )  # of 32 inputs: which eight, which pair of them, which one
        place = 32 * (block % 2) + 8 * two + 4 * one + eighth
        at = 64 * (j // 64) + 16 * (i % 4) + place // 4
        words[i // 4, at] |= np.uint16(int(codes[i, j]) << 4 * (place % 4))
    return torch.from_numpy(words.view(np.int16))


def written(shape, size=32, version=GEMM, dtype=torch.float16):
    """The tensors of a weight by the published layout, and its values by the published formula."""
    n_out, n_in = shape
    n_groups = n_in // size
    codes, zeros = integers(16, n_out, n_in), integers(16, n_out, n_groups, seed=1)
    scales = uniform(n_out, n_groups).to(dtype)
    of = torch.arange(n_in) // size
    values = (codes - zeros[:, of]).to(dtype) * scales[:, of]
    if version == GEMM:
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        stored_as = (words_of(codes.T, order), words_of(zeros.T, order), scales.T)
    elif version == GEMV:
        stored_as = (words_of(codes, range(8)), words_of(padded(zeros, size), range(8)), padded(scales, size))
    else:
        shifts = (-(scales.double() * zeros)).to(dtype)
        stored_as = (fast_words(codes), padded(shifts, size).T, padded(scales, size).T)
        values = (codes * scales[:, of].double() + shifts[:, of].double()).to(dtype)
    tensors = {f"m.{name}": value for name, value in zip(("qweight", "qzeros", "scales"), stored_as, strict=True)}
    return tensors | {"m.bias": torch.ones(n_out, dtype=dtype), "other.weight": torch.ones(2, 2)}, values


# --- the published layouts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "dtype"), [*itertools.product((GEMM, GEMV), FLOATS), *itertools.product((FAST,), FLOATS[:2])]
)
def test_layouts(tmp_path, version, dtype):
    for shape, size in itertools.product(SHAPES, (16, 32, 64, -1)):
        tensors, expected = written(shape, shape[1] if size == -1 else size, version, dtype)
        found = decoded(tmp_path, SCHEME, tensors, settings(version, size), apart=["m.scales", "m.qzeros"])
        assert found.keys() == {"m.weight"}
        assert_same(found["m.weight"], expected)


def test_gemm_with_groups_of_any_size(tmp_path):
    tensors, expected = written((40, 60), 12)
    assert_same(decoded(tmp_path, SCHEME, tensors, settings(size=12))["m.weight"], expected)


def test_other_ways_to_say_it(tmp_path):
    for version in (GEMM, GEMV, FAST):
        tensors, expected = written((64, 128), 128, version)
        for said in ({"version": version.upper()}, {"format": version}, {"checkpoint_format": version, "w_bit": 4}):
            assert_same(decoded(tmp_path, SCHEME, tensors, said)["m.weight"], expected)
    tensors, expected = written((64, 128), 32)
    assert_same(decoded(tmp_path, SCHEME, tensors, {"q_group_size": 32})["m.weight"], expected)


def test_scales_of_any_value(tmp_path):
    for dtype, size in itertools.product(FLOATS, (8, 64)):
        tensors, _ = written((64, 64), size, dtype=dtype)
        special = torch.tensor([0.0, -1.0, 6e4, 1e-7, 6e-8, float("inf"), float("nan"), -0.0])
        tensors["m.scales"] = special.repeat(64 // size, 8).to(dtype)
        of = torch.arange(64) // size
        codes, zeros = integers(16, 64, 64), integers(16, 64, 64 // size, seed=1)
        expected = (codes - zeros[:, of]).to(dtype) * tensors["m.scales"].T[:, of]
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(size=size))["m.weight"], expected)


def test_all_that_belongs_to_a_weight_is_a_part_of_it(tmp_path):
    tensors, _ = written((64, 128))
    parts = {"m.qweight", "m.qzeros", "m.scales"}
    assert names_of_parts(tmp_path, SCHEME, tensors, settings()) == {"m.weight": parts}


def test_words():
    assert SCHEME.words(settings(size=128)) == "AWQ 4 bits, groups of 128, gemm"


# --- the libraries themselves -------------------------------------------------------------------------------------


def autoawq(name):
    """A module of AutoAWQ without the rest of the package, which asks for an old Transformers."""
    if "awq" not in sys.modules:
        spec = importlib.util.find_spec("awq")
        if spec is None:
            pytest.skip("autoawq, which wrote these files, is not installed")
        package = sys.modules["awq"] = types.ModuleType("awq")
        package.__path__ = list(spec.submodule_search_locations)
    return importlib.import_module(f"awq.{name}")


def parameters(shape, size):
    """A linear layer, and scales and zeros of its groups, (out, groups)."""
    n_out, n_in = shape
    layer = torch.nn.Linear(n_in, n_out).half()
    codes, zeros = integers(16, n_out, n_in), integers(16, n_out, n_in // size, seed=1)
    scales = uniform(n_out, n_in // size, low=0.01, high=0.4).half()
    of = torch.arange(n_in) // size
    layer.weight.data = (codes - zeros[:, of]).half() * scales[:, of]
    return layer, scales, zeros, codes


def test_autoawq_gemm(tmp_path):
    layer_of = autoawq("modules.linear.gemm").WQLinear_GEMM
    decode = autoawq("utils.packing_utils").dequantize_gemm
    for shape, size in itertools.product(((64, 128), (32, 256), (96, 64)), (32, 64, -1)):
        length = shape[1] if size == -1 else size
        layer, scales, zeros, _ = parameters(shape, length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy's, on the device that it looks for
            made = layer_of.from_linear(layer, 4, length, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        for dtype in FLOATS:
            made.scales = made.scales.to(dtype)
            tensors = {f"m.{key}": value for key, value in made.state_dict().items()}
            expected = decode(made.qweight, made.qzeros, made.scales, 4, length).T
            assert_same(decoded(tmp_path, SCHEME, tensors, settings(size=size))["m.weight"], expected)


def test_autoawq_any_words(tmp_path):
    decode = autoawq("utils.packing_utils").dequantize_gemm
    random = torch.Generator().manual_seed(5)
    tensors = {
        "m.qweight": torch.randint(-(1 << 31), 1 << 31, (96, 11), generator=random).int(),
        "m.qzeros": torch.randint(-(1 << 31), 1 << 31, (3, 11), generator=random).int(),
        "m.scales": uniform(3, 88).half(),
    }
    expected = decode(*tensors.values(), 4, 32).T
    assert_same(decoded(tmp_path, SCHEME, tensors, settings())["m.weight"], expected)


def test_autoawq_gemv(tmp_path):
    layer_of = autoawq("modules.linear.gemv").WQLinear_GEMV
    for shape, size in itertools.product(SHAPES, (32, 64)):
        layer, scales, zeros, _ = parameters(shape, size)
        made = layer_of.from_linear(layer, 4, size, scales=scales, zeros=zeros)
        tensors = {f"m.{key}": value for key, value in made.state_dict().items()}
        found = decoded(tmp_path, SCHEME, tensors, settings(GEMV, size))["m.weight"]
        assert_same(found, layer.weight.data)  # the codes were drawn, so that the weight is one of the grid's


def test_autoawq_gemv_fast(tmp_path):
    layer_of = autoawq("modules.linear.gemv_fast").WQLinear_GEMVFast
    for shape, size in itertools.product(SHAPES, (32, 64)):
        layer, scales, zeros, codes = parameters(shape, size)
        made = layer_of.from_linear(layer, 4, size, scales=scales, zeros=zeros)
        tensors = {f"m.{key}": value for key, value in made.state_dict().items()}
        of = torch.arange(shape[1]) // size
        shifts = made.qzeros[: shape[1] // size].T.double()
        expected = (codes * scales[:, of].double() + shifts[:, of]).half()
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(FAST, size))["m.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gptqmodel(tmp_path, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("gptqmodel", reason="the library that Transformers loads these files with")
        from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    for shape, size in itertools.product(SHAPES, (32, 64)):
        layer, scales, zeros, _ = parameters(shape, size)
        made = AwqTorchLinear(4, size, False, False, shape[1], shape[0], bias=True, register_buffers=True)
        made.pack(layer, scales.to(dtype), zeros)
        tensors = {f"m.{key}": value for key, value in made.state_dict().items()}
        expected = made._dequantize_weight_for_inference(torch.empty(0), dtype=dtype).T
        assert_same(decoded(tmp_path, SCHEME, tensors, settings(size=size))["m.weight"], expected)


# --- hostile files ------------------------------------------------------------------------------------------------


def without(*names):
    return lambda t: {k: v for k, v in t.items() if k not in names}


def replaced(name, change):
    return lambda t: {**t, name: change(t[name])}


SOME = [
    (without("m.scales"), "m.qweight: there is no m.scales"),
    (without("m.qzeros"), "m.qweight: there is no m.qzeros"),
    (without("m.qweight"), "m.qzeros: there is no m.qweight"),
    (lambda t: {**t, "m.weight": torch.ones(64, 128)}, "m.weight: it stands beside a qweight"),
    (replaced("m.qweight", lambda x: x.long()), "m.qweight: I64"),
    (replaced("m.qweight", lambda x: x[0]), "m.qweight: "),
    (replaced("m.qweight", lambda x: x[:0]), "m.qweight: "),
    (replaced("m.scales", lambda x: x.int()), "m.scales: I32"),
    (replaced("m.scales", lambda x: x[0]), "m.scales: F16"),
    (replaced("m.scales", lambda x: x[:-1]), "m.scales: F16"),
    (replaced("m.scales", lambda x: x[:, :-1]), "m.scales: F16"),
    (replaced("m.qzeros", lambda x: x.double()), "m.qzeros: F64"),
    (replaced("m.qzeros", lambda x: x[:-1]), "m.qzeros: "),
    (replaced("m.qzeros", lambda x: x[:, :-1]), "m.qzeros: "),
]


@pytest.mark.parametrize("version", [GEMM, GEMV, FAST])
@pytest.mark.parametrize(("change", "named"), SOME)
def test_malformed(tmp_path, version, change, named):
    tensors, _ = written((64, 128), 32, version)
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, SCHEME, change(tensors), settings(version))


@pytest.mark.parametrize(
    ("version", "said", "named"),
    [
        (GEMM, {"bits": 8}, "bits is 8"),
        (GEMM, {"bits": "4"}, "bits is '4'"),
        (GEMM, {"version": "marlin"}, "version is 'marlin'"),
        (GEMM, {"version": 4}, "version is 4"),
        (GEMM, {"version": "llm-awq"}, "version is 'llm-awq'"),
        (GEMM, {"group_size": 64}, "m.qzeros: I32"),
        (GEMM, {"group_size": -1}, "m.qzeros: I32"),
        (GEMM, {"group_size": -2}, "m.qweight: 128 inputs"),
        (GEMM, {"group_size": 48}, "m.qweight: 128 inputs"),
        (GEMM, {"group_size": "32"}, "group_size is '32'"),
        (GEMV, {"group_size": 8}, "m.qweight: 128 inputs"),
        (GEMV, {"group_size": 16}, "m.scales: F16"),
        (GEMM, {"version": GEMV}, "m.scales: F16"),
        (GEMM, {"version": FAST}, "m.qweight: I32"),
    ],
)
def test_settings_that_are_not_known(tmp_path, version, said, named):
    tensors, _ = written((64, 128), 32, version)
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, SCHEME, tensors, settings(version) | said)


def test_tiles_of_gemv_fast_are_whole(tmp_path):
    tensors, _ = written((64, 128), 32, FAST)
    tensors["m.qweight"] = tensors["m.qweight"][:, :96]
    with pytest.raises(FormatError, match=r"m.qweight: I16 \[16, 96\]"):
        decoded(tmp_path, SCHEME, tensors, settings(FAST))


def test_zeros_of_gemv_fast_have_the_dtype_of_the_scales(tmp_path):
    tensors, _ = written((64, 128), 32, FAST)
    tensors["m.qzeros"] = tensors["m.qzeros"].bfloat16()
    with pytest.raises(FormatError, match=r"m.qzeros: BF16"):
        decoded(tmp_path, SCHEME, tensors, settings(FAST))


def test_scales_of_gemv_fast_are_those_of_its_kernel(tmp_path):
    tensors, _ = written((64, 128), 32, FAST, torch.float32)
    with pytest.raises(FormatError, match=r"m.scales: F32"):
        decoded(tmp_path, SCHEME, tensors, settings(FAST))


def test_scaled_activations_are_named(tmp_path):
    tensors, _ = written((64, 128))
    for name in ("h.0.mlp.act.scales", "h.0.mlp.gelu_impl.scales"):
        with pytest.raises(FormatError, match=f"{name}: scales of an activation"):
            decoded(tmp_path, SCHEME, tensors | {name: torch.ones(64)}, settings())


def test_what_says_nothing_of_weights_is_let_be(tmp_path):
    tensors = {"a.scales": torch.ones(4), "qweight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
    with stored(tmp_path, tensors, settings()) as given:
        assert SCHEME.find(given) == {}
