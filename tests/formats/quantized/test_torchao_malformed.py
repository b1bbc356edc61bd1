"""torchao: files whose tensors and metadata contradict themselves or each other are named."""

from __future__ import annotations

import pytest
import torch
from packed_cases import assert_same
from torchao_cases import NAME, changed, decoded, float8, int4, int8, small, tiles

from suture.errors import FormatError


@pytest.mark.parametrize(
    ("case", "named"),
    [
        (lambda: changed(int8, {"scale": None}), "there is no scale of a.q.weight"),
        (lambda: changed(int8, {"zero_point": None}), "there is no zero_point of a.q.weight"),
        (lambda: changed(int8, {"qdata": None}), "there is no 'a.q._weight_qdata'"),
        (lambda: changed(int8, {"scale": torch.ones(33, 2)}), r"_weight_scale: F32 \[33, 2\]"),
        (lambda: changed(int8, {"scale": torch.ones(33, 3).double()}), r"_weight_scale: F64 \[33, 3\]"),
        (lambda: changed(int8, {"zero_point": torch.ones(33, 3).int()}), r"_weight_zero_point: I32 \[33, 3\]"),
        (lambda: changed(int8, {"qdata": torch.ones(33, 48).byte()}), "_weight_qdata: U8"),
        (lambda: changed(int8, {"qdata": torch.ones(48).char()}), r"_weight_qdata: I8 \[48\]"),
        (lambda: changed(int8, {"qdata": torch.ones(0, 48).char()}), r"_weight_qdata: I8 \[0, 48\]"),
        (lambda: changed(int8, {"per_tensor_scale": torch.ones(1)}), "_weight_per_tensor_scale: not a part"),
        (lambda: changed(int8, {"per_tensor_scale": torch.ones(1)},
                         _tensor_data_names=["qdata", "scale", "zero_point", "per_tensor_scale"]),
         "_weight_per_tensor_scale: not a part"),
        (lambda: changed(int8, {"act_quant_scale": torch.ones(1)}), "_weight_act_quant_scale: not a part"),
        (lambda: changed(int8, fields={"block_size": [1, 17]}), r"blocks of \[1, 17\]"),
        (lambda: changed(int8, fields={"block_size": [1, 0]}), "block_size is"),
        (lambda: changed(int8, fields={"block_size": [1]}), "block_size is"),
        (lambda: changed(int8, fields={"block_size": [1, True]}), "block_size is"),
        (lambda: changed(int8, fields={"block_size": "1"}), "block_size is '1'"),
        (lambda: changed(int8, fields={"dtype": None}), "dtype is 'None'"),
        (lambda: changed(int8, fields={"dtype": {"_data": "int8"}}), "dtype is 'int8'"),
        (lambda: changed(int8, fields={"dtype": {"_data": [1]}}), "dtype is"),
        (lambda: changed(int8, _type="Int4PlainInt32Tensor"), "a 'Int4PlainInt32Tensor', which is not read"),
        (lambda: changed(int8, _data=[]), "its fields are no table"),
        (lambda: changed(int8, _tensor_data_names=None), "_weight_qdata: not a part"),
        (lambda: changed(int8, _tensor_data_names=["qdata", "scale", "zero_point", "x"]), "there is no x of"),
        (lambda: (int8()[0], {}), "_weight_qdata: no header's metadata describes it"),
        (lambda: (int8()[0], {NAME: "{"}), "_weight_qdata: no header's metadata describes it"),
        (lambda: (int8()[0], {NAME: "{" * 100_000}), "_weight_qdata: no header's metadata describes it"),
        (lambda: (int8()[0], {NAME: '{"_type": "Tensor"}'}), "_weight_qdata: no header's metadata describes it"),
        (lambda: changed(float8, {"qdata": torch.ones(16, 64).char()}), "_weight_qdata: I8"),
        (lambda: changed(float8, {"scale": torch.ones(16)}), r"_weight_scale: F32 \[16\]"),
        (lambda: changed(float8, {"scale": torch.ones(16, 5)}), r"_weight_scale: F32 \[16, 5\]"),
        (lambda: changed(float8, {"scale": torch.ones(16, 0)}), r"_weight_scale: F32 \[16, 0\]"),
        (lambda: changed(small, {"scale": torch.ones(128, 4)}), "_weight_scale: F32"),
        (lambda: changed(small, {"qdata": torch.ones(128, 64).char()}), "_weight_qdata: I8"),
        (lambda: changed(small, fields={"block_size": 48}), "_weight_scale: F8_E8M0"),
        (lambda: changed(small, fields={"block_size": 0}), "block_size is '0'"),
        (lambda: changed(small, fields={"is_swizzled_scales": True, "block_size": 16}), "_weight_scale: F8_E8M0"),
        (lambda: changed(small, fields={"elem_dtype": "fp6_e2m3"}), "elem_dtype is 'fp6_e2m3'"),
        (lambda: changed(small, fields={"elem_dtype": {"_data": "float8_e5m2"}}), "_weight_qdata: U8"),
        (lambda: changed(lambda: small("NVFP4Tensor"), {"qdata": torch.ones(128, 64).char()}), "_weight_qdata: I8"),
        (lambda: changed(lambda: small("NVFP4Tensor"), {"per_tensor_scale": torch.ones(2)},
                         _tensor_data_names=["qdata", "scale", "per_tensor_scale"]), "_weight_per_tensor_scale: F32"),
        (lambda: changed(int4, {"scale": torch.ones(33, 2)}), r"_weight_scale: F32 \[33, 2\]"),
        (lambda: changed(int4, {"zero_point": torch.ones(2, 33).int()}), r"_weight_zero_point: I32 \[2, 33\]"),
        (lambda: changed(int4, fields={"shape": [33, 32]}), r"_weight_qdata: I8 \[33, 32\]"),
        (lambda: changed(int4, fields={"block_size": [3, 32]}), r"blocks of \[3, 32\]"),
        (lambda: changed(lambda: int4(before=torch.ones(63))), r"_weight_act_pre_scale: F32 \[63\]"),
        (lambda: changed(lambda: int4(before=torch.ones(64).int())), r"_weight_act_pre_scale: I32 \[64\]"),
        (lambda: changed(tiles, {"qdata": torch.ones(5, 8, 32, 4)}), "_weight_qdata: F32"),
        (lambda: changed(tiles, {"qdata": torch.ones(5, 8, 32).int()}), "_weight_qdata: I32"),
        (lambda: changed(tiles, {"scale_and_zero": torch.ones(32, 40, 2)}), "_weight_scale_and_zero: F32"),
        (lambda: changed(tiles, {"scale_and_zero": torch.ones(32, 41, 2).bfloat16()}), "_weight_scale_and_zero: BF16"),
        (lambda: changed(tiles, fields={"shape": [33, 1025]}), "_weight_qdata: I32"),
        (lambda: changed(tiles, fields={"shape": [1 << 60, 1 << 60]}), "_weight_qdata: I32"),
        (lambda: changed(tiles, fields={"block_size": [1, 48]}), r"blocks of \[1, 48\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, case, named):
    tensors, metadata = case()
    with pytest.raises(FormatError, match=named) as error:
        decoded(tmp_path, tensors, metadata)
    assert "a.q." in str(error.value)


def test_tiles_of_amd_are_named(tmp_path):
    tensors, metadata, expected = tiles()
    how = {"_type": "Int4WeightOnlyConfig", "_data": {"int4_tile_packed_ntile": 8}}
    settings = {"quant_type": {"default": how, "more": [how]}}
    assert_same(decoded(tmp_path, tensors, metadata, settings)[NAME], expected)
    how["_data"]["int4_tile_packed_ntile"] = 16
    with pytest.raises(FormatError, match="int4_tile_packed_ntile is '16'"):
        decoded(tmp_path, tensors, metadata, settings)
