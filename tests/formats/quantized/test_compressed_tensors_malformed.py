"""compressed-tensors: files and configs that contradict themselves or each other are named."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors_cases import changed, eight_bits, integers, settings
from packed_cases import assert_same, decoded, random_bytes

from suture.errors import FormatError
from suture.formats.quantized.compressed_tensors import SCHEME

WRONG_PACKED = [
    ({"weight_scale": None}, "weight_packed: there is no a.q.weight_scale"),
    ({"weight_shape": None}, "weight_packed: there is no a.q.weight_shape"),
    ({"weight_zero_point": None}, "weight_packed: there is no a.q.weight_zero_point"),
    ({"weight_packed": None}, "there is no a.q.weight"),
    ({"weight_scale": torch.ones(33, 5).bfloat16()}, r"weight_scale: BF16 \[33, 5\]"),
    ({"weight_scale": torch.ones(34, 4).bfloat16()}, r"weight_scale: BF16 \[34, 4\]"),
    ({"weight_scale": torch.ones(33, 4).double()}, r"weight_scale: F64 \[33, 4\]"),
    ({"weight_scale": torch.ones(33, 4).byte()}, r"weight_scale: U8 \[33, 4\]"),
    ({"weight_shape": torch.tensor([33, 72])}, r"weight_packed: I32 \[33, 8\], which is pack-quantized of 33 × 72"),
    ({"weight_shape": torch.tensor([32, 64])}, "weight_shape: 32 × 64"),
    ({"weight_shape": torch.tensor([33, -64])}, "weight_shape: 33 × -64"),
    ({"weight_shape": torch.tensor([33, 1 << 62])}, "pack-quantized of 33 × 4611686018427387904"),
    ({"weight_shape": torch.tensor([33])}, r"weight_shape: I64 \[1\]"),
    ({"weight_shape": torch.tensor([33.0, 64.0])}, "weight_shape: F32"),
    ({"weight_zero_point": torch.zeros(5, 4).byte()}, r"weight_zero_point: U8 \[5, 4\]"),
    ({"weight_zero_point": torch.zeros(33, 4).int()}, r"weight_zero_point: I32 \[33, 4\]"),
    ({"weight_packed": torch.zeros(33, 8)}, r"weight_packed: F32 \[33, 8\]"),
    ({"weight_packed": torch.zeros(33, 8).long()}, r"weight_packed: I64 \[33, 8\]"),
    ({"weight_packed": torch.zeros(33, 8, 1).int()}, r"weight_packed: I32 \[33, 8, 1\]"),
    ({"weight": torch.zeros(33, 64)}, "there is a a.q.weight as well"),
    ({"weight_global_scale": torch.ones(1)}, "weight_global_scale: beside a.q.weight_packed"),
    ({"weight_g_idx": torch.zeros(63).int()}, r"weight_g_idx: I32 \[63\]"),
    ({"weight_g_idx": torch.zeros(64)}, r"weight_g_idx: F32 \[64\]"),
    ({"weight_g_idx": torch.zeros(64).int()}, "weight_g_idx: groups of different sizes"),
    ({"weight_g_idx": torch.full((64,), 1 << 30).int()}, "weight_g_idx: groups of different sizes"),
    ({"weight_g_idx": torch.full((64,), -5).int()}, "weight_g_idx: groups of different sizes"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "named"), WRONG_PACKED)
def test_packed_integers_that_do_not_fit_are_named(tmp_path, changes, named):
    tensors, args, _ = integers(symmetric=False)
    with pytest.raises(FormatError, match=named) as error:
        decoded(tmp_path, SCHEME, changed(tensors, changes), settings(args, format="pack-quantized"))
    assert "a.q." in error.value.where


def test_zeros_of_a_symmetric_weight_are_named(tmp_path):
    tensors, args, _ = integers(symmetric=False)
    with pytest.raises(FormatError, match=r"a\.q\.weight_zero_point: beside a\.q\.weight_packed"):
        decoded(tmp_path, SCHEME, tensors, settings({**args, "symmetric": True}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weight_scale": None}, "there is no a.q.weight_scale"),
        ({"weight": None}, "there is no a.q.weight"),
        ({"weight_scale": torch.ones(33, 2)}, r"weight_scale: F32 \[33, 2\]"),
        ({"weight_scale": torch.ones(33, 1).long()}, r"weight_scale: I64 \[33, 1\]"),
        ({"weight_zero_point": torch.zeros(33, 1).int()}, r"weight_zero_point: I32 \[33, 1\]"),
        ({"weight_zero_point": torch.zeros(33).char()}, r"weight_zero_point: I8 \[33\]"),
        ({"weight": torch.zeros(33, 40).short()}, r"weight: I16 \[33, 40\]"),
        ({"weight": torch.zeros(33, 40).to(torch.float8_e5m2)}, r"weight: F8_E5M2 \[33, 40\]"),
        ({"weight": torch.zeros(33, 40).to(torch.float8_e4m3fn)}, r"F8_E4M3 \[33, 40\], which is naive-quantized"),
        ({"weight": torch.zeros(33).char()}, r"weight: I8 \[33\]"),
        ({"weight": torch.zeros(())}, r"weight: F32 \[\]"),
        ({"weight": torch.zeros(33, 0).char()}, r"weight: I8 \[33, 0\]"),
        ({"weight_g_idx": torch.zeros(40).int()}, "weight_g_idx: beside int8, a scale for each channel"),
        ({"weight_shape": torch.tensor([33, 40])}, "weight_shape: beside a.q.weight"),
    ],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_named(tmp_path, changes, named):
    tensors, args, _ = eight_bits("channel")
    with pytest.raises(FormatError, match=named) as error:
        decoded(tmp_path, SCHEME, changed(tensors, changes), settings(args, format="int-quantized"))
    assert "a.q." in error.value.where


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weight_global_scale": None}, "there is no a.q.weight_global_scale"),
        ({"weight_global_scale": torch.ones(2)}, r"weight_global_scale: F32 \[2\]"),
        ({"weight_global_scale": torch.ones(1).half()}, r"weight_global_scale: F16 \[1\]"),
        ({"weight_scale": torch.ones(4, 3).to(torch.float8_e4m3fn)}, r"weight_scale: F8_E4M3 \[4, 3\]"),
        ({"weight_scale": torch.ones(4, 2).bfloat16()}, r"weight_scale: BF16 \[4, 2\]"),
        ({"weight_scale": torch.ones(4, 1).byte()}, "which is mxfp4-pack-quantized of 4 × 32"),
        ({"weight_packed": torch.zeros(4, 16).char()}, r"weight_packed: I8 \[4, 16\]"),
        ({"weight_zero_point": torch.zeros(4, 2).to(torch.float8_e4m3fn)}, "weight_zero_point: beside"),
    ],
)
def test_small_floats_that_do_not_fit_are_named(tmp_path, changes, named):
    tensors = {
        "a.q.weight_packed": random_bytes(4, 16),
        "a.q.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn),
        "a.q.weight_global_scale": torch.ones(1),
    }
    args = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    config = settings(args, format="nvfp4-pack-quantized")
    assert decoded(tmp_path, SCHEME, tensors, config).keys() == {"a.q.weight"}
    with pytest.raises(FormatError, match=named) as error:
        decoded(tmp_path, SCHEME, changed(tensors, changes), config)
    assert "a.q." in error.value.where


GROUP = integers()[1]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, "weight_packed: I32"),
        (settings({**GROUP, "num_bits": 3}), "weight_packed: I32"),
        (settings({**GROUP, "type": "float"}), "weight_packed: I32"),
        (settings(GROUP, format="int-quantized"), "which is pack-quantized"),
        (settings({**GROUP, "format": "naive-quantized"}, format="pack-quantized"), "which is pack-quantized"),
        (settings(GROUP, format="dense"), "which is pack-quantized"),
        (settings({**GROUP, "group_size": 32}), "weight_scale: BF16"),
        (settings({**GROUP, "group_size": 17}), "weight_scale: BF16"),
        (settings({**GROUP, "strategy": "channel"}), "weight_scale: BF16"),
        (settings({**GROUP, "strategy": "block", "block_structure": [1, 17]},
                  {**GROUP, "strategy": "block", "block_structure": [1, 18]}), "2 groups of quantization_config"),
        (settings(GROUP, format="sparse-24-bitmask"), "(?s)format is 'sparse-24-bitmask'.*sparse weights are not read"),
        (settings(GROUP, format="marlin-24"), "format is 'marlin-24'"),
        (settings({**GROUP, "format": "marlin-24"}), "config_groups.group_0.format is 'marlin-24'"),
        (settings(GROUP, format="zip"), "format is 'zip'"),
        (settings(GROUP, format=[1]), r"format is '\[1\]'"),
        (settings(GROUP, sparsity_config={"format": "sparse-bitmask"}), "sparsity_config.format is 'sparse-bitmask'"),
        (settings(GROUP, transform_config={"config_groups": {"R4": {"apply": [{"location": "input"}]}}}),
         "transform_config is 'input'"),
        (settings(GROUP, transform_config={"config_groups": {"R4": {}}}), "transform_config"),
        (settings(GROUP, transform_config={"config_groups": 4}), "transform_config"),
        (settings({**GROUP, "num_bits": 9}), "num_bits is '9'"),
        (settings({**GROUP, "num_bits": True}), "num_bits is 'True'"),
        (settings({**GROUP, "num_bits": "4"}), "num_bits is '4'"),
        (settings({**GROUP, "group_size": 0}), "group_size is '0'"),
        (settings({**GROUP, "group_size": None}), "group_size is 'None'"),
        (settings({**GROUP, "type": "posit"}), "type is 'posit'"),
        (settings({**GROUP, "symmetric": 1}), "symmetric is '1'"),
        (settings({**GROUP, "strategy": "token"}), "strategy is 'token'"),
        (settings({**GROUP, "strategy": "block"}), "block_structure is 'None'"),
        (settings({**GROUP, "strategy": "block", "block_structure": [0, 4]}), "block_structure is '0'"),
        (settings({**GROUP, "strategy": "block", "block_structure": "4x"}), "block_structure is ''"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16 is"),
        ({"config_groups": {"g": {"weights": 4}}}, "config_groups.g.weights is '4'"),
        ({"config_groups": [GROUP]}, "config_groups is"),
        ({"config_groups": {str(i): {"weights": GROUP} for i in range(300)}}, "config_groups is"),
    ],
)  # fmt: skip
def test_a_config_that_says_something_else_is_named(tmp_path, config, named):
    tensors, _, _ = integers()
    with pytest.raises(FormatError, match=named):
        decoded(tmp_path, SCHEME, tensors, config)


def test_what_says_nothing_of_weights_is_let_be(tmp_path):
    tensors, args, expected = integers()
    more = {
        "sparsity_config": {"format": "dense"},
        "transform_config": {"config_groups": {"R1": {"apply": [{"location": "weight_input"}]}}},
        "kv_cache_scheme": {"num_bits": 8},
        "ignore": ["lm_head"],
    }
    config = settings({**args, "actorder": "weight", "observer": "minmax"}, format="pack-quantized", **more)
    config["config_groups"]["attention"] = {"targets": ["LlamaAttention"], "weights": None}
    assert_same(decoded(tmp_path, SCHEME, tensors, config)["a.q.weight"], expected)
