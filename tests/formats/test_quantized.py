"""Signs of quantised weights, from names and types alone."""

from __future__ import annotations

import pytest

from suture.formats.quantized.signs import BITSANDBYTES, MXFP4, PACKED_COLUMNS, SCALED, find_quantized
from suture.values import TensorInfo


def tensors(**dtypes):
    return {n.replace("__", "."): TensorInfo(n.replace("__", "."), d, (4, 4), "f", 0, 0) for n, d in dtypes.items()}


@pytest.mark.parametrize(
    ("names", "scheme", "owner"),
    [
        ({"a__q__weight": "U8", "a__q__weight__absmax": "F32"}, BITSANDBYTES, "a.q"),
        ({"a__q__weight": "I8", "a__q__SCB": "F32"}, BITSANDBYTES, "a.q"),
        ({"a__q__qweight": "I32", "a__q__qzeros": "I32", "a__q__scales": "F16"}, PACKED_COLUMNS, "a.q"),
        ({"a__q__weight": "F8_E4M3", "a__q__weight_scale_inv": "F32"}, SCALED, "a.q"),
        ({"a__q__weight_packed": "I32", "a__q__weight_shape": "I64", "a__q__weight_scale": "BF16"}, SCALED, "a.q"),
        ({"a__experts__down_proj_blocks": "U8", "a__experts__down_proj_scales": "U8"}, MXFP4, "a.experts.down_proj"),
    ],
)
def test_each_scheme(names, scheme, owner):
    found = find_quantized(tensors(**names))
    assert found.schemes.keys() == {scheme}
    assert found.owners == {owner}
    assert not found.lonely


def test_packed_values_alone():
    found = find_quantized(tensors(a__q__weight="U8", a__k__weight="BF16", mask="U8"))
    assert (dict(found.schemes), found.lonely) == ({}, ("a.q.weight",))


def test_parameters_that_only_sound_alike():
    names = {"a__scales": "F32", "b__input_scale": "F32", "c_scales": "F32", "d__g_idx": "I32", "e__weight": "F8_E5M2"}
    found = find_quantized(tensors(**names))
    assert (dict(found.schemes), found.owners, found.lonely) == ({}, frozenset(), ())
