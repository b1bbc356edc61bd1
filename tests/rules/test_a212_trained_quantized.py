"""A212: signs of a quantised base."""

from __future__ import annotations

import pytest
from ledgers import beside
from rule_cases import BOTH, adapter, findings, only

AXOLOTL = "axolotl config\n```yaml\nbase_model: org/tiny-llama\n{}\n```\n"


@pytest.mark.parametrize("name", ["unsloth/tiny-llama-bnb-4bit", "unsloth/tiny-llama-unsloth-bnb-4bit"])
def test_the_name_of_the_base(base, tmp_path, name):
    finding = only(base, adapter(tmp_path, BOTH, base_model_name_or_path=name), "A212")
    assert finding.severity == "info"
    assert name in finding.found


def test_the_ledger(base, tmp_path):
    assert "nf4" in only(base, beside(adapter(tmp_path, BOTH), quantize="nf4"), "A212").found


@pytest.mark.parametrize("line", ["adapter: qlora", "load_in_4bit: true", "load_in_8bit: True"])
def test_an_axolotl_config(base, tmp_path, line):
    (adapter(tmp_path, BOTH) / "README.md").write_text(AXOLOTL.format(line))
    assert only(base, tmp_path, "A212").where.startswith("README.md, Axolotl config")


def test_a_llama_factory_config(base, tmp_path):
    (adapter(tmp_path, BOTH) / "training_args.yaml").write_text("quantization_bit: 4\n")
    assert "4 bits" in only(base, tmp_path, "A212").found


@pytest.mark.parametrize("line", ["adapter: lora", "load_in_4bit: false", "strict: true"])
def test_no_sign(base, tmp_path, line):
    (beside(adapter(tmp_path, BOTH, base_model_name_or_path="org/bnb")) / "README.md").write_text(AXOLOTL.format(line))
    assert not findings(base, tmp_path, "A212")
