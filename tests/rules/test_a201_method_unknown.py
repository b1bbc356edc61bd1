"""A201: methods and variants that cannot be merged."""

from __future__ import annotations

import dataclasses

import pytest
from rule_cases import BOTH, adapter, findings, only

from suture.rules.a201_method_unknown import VARIANTS


def test_another_method(base, tmp_path):
    finding = only(base, adapter(tmp_path, BOTH, peft_type="LOHA"), "A201")
    assert "LOHA" in finding.found
    assert finding.severity == "error"


@pytest.mark.parametrize("field", sorted(VARIANTS))
def test_a_variant(base, tmp_path, field):
    finding = only(base, adapter(tmp_path, BOTH, **{field: [[0, 1]]}), "A201")
    assert finding.where == f"adapter_config.json: {field}"
    assert finding.do


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_a_variant_that_is_off(base, tmp_path, value):
    assert not findings(base, adapter(tmp_path, BOTH, **dict.fromkeys(VARIANTS, value)), "A201")


def test_variants_are_those_of_peft():
    """Every sub-config and switch of PEFT that changes the computation is judged here, or merged."""
    from peft import LoraConfig

    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    inits = {"eva_config", "corda_config", "lora_ga_config", "loftq_config"}  # A203 looks at how training began
    merged = {"use_dora", "use_rslora", "runtime_config"}
    switches = {f for f in fields if f.startswith("use_") or f.endswith("_config")} - inits - merged
    assert switches - VARIANTS.keys() == set()
    assert VARIANTS.keys() - fields == {"invocation_string"}  # of older versions
