"""The forward pass: right merges equal base + live adapter, wrong ones do not, and a bad witness is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from zoo_adapters import make_adapter, peft_merge

from suture.errors import InputError, MissingExtra, SutureError
from suture.formats import read_adapter, read_checkpoint
from suture.values import Adapter, Checkpoint, LogitsReport
from suture.verification.logits import LogitsSettings, logits, logits_check

FEW = LogitsSettings(n_prompts=3)
PREFIX = "base_model.model."


def report_of(base: Path, adapter: Path, merged: Path) -> LogitsReport:
    return logits(read_checkpoint(base), read_adapter(adapter), merged, settings=FEW)


def merge_by_hand(base: Path, adapter: Path, out: Path, share: float = 1.0, dtype=torch.float32, untie=False) -> Path:
    """W + share · s · B A for every pair of the adapter, and its whole tensors in the place of the base's."""
    weights = {k: v for f in sorted(base.glob("*.safetensors")) for k, v in load_file(f).items()}
    config = json.loads((base / "config.json").read_text())
    factors = {k.removeprefix(PREFIX): v for k, v in load_file(adapter / "adapter_model.safetensors").items()}
    lora = json.loads((adapter / "adapter_config.json").read_text())
    scale = share * lora["lora_alpha"] / (math.sqrt(lora["r"]) if lora["use_rslora"] else lora["r"])
    if untie:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        config["tie_word_embeddings"] = False
    for key, a in factors.items():
        if key.endswith(".lora_A.weight"):
            name = key.replace(".lora_A.weight", ".weight")
            delta = factors[key.replace("lora_A", "lora_B")] @ a
            weights[name] = (weights[name].float() + scale * delta).to(dtype)
        elif key.endswith("trainable_tokens_delta"):
            weights["model.embed_tokens.weight"][lora["trainable_token_indices"]] = a
        elif not any(part in key for part in ("lora", ".modules_to_save.", ".original_module.", ".base_layer.")):
            weights[key] = a
    if "model.embed_tokens.weight" in weights:
        config["vocab_size"] = len(weights["model.embed_tokens.weight"])
    out.mkdir()
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture
def trained(base_of, tmp_path):
    """Base and adapter folders of a family, and where to merge to."""

    def made(family: str, resize: int = 0, **config: object) -> tuple[Path, Path, Path]:
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
        base, folder = base_of(family), tmp_path / "adapter"
        make_adapter(zoo.FAMILIES[family], base, LoraConfig(**config), folder, std=0.05, resize=resize)
        return base, folder, tmp_path / "merged"

    return made


class TestMerges:
    def test_a_right_merge_is_the_unmerged_model(self, trained):
        base, adapter, out = trained("llama")
        report = report_of(base, adapter, merge_by_hand(base, adapter, out))
        assert report.mean_kl < 1e-9
        assert report.max_kl < 1e-8
        assert report.max_abs_diff < 1e-3
        assert report.top1_agreement == 1.0
        assert report.kl_to_base > 1e-4
        assert report.n_positions == 3 * 32
        assert report.new_token_mean_kl is None
        assert report.witness.startswith("peft 0.")
        assert "for want of a tokenizer" in report.witness
        assert logits_check(report, "F32").ok

    @pytest.mark.parametrize("share", [0.0, 2.0])
    def test_an_update_that_is_missing_or_twice_in(self, trained, share):
        base, adapter, out = trained("llama")
        report = report_of(base, adapter, merge_by_hand(base, adapter, out, share))
        if share == 0.0:
            assert report.mean_kl == pytest.approx(report.kl_to_base)
        check = logits_check(report, "F32")
        assert not check.ok
        assert "mean KL" in check.detail
        assert not logits_check(report, "BF16").ok

    def test_a_16_bit_merge_is_judged_by_the_rounding_of_its_file(self, trained):
        base, adapter, out = trained("llama")
        report = report_of(base, adapter, merge_by_hand(base, adapter, out, dtype=torch.bfloat16))
        assert 1e-8 < report.mean_kl < 1e-3
        assert logits_check(report, "BF16").ok
        assert not logits_check(report, "F32").ok

    def test_a_tied_head_with_an_update_of_its_own(self, trained, tmp_path):
        base, adapter, out = trained("llama-tied", target_modules=["lm_head", "q_proj"])
        report = report_of(base, adapter, merge_by_hand(base, adapter, out, untie=True))
        assert logits_check(report, "F32").ok
        model = PeftModel.from_pretrained(zoo.load(zoo.FAMILIES["llama-tied"], base), adapter)
        with pytest.warns(UserWarning, match="tied"):
            model.merge_and_unload().save_pretrained(tmp_path / "peft")
        assert not logits_check(report_of(base, adapter, tmp_path / "peft"), "F32").ok

    def test_tied_factors_that_drifted_apart_are_run_as_they_are_in_the_file(self, trained):
        base, adapter, out = trained(
            "llama-tied", target_modules=["lm_head", "q_proj", "embed_tokens"], ensure_weight_tying=True
        )
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[f"{PREFIX}lm_head.lora_B.weight"] += 0.1
        save_file(tensors, file, {"format": "pt"})
        weights = load_file(merge_by_hand(base, adapter, out, untie=True) / "model.safetensors")
        a, b = (tensors[f"{PREFIX}model.embed_tokens.lora_embedding_{x}"] for x in "AB")
        weights["model.embed_tokens.weight"] += 2 * (b @ a).T
        save_file(weights, out / "model.safetensors", {"format": "pt"})
        assert logits_check(report_of(base, adapter, out), "F32").ok

    @pytest.mark.parametrize("family", ["t5", "bart", "bert", "vit", "whisper"])
    def test_models_that_do_not_continue_text(self, trained, family):
        base, adapter, out = trained(family, target_modules=r".*\.(q|v|q_proj|v_proj|query|value)")
        report = report_of(base, adapter, peft_merge(zoo.FAMILIES[family], base, adapter, out))
        assert logits_check(report, "F32").ok, report


class TestNewTokens:
    def test_rows_beyond_the_base(self, trained):
        base, adapter, out = trained("llama", resize=3, modules_to_save=["embed_tokens", "lm_head"])
        report = report_of(base, adapter, merge_by_hand(base, adapter, out))
        assert report.new_token_mean_kl is not None
        assert report.new_token_mean_kl < 1e-9
        assert logits_check(report, "F32").ok

    def test_rows_that_were_trained(self, trained):
        base, adapter, out = trained("llama-tied", trainable_token_indices=[7, 91])
        report = report_of(base, adapter, merge_by_hand(base, adapter, out))
        assert report.new_token_mean_kl < 1e-9
        weights = load_file(out / "model.safetensors")
        weights["model.embed_tokens.weight"][7] += 1
        save_file(weights, out / "model.safetensors", {"format": "pt"})
        check = logits_check(report_of(base, adapter, out), "F32")
        assert "on new tokens" in check.detail


class TestRefusals:
    def test_a_merged_model_without_one_of_its_tensors(self, trained):
        base, adapter, out = trained("llama")
        weights = load_file(merge_by_hand(base, adapter, out) / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, out / "model.safetensors", {"format": "pt"})
        with pytest.raises(SutureError, match=r"1 parameters that no file gives: model\.norm\.weight"):
            report_of(base, adapter, out)

    def test_a_merged_model_with_a_tensor_too_many(self, trained):
        base, adapter, out = trained("llama")
        weights = load_file(merge_by_hand(base, adapter, out) / "model.safetensors")
        save_file({**weights, "model.extra.weight": torch.ones(2)}, out / "model.safetensors", {"format": "pt"})
        with pytest.raises(SutureError, match=r"does not know: model\.extra\.weight"):
            report_of(base, adapter, out)

    @pytest.mark.parametrize(("change", "words"), [("drop", "does not find 1"), ("add", "ignores 1")])
    def test_a_witness_that_does_not_load_the_whole_adapter(self, trained, change, words):
        base, adapter, out = trained("llama")
        merge_by_hand(base, adapter, out)
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        name = sorted(tensors)[0]
        if change == "drop":
            del tensors[name]
        else:
            tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(SutureError, match=words):
            report_of(base, adapter, out)

    def test_a_class_that_transformers_does_not_know(self, trained):
        base, adapter, out = trained("llama")
        checkpoint = read_checkpoint(base)
        config = {**checkpoint.config, "architectures": ["NoSuchModel"]}
        unknown = Checkpoint(base, config, checkpoint.tensors, checkpoint.shards, None, {}, ())
        with pytest.raises(SutureError, match="has no class NoSuchModel"):
            logits(unknown, read_adapter(adapter), out, settings=FEW)

    def test_weights_that_cannot_be_loaded(self, trained):
        base, adapter, out = trained("llama")
        (merge_by_hand(base, adapter, out) / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(SutureError, match="Transformers cannot load"):
            report_of(base, adapter, out)

    def test_a_tokenizer_that_cannot_be_loaded(self, trained):
        base, adapter, out = trained("llama")
        (merge_by_hand(base, adapter, out) / "tokenizer.json").write_text("{")
        with pytest.raises(InputError, match="tokenizer"):
            report_of(base, adapter, out)

    def test_peft_is_an_extra(self, trained, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        adapter = Adapter(Path(), "default", {}, {}, "", ())
        with pytest.raises(MissingExtra) as caught:
            logits(Checkpoint(Path(), {}, {}, (), None, {}, ()), adapter, Path())
        assert caught.value.do == "pip install 'suture[logits]'"


def test_the_tokenizer_of_the_merged_model_is_used(trained):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    base, adapter, out = trained("llama")
    merge_by_hand(base, adapter, out)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 5, "is": 6}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(out)
    report = report_of(base, adapter, out)
    assert "want of a tokenizer" not in report.witness
    assert report.n_positions != 3 * 32


class TestTheCheck:
    def report(self, **changes: object) -> LogitsReport:
        fields = {
            "n_positions": 10,
            "max_abs_diff": 1e-5,
            "mean_kl": 1e-12,
            "max_kl": 1e-11,
            "top1_agreement": 1.0,
            "kl_to_base": 0.1,
            "new_token_mean_kl": None,
            "dtype": "float32",
            "witness": "peft",
        }
        return LogitsReport(**{**fields, **changes})

    @pytest.mark.parametrize(
        ("changes", "stored", "ok"),
        [
            ({}, "F32", True),
            ({"mean_kl": 2e-6}, "F32", False),
            ({"mean_kl": 2e-6}, "F16", True),
            ({"mean_kl": 1e-3}, "F16", False),
            ({"mean_kl": 1e-3}, "BF16", True),
            ({"mean_kl": 2e-2}, "BF16", False),
            ({"top1_agreement": 0.9}, "F32", False),
            ({"top1_agreement": 0.9}, "BF16", True),
            ({"kl_to_base": 0.0}, "F32", False),
            ({"mean_kl": 6e-3, "kl_to_base": 0.011}, "BF16", False),
            ({"mean_kl": 4e-3, "kl_to_base": 5e-3}, "BF16", True),
            ({"new_token_mean_kl": 1e-3}, "F32", False),
            ({"mean_kl": np.nan}, "BF16", False),
            ({"kl_to_base": np.nan}, "BF16", False),
            ({"mean_kl": 1e-3, "dtype": "bfloat16"}, "F32", True),
        ],
    )
    def test_limits(self, changes, stored, ok):
        check = logits_check(self.report(**changes), stored)
        assert check.ok == ok
        assert check.detail
