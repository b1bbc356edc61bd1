"""4 and 8 bits of bitsandbytes: every value as the library gives it, and hostile files."""

import itertools
import json

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from bitsandbytes.functional import quantize_4bit
from safetensors.torch import load_file, save_file

from suture import compiled
from suture.errors import FormatError
from suture.formats.quantized import bitsandbytes4, bitsandbytes8
from suture.formats.quantized.base import Given
from suture.formats.reading import TensorReader
from suture.formats.safetensors import read_header

NAME = "m.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"
SHAPES = ((64, 96), (33, 50), (7, 27), (128, 512), (3, 8, 64))


def packed(shape, kind="nf4", size=64, nested=False, dtype=torch.bfloat16):
    """The tensors of a weight as bitsandbytes saves them, and what its reference implementation decodes."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05).to(dtype)
    codes, state = quantize_4bit(weight, blocksize=size, quant_type=kind, compress_statistics=nested)
    absmax = state.absmax
    if nested:
        absmax = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    # The library's kernel for AVX-512 takes every row to begin a new block, which is wrong where blocks cross rows.
    code = _get_4bit_code(kind, codes.device)
    with torch.compiler.set_stance("force_eager"):
        values = _dequantize_4bit_compute(codes.reshape(-1), absmax.float(), code, size, weight.shape, dtype)
    return {NAME: codes, **{f"{NAME}.{k}": v for k, v in state.as_dict(packed=True).items()}}, values


def decoded(scheme, folder, step=7):
    """All rows of the one weight in a folder, read a few at a time."""
    tensors = {t.name: t for t in read_header(folder, "model.safetensors").tensors}
    with TensorReader(folder) as reader:
        [found] = scheme.find(Given(tensors, {}, "BF16", reader.read_into)).values()
        rows = scheme.open_rows(found.info, found.packed, reader.read_into)
        n = found.info.n_values // found.info.shape[-1]
        return found.info, np.concatenate([rows(at, min(at + step, n)) for at in range(0, n, step)])


def bits(values):
    """The stored form of a torch tensor, as a matrix."""
    flat = values.reshape(-1, values.shape[-1])
    return flat.numpy() if values.dtype == torch.float32 else flat.view(torch.uint16).numpy()


@pytest.fixture(params=["compiled", "numpy"])
def decoder(request, monkeypatch):
    """With the compiled decoder, and without."""
    assert compiled.library() is not None
    if request.param == "numpy":
        monkeypatch.setattr(compiled, "library", lambda: None)
    bitsandbytes4.decoder.cache_clear()
    yield
    bitsandbytes4.decoder.cache_clear()


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize(("kind", "nested"), list(itertools.product(("nf4", "fp4"), (False, True))))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 128, 512, 4096])
def test_four_bits_are_the_librarys(tmp_path, kind, nested, dtype, size):
    for shape in SHAPES:
        tensors, expected = packed(shape, kind, size, nested, dtype)
        save_file(tensors, tmp_path / "model.safetensors")
        info, values = decoded(bitsandbytes4, tmp_path)
        assert info.shape == shape
        np.testing.assert_array_equal(values.view(bits(expected).dtype), bits(expected))


def test_eight_bits_are_the_librarys(tmp_path):
    weight = torch.randn((65, 96), generator=torch.Generator().manual_seed(0)).half()
    codes, scales, _ = bnb.functional.int8_vectorwise_quant(weight)
    layout = torch.zeros((), dtype=torch.uint8)
    save_file({NAME: codes, "m.SCB": scales, "m.weight_format": layout}, tmp_path / "model.safetensors")
    info, values = decoded(bitsandbytes8, tmp_path)
    assert info.dtype == "F32"
    np.testing.assert_array_equal(values, bnb.functional.int8_vectorwise_dequant(codes, scales).numpy())


def state_with(**changes):
    tensors, _ = packed((64, 64))
    state = json.loads(bytes(tensors[STATE].numpy()))
    text = json.dumps({k: v for k, v in {**state, **changes}.items() if v is not None}).encode()
    return {STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {f"{NAME}.absmax": None}, "there is no m.weight.absmax"),
        (lambda: {f"{NAME}.quant_map": None}, "there is no m.weight.quant_map"),
        (lambda: {NAME: None}, "there is no m.weight"),
        (lambda: {f"{NAME}.absmax": torch.zeros(63)}, "63 values of F32"),
        (lambda: {f"{NAME}.absmax": torch.zeros(64, dtype=torch.float16)}, "64 values of F16"),
        (lambda: {NAME: torch.zeros((10, 1), dtype=torch.uint8)}, "10 values of U8"),
        (lambda: {STATE: torch.zeros(9, dtype=torch.uint8)}, "not JSON"),
        (lambda: {STATE: torch.zeros(1 << 17, dtype=torch.uint8)}, "131072 bytes of U8"),
        (lambda: state_with(quant_type="fp4"), "quant_type 'fp4'"),
        (lambda: state_with(blocksize=0), "blocksize 0"),
        (lambda: state_with(blocksize=True), "blocksize True"),
        (lambda: state_with(blocksize=None), "blocksize None"),
        (lambda: state_with(shape=[-1, 4]), r"shape \[-1, 4\]"),
        (lambda: state_with(shape=[1 << 40, 1 << 40]), "2,048 values of U8"),
        (lambda: state_with(dtype="int8"), "dtype 'int8'"),
        (lambda: state_with(nested_blocksize=256), "nested_offset"),
        (lambda: state_with(nested_blocksize=256, nested_offset=0.5), "there is no m.weight.nested_absmax"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, named):
    tensors, _ = packed((64, 64))
    for name, tensor in change().items():
        tensors.pop(name) if tensor is None else tensors.update({name: tensor})
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=named) as error:
        decoded(bitsandbytes4, tmp_path)
    assert "m.weight" in str(error.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({NAME: None}, "there is no m.weight"),
        ({"m.SCB": torch.zeros(3)}, "3 values of F32"),
        ({NAME: torch.zeros((65, 4))}, r"F32 \[65, 4\]"),
        ({"m.weight_format": torch.ones((), dtype=torch.uint8)}, "a layout that old GPU kernels used"),
    ],
)
def test_what_does_not_fit_in_eight_bits_is_named(tmp_path, change, named):
    codes, scales = torch.zeros((65, 4), dtype=torch.int8), torch.zeros(65)
    tensors = {NAME: codes, "m.SCB": scales, **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=named):
        decoded(bitsandbytes8, tmp_path)


def test_scales_may_lie_in_another_file(tmp_path):
    tensors, expected = packed((64, 96), nested=True)
    save_file(tensors, tmp_path / "model.safetensors")
    whole = load_file(tmp_path / "model.safetensors")
    save_file({NAME: whole.pop(NAME)}, tmp_path / "a.safetensors")
    save_file(whole, tmp_path / "b.safetensors")
    found = {t.name: t for file in ("a", "b") for t in read_header(tmp_path, f"{file}.safetensors").tensors}
    with TensorReader(tmp_path) as reader:
        [one] = bitsandbytes4.find(Given(found, {}, "BF16", reader.read_into)).values()
        values = bitsandbytes4.open_rows(one.info, one.packed, reader.read_into)(3, 60)
    assert one.info.file == "a.safetensors"
    np.testing.assert_array_equal(values, bits(expected)[3:60])
