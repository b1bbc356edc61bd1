"""W701: what the config says of ties, and what the files hold."""

from __future__ import annotations

import numpy as np
import pytest
from model_cases import copied, edit, found, only, reweigh
from peft import LoraConfig, get_peft_model
from rule_cases import EMBED, HEAD, llama, random
from tiny import make_model, trained, wrapped
from zoo import FAMILIES, load

from suture.formats.sameness import SAMPLE_BYTES, SAMPLES

E, H = f"{EMBED}.weight", f"{HEAD}.weight"


def test_trained_apart_and_said_to_be_tied(tmp_path):
    """What mergers by shards leave that write a new head and not the flag."""
    finding = only(llama(tmp_path, tied=True, tensors={H: random(32, 16, seed=9)}), "W701")
    assert finding.severity == "error"
    assert finding.where == "config.json: tie_word_embeddings"
    assert E in finding.found
    assert H in finding.found


def test_the_flag_of_the_text_model_alone(tmp_path):
    """What Transformers itself saves of an untied Gemma 3: the flag of the text model stays on."""
    family = FAMILIES["gemma3-image"]
    family.model_class(family.make_config(tie_word_embeddings=False)).save_pretrained(tmp_path)
    finding = only(tmp_path, "W701")
    assert finding.severity == "warning"
    assert finding.where == "config.json: text_config.tie_word_embeddings"
    edit(tmp_path / "config.json", lambda c: c["text_config"].pop("tie_word_embeddings"))
    assert only(tmp_path, "W701").where == finding.where  # by default it is on
    edit(tmp_path / "config.json", lambda c: c["text_config"].update(tie_word_embeddings=False))
    assert not found(tmp_path, "W701")


def test_a_merge_by_peft_that_unties_the_top_level_alone(base_of, tmp_path):
    family = FAMILIES["gemma3-image"]
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = trained(get_peft_model(load(family, base_of(family.name)), config))
    model.merge_and_unload().save_pretrained(tmp_path)
    assert only(tmp_path, "W701").where == "config.json: text_config.tie_word_embeddings"


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_a_merge_by_peft_that_unties(tmp_path, saved):
    model = trained(wrapped(make_model(), modules_to_save=saved))
    model.merge_and_unload().save_pretrained(tmp_path)
    assert not found(tmp_path)
    edit(tmp_path / "config.json", lambda c: c.update(tie_word_embeddings=True))
    assert only(tmp_path, "W701").severity == "error"


def test_no_head(tmp_path):
    make_model(tie=True).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda c: c.update(tie_word_embeddings=False))
    finding = only(tmp_path, "W701")
    assert (finding.severity, H in finding.found) == ("error", True)
    assert not found(tmp_path, "W704"), "one defect, one rule"


def test_levels_that_disagree_over_one_tensor(base_of, tmp_path):
    folder = copied(base_of("gemma3-image"), tmp_path / "model")
    edit(folder / "config.json", lambda c: c["text_config"].update(tie_word_embeddings=False))
    assert only(folder, "W701").severity == "warning"


@pytest.mark.parametrize("tied", [True, False])
def test_equal_ends(tmp_path, tied):
    folder = llama(tmp_path, tied=tied, tensors={H: random(32, 16)})
    reweigh(folder, lambda t: t.update({H: t[E].copy()}))
    assert not found(folder, "W701")


def test_the_flag_of_a_tower_without_text(tmp_path):
    """Older versions wrote every default into the config of the tower that sees."""
    towers = {"vision_config": {"tie_word_embeddings": True}}
    assert not found(llama(tmp_path / "known", **towers), "W701")
    assert not found(llama(tmp_path / "ours", architectures=["OurModel"], model_type="ours", **towers), "W701")


def test_ends_that_differ_in_one_value_between_the_samples(tmp_path):
    rows = np.ones((2 * SAMPLES * SAMPLE_BYTES // 64, 16), np.float32)
    head = rows.copy()
    head[-70] = 2
    tensors = {E: rows, H: head}
    folder = llama(tmp_path, tied=True, tensors=tensors, vocab_size=len(rows))
    assert not found(folder, "W701")
    assert only(folder, "W701", deep=True).severity == "error"


def test_apart_and_said_so(tmp_path):
    assert not found(llama(tmp_path), "W701")
