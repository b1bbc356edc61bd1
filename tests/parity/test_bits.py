"""The same bits as PEFT's own merge where that one is right, and one rounding from float32 to bf16."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from zoo import FAMILIES, build, load
from zoo_adapters import perturb

import suture
from suture.values import Options

# Wide enough for several row blocks with a tail, and for widths that no vector register divides.
SIZES = {"hidden_size": 168, "intermediate_size": 333, "vocab_size": 413, "num_attention_heads": 4}
WIDE = dataclasses.replace(FAMILIES["llama"], name="llama-wide", settings={**FAMILIES["llama"].settings, **SIZES})
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
RANK, SCALE = 12, 1.75
UNIT = 2.0**-24  # half the distance of 1 to the next float32


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bf16", "f32"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def bases(tmp_path_factory, quiet_torch) -> Mapping[torch.dtype, Path]:
    """The same values in bf16 and in float32."""
    root = tmp_path_factory.mktemp("bits")
    bf16 = build(WIDE, root / "bf16", dtype=torch.bfloat16)
    load(WIDE, bf16).save_pretrained(root / "f32")
    return {torch.bfloat16: bf16, torch.float32: root / "f32"}


@pytest.fixture(scope="module")
def adapter(bases, tmp_path_factory) -> Path:
    """A float32 adapter on every linear layer."""
    config = LoraConfig(r=RANK, lora_alpha=RANK * SCALE, target_modules=MODULES)
    torch.manual_seed(3)
    live = get_peft_model(load(WIDE, bases[torch.float32]), config)
    perturb(live, seed=3, std=0.02)
    live.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return folder


def test_same_bits_as_peft_or_within_the_rounding_of_other_sums(dtype, bases, adapter, tmp_path):
    """Bit for bit where both libraries add the products in order, each rounded once (fused multiply-add)."""
    suture.merge(bases[dtype], adapter, tmp_path / "ours")
    live = PeftModel.from_pretrained(load(WIDE, bases[dtype], dtype=dtype), adapter)
    live.merge_and_unload(safe_merge=False).save_pretrained(tmp_path / "theirs")
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert {t.dtype for t in ours.values()} == {dtype}
    factors = tensors(adapter)
    for name in sorted(ours):
        if sums_are_in_order() or not is_merged(name):
            assert torch.equal(bits(ours[name]), bits(theirs[name])), name
        else:
            distance = (ours[name].double() - theirs[name].double()).abs()
            assert bool((distance <= bound(name, theirs[name], factors)).all()), name


def test_the_merge_changes_what_it_should(dtype, bases, adapter, tmp_path):
    suture.merge(bases[dtype], adapter, tmp_path / "ours")
    before, after = tensors(bases[dtype]), tensors(tmp_path / "ours")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {*filter(is_merged, before)}


def test_bf16_is_float32_rounded_once(bases, adapter, tmp_path):
    suture.merge(bases[torch.bfloat16], adapter, tmp_path / "bf16")
    suture.merge(bases[torch.float32], adapter, tmp_path / "f32")
    half, full = tensors(tmp_path / "bf16"), tensors(tmp_path / "f32")
    for name in full:
        assert torch.equal(bits(half[name]), bits(full[name].bfloat16())), name


def test_float32_output_of_a_bf16_base_is_the_float32_merge(bases, adapter, tmp_path):
    suture.merge(bases[torch.bfloat16], adapter, tmp_path / "widened", options=Options(dtype="F32"))
    suture.merge(bases[torch.float32], adapter, tmp_path / "f32")
    widened, full = tensors(tmp_path / "widened"), tensors(tmp_path / "f32")
    for name in full:
        assert torch.equal(bits(widened[name]), bits(full[name])), name


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return found


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def is_merged(name: str) -> bool:
    return name.split(".")[-2] in MODULES


@functools.cache
def sums_are_in_order() -> bool:
    """True when NumPy and torch both compute B A as r fused multiply-adds in the order of the rank."""
    rng = np.random.default_rng(0)
    for n_rows, n_cols in ((333, 168), (168, 333), (84, 168), (413, 168)):
        b = rng.normal(0, 0.02, (n_rows, RANK)).astype(np.float32)
        a = rng.normal(0, 0.02, (RANK, n_cols)).astype(np.float32)
        in_order = np.zeros((n_rows, n_cols), np.float32)
        for k in range(RANK):  # a product of two float32 is exact in float64
            in_order = (b[:, k : k + 1].astype(np.float64) * a[k].astype(np.float64) + in_order).astype(np.float32)
        theirs = (torch.from_numpy(b) @ torch.from_numpy(a)).numpy()
        if not (np.array_equal(b @ a, in_order) and np.array_equal(theirs, in_order)):
            return False
    return True


def bound(name: str, merged: torch.Tensor, factors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """How far two float32 merges may lie apart: both sums' rounding, γ_r |B||A| each, and that of scale and sum."""
    module = f"base_model.model.{name.removesuffix('.weight')}"
    b, a = (factors[f"{module}.lora_{x}.weight"].double().abs() for x in "BA")
    gamma = (RANK + 2) * UNIT / (1 - (RANK + 2) * UNIT)
    step = 2.0**-8 if merged.dtype == torch.bfloat16 else 2.0**-23  # of the output's dtype, relative
    return 2 * gamma * SCALE * (b @ a) + 2 * step * merged.double().abs()


def test_the_bound_is_met_by_the_exact_merge(bases, adapter):
    """The bound, tried on a merge in float64, so that it is right on machines where it is needed."""
    name = "model.layers.0.mlp.up_proj.weight"
    factors, weight = tensors(adapter), tensors(bases[torch.float32])[name]
    module = f"base_model.model.{name.removesuffix('.weight')}"
    b, a = (factors[f"{module}.lora_{x}.weight"] for x in "BA")
    exact = weight.double() + SCALE * (b.double() @ a.double())
    rounded = weight + SCALE * (b @ a)
    limit = bound(name, rounded, factors)
    assert bool(((rounded.double() - exact).abs() <= limit).all())
    assert bool((limit < (exact - weight.double()).abs().mean()).all())
