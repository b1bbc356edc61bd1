"""Plain weights as a QLoRA sees them: rows of what the library's quantiser makes of the whole."""

import itertools

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit
from packed_cases import assert_same, decoded

from suture.formats.quantized import as_trained, bitsandbytes4
from suture.formats.quantized.as_trained import FORMS, as_dense
from suture.formats.quantized.base import Scheme

W = "m.q_proj.weight"
SHAPES = ((64, 96), (33, 50), (7, 27), (301, 128))
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(params=list(itertools.product(SHAPES, DTYPES)), ids=str)
def weight(request):
    shape, dtype = request.param
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 1, shape[0])[:, None]
    values[3] = 0
    return values.to(dtype)


def scheme(form):
    """One whose weights are those of a form, for all matrices."""
    return Scheme("as_trained", lambda given: {W: as_dense(given.tensors[W], form)}, as_trained.open_rows, str)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "int8"])
def test_four_bits(tmp_path, weight, form, monkeypatch):
    """Read in ranges of rows and in small chunks, against the whole weight as the loader quantises and saves it."""
    monkeypatch.setattr(as_trained, "CHUNK_VALUES", 1 << 9)
    kind, _, nested = form.partition("-")
    ours = decoded(tmp_path / "plain", scheme(form), {W: weight})[W]
    codes, state = quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=bool(nested))
    saved = {W: codes, **{f"{W}.{key}": value for key, value in state.as_dict(packed=True).items()}}
    assert_same(ours, decoded(tmp_path / "saved", bitsandbytes4.SCHEME, saved)[W])


def test_eight_bits(tmp_path, weight):
    codes, scales, _ = int8_vectorwise_quant(weight.half())
    assert_same(decoded(tmp_path, scheme("int8"), {W: weight})[W], int8_vectorwise_dequant(codes, scales))
