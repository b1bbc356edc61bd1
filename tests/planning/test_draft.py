"""Operations of a draft, and what cannot become one."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model
from rule_cases import findings
from zoo import FAMILIES
from zoo_adapters import load_base


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("resize", "refused"), [(8, True), (0, False)])
def test_a_bias_for_every_token_that_no_adapter_holds(base_of, tmp_path, resize, refused):
    """BART's final_logits_bias grows with the vocabulary in memory, and PEFT does not save it."""
    family = FAMILIES["bart"]
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "shared"])
    get_peft_model(load_base(family, base_of("bart"), resize), config).save_pretrained(tmp_path)
    found = [f for f in findings(base_of("bart"), tmp_path, "T403") if "final_logits_bias" in f.where]
    assert bool(found) == refused
