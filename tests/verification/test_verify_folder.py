"""The whole line on a real tied model: ours passes with its logits, PEFT's merge of the same adapter is found out."""

from __future__ import annotations

import pytest
import zoo
from peft import LoraConfig
from zoo_adapters import make_adapter, peft_merge

from suture import pipeline
from suture.values import Options, Verdict
from suture.verification import verify_folder
from suture.verification.logits import LogitsSettings

SETTINGS = LogitsSettings(n_prompts=2)


@pytest.fixture
def tied(base_of, tmp_path):
    base, adapter = base_of("llama-tied"), tmp_path / "adapter"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"])
    make_adapter(zoo.FAMILIES["llama-tied"], base, config, adapter, std=0.05)
    return base, adapter


def verdict_of(base, adapter, folder, logits: LogitsSettings | None = SETTINGS) -> Verdict:
    case = pipeline.load_case(base, adapter, Options(), pipeline.Reading())
    return verify_folder(pipeline.plan_of(case), case.checkpoint, case.adapter, folder, full=True, logits=logits)


def test_our_merge(tied, tmp_path):
    base, adapter = tied
    pipeline.merge(base, adapter, tmp_path / "out")
    verdict = verdict_of(base, adapter, tmp_path / "out")
    assert verdict.ok, verdict
    assert verdict.logits is not None
    assert verdict.logits.mean_kl < 1e-9
    assert [c.name for c in verdict.checks if c.name in ("receipt", "logits")] == ["receipt", "logits"]


def test_without_logits_no_model_is_run(tied, tmp_path):
    base, adapter = tied
    pipeline.merge(base, adapter, tmp_path / "out")
    verdict = verdict_of(base, adapter, tmp_path / "out", logits=None)
    assert verdict.ok
    assert verdict.logits is None


def test_the_rivals_merge_of_a_tied_head(tied, tmp_path):
    base, adapter = tied
    with pytest.warns(UserWarning, match="tied"):
        peft_merge(zoo.FAMILIES["llama-tied"], base, adapter, tmp_path / "peft")
    verdict = verdict_of(base, adapter, tmp_path / "peft")
    assert {c.name for c in verdict.checks if not c.ok} == {"tie flags", "tensors that stay as they are", "logits"}
    (wrong,) = verdict.wrong
    assert (wrong.tensor, wrong.status) == ("model.embed_tokens.weight", "changed")
    assert "it holds what lm_head.weight should hold" in wrong.detail


def test_what_cannot_be_loaded_is_told_beside_the_other_faults(tied, tmp_path):
    base, adapter = tied
    pipeline.merge(base, adapter, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")
    verdict = verdict_of(base, adapter, tmp_path / "out")
    check = verdict.checks[-1]
    assert (check.name, check.ok) == ("logits", False)
    assert "not run: Transformers cannot load" in check.detail
