"""M313: keys of patterns that match nothing."""

from __future__ import annotations

import pytest
import tiny
from peft import LoraConfig, get_peft_model
from rule_cases import BOTH, adapter, findings, only, pair
from zoo import FAMILIES, load


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", ["proj", "layers.7.self_attn.q_proj", "k_proj", "self_attn"])
def test_a_key_that_matches_nothing(base, tmp_path, field, key):
    finding = only(base, adapter(tmp_path, BOTH, **{field: {"q_proj": 2, key: 2}}), "M313")
    assert finding.where == f"adapter_config.json: {field}"
    assert key in finding.found


@pytest.mark.parametrize(
    "key", ["q_proj", "layers.1.self_attn.q_proj", r"layers\.\d+\.self_attn.q_proj", "^model.*q_proj"]
)
def test_a_key_that_matches(base, tmp_path, key):
    assert not findings(base, adapter(tmp_path, BOTH, alpha_pattern={key: 2}), "M313")


def test_the_key_that_peft_passes_over(base, tmp_path):
    """PEFT itself: `proj` gives no module another alpha."""
    model = get_peft_model(tiny.make_model(), LoraConfig(r=2, target_modules=["q_proj"], alpha_pattern={"proj": 64}))
    assert {m.scaling["default"] for n, m in model.named_modules() if n.endswith("q_proj")} == {8 / 2}


@pytest.mark.parametrize("key", ["gate_up_proj", "experts.gate_up_proj", r".*\.gate_up_proj"])
def test_patterns_of_fused_experts(base_of, tmp_path, key):
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["gate_up_proj"], rank_pattern={key: 3})
    model = get_peft_model(load(FAMILIES["mixtral"], base_of("mixtral")), config)
    tiny.trained(model).save_pretrained(tmp_path)
    assert not findings(base_of("mixtral"), tmp_path, "M313")


def test_names_that_lead_nowhere_are_told_by_another(base, tmp_path):
    tensors = {**BOTH, **pair("model.layers.0.attn.k_proj")}
    assert not findings(base, adapter(tmp_path, tensors, alpha_pattern={"attn.k_proj": 2}), "M313")


def test_names_of_an_older_generation(base_of, tmp_path):
    """Modules of Gemma 3 as they are on disk; a pattern may have either name."""
    modules = [f"language_model.model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    tensors = {key: array for module in modules for key, array in pair(module, 32, 32).items()}
    in_memory = "model.language_model.layers.1.self_attn.q_proj"
    tuned = adapter(tmp_path, tensors, alpha_pattern={modules[0]: 2, in_memory: 2})
    assert not findings(base_of("gemma3-image"), tuned, "M313")
