"""`suture fix`: adapters of PEFT, damaged as tools damage them, are repaired to the very adapter that they were."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rule_cases import adapter, pair
from safetensors.torch import load_file, save_file
from tiny import make_base, trained, wrapped
from transformers import AutoModelForCausalLM
from zoo import FAMILIES, load

import suture
from suture.errors import OutputError, OutputExists, UsageError
from suture.verification.logits import LogitsSettings

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("repairing") / "base")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """LoRA on attention and MLP, as PEFT saves it."""
    return saved(tmp_path_factory.mktemp("repairing") / "healthy")


def saved(folder: Path, **settings) -> Path:
    trained(wrapped(**settings)).save_pretrained(folder)
    return folder


def damaged(healthy: Path, folder: Path, rename=lambda name: name, drop=(), **config) -> Path:
    """A copy with other names, without some tensors, and with other fields in its config (None removes one)."""
    folder.mkdir()
    tensors = {
        rename(name): t for name, t in load_file(healthy / FILE).items() if not name.endswith(tuple(drop) or "\0")
    }
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    fields = {**json.loads((healthy / CONFIG).read_text()), **config}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return folder


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one / FILE), load_file(other / FILE)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.replace(PREFIX + "model.", PREFIX),
        lambda n: n.removeprefix(PREFIX),
        lambda n: n.replace(PREFIX, PREFIX + "_orig_mod."),
        lambda n: n.replace("base_model.", "module.base_model."),
        lambda n: n.replace(".weight", ".default.weight"),
        lambda n: n.replace(".weight", ".default.default.weight"),
        lambda n: n.replace(PREFIX + "model.", PREFIX + "model.language_model."),
        lambda n: n.removeprefix(PREFIX).replace(".weight", ".default.weight"),
    ],
    ids=["level", "bare", "compiled", "ddp", "named", "named twice", "generation", "two at once"],
)
def test_names_are_put_right_by_one_rule(base, healthy, tmp_path, rename):
    broken = damaged(healthy, tmp_path / "broken", rename)
    before = {p.name: p.read_bytes() for p in broken.iterdir()}
    found = suture.fix(base, broken, tmp_path / "out")
    assert found.ok
    assert [r.code for r in found.repairs] == ["M301"]
    assert any(f.code == "M301" for f in found.before)
    assert same(healthy, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in broken.iterdir()} == before


def test_a_doubled_prefix_may_mean_that_another_adapter_was_lost(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", lambda n: PREFIX + n)
    found = suture.fix(base, broken, tmp_path / "out")
    assert not found.ok
    assert "first adapter" in found.possible[0].assumes
    assert suture.fix(base, broken, tmp_path / "out", unsafe=True).ok
    assert same(healthy, tmp_path / "out")


def test_patterns_that_name_modules_by_their_old_paths_keep_their_meaning(base, tmp_path):
    """alpha 64 belongs to one module, whatever the module is called."""
    path = "model.layers.0.self_attn.q_proj"
    whole = saved(tmp_path / "whole", alpha_pattern={path: 64}, exclude_modules=["model.layers.1.self_attn.v_proj"])
    old = {"alpha_pattern": {"backbone." + path.removeprefix("model."): 64}}
    old["exclude_modules"] = ["backbone.layers.1.self_attn.v_proj"]
    broken = damaged(whole, tmp_path / "broken", lambda n: n.replace(PREFIX + "model.", PREFIX + "backbone."), **old)
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert found.ok, found.after
    assert torch.equal(logits(base, whole), logits(base, tmp_path / "out"))


def test_patterns_that_name_modules_as_they_should_be_called_stay(base, tmp_path):
    whole = saved(tmp_path / "whole", alpha_pattern={"model.layers.0.self_attn.q_proj": 64, "v_proj": 2})
    broken = damaged(whole, tmp_path / "broken", lambda n: n.replace(PREFIX + "model.", PREFIX))
    found = suture.fix(base, broken, tmp_path / "out")
    assert found.ok, found.after
    assert torch.equal(logits(base, whole), logits(base, tmp_path / "out"))


def test_the_order_of_patterns_is_kept(base, healthy, tmp_path):
    """Of patterns that match the same module, the first one counts."""
    patterns = {"q_proj": 8, "layers.0.self_attn.q_proj": 64}
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.removeprefix(PREFIX), alpha_pattern=patterns)
    suture.fix(base, broken, tmp_path / "out")
    assert list(json.loads((tmp_path / "out" / CONFIG).read_text())["alpha_pattern"]) == list(patterns)


def test_a_repair_that_would_break_something_else_is_not_made(base, healthy, tmp_path):
    """A module in full and with LoRA: PEFT cannot hold both, whatever the config says."""
    broken = damaged(healthy, tmp_path / "broken")
    tensors = load_file(broken / FILE)
    tensors[PREFIX + "model.layers.0.self_attn.q_proj.weight"] = torch.randn(32, 32)
    save_file(tensors, broken / FILE)
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert not found.ok
    assert not found.repairs
    assert not (tmp_path / "out").exists()


def test_tensors_that_are_there_twice_are_kept_once(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken")
    tensors = load_file(broken / FILE)
    save_file(
        {**tensors, **{n.replace(".weight", ".default.weight"): t.clone() for n, t in tensors.items()}}, broken / FILE
    )
    found = suture.fix(base, broken, tmp_path / "out")
    assert found.ok
    assert same(healthy, tmp_path / "out")
    assert f"drop {len(tensors)} tensors" in found.repairs[0].words[-1]


def test_of_two_tensors_that_differ_none_is_guessed(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken")
    tensors = load_file(broken / FILE)
    first = min(tensors)
    save_file({**tensors, first.replace(".weight", ".default.weight"): tensors[first] + 1}, broken / FILE)
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert not found.ok
    assert first in found.possible[0].assumes
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "damage"),
    [
        ({}, {"target_modules": ["q_proj", "v_proj"]}),
        ({"use_dora": True}, {"use_dora": False}),
        ({"modules_to_save": ["norm"]}, {"modules_to_save": None}),
        ({"layers_to_transform": [1]}, {"layers_to_transform": [0]}),
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, {"exclude_modules": ["layers.1.self_attn.q_proj"]}),
    ],
    ids=["targets", "dora", "saved", "layers", "excluded"],
)
def test_the_config_is_told_by_the_file(base, tmp_path, settings, damage):
    """Repaired, PEFT loads what was trained: its logits are those of the healthy adapter."""
    whole = saved(tmp_path / "whole", **settings)
    broken = damaged(whole, tmp_path / "broken", **damage)
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert found.ok, found.after
    assert [r.code for r in found.repairs] == ["M305"]
    assert same(whole, tmp_path / "out")
    assert torch.equal(logits(base, whole), logits(base, tmp_path / "out"))
    if "modules_to_save" not in settings:  # which PEFT loads also when no one asks for it
        assert not torch.equal(logits(base, whole), logits(base, broken))


def logits(base: Path, adapter: Path) -> torch.Tensor:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_what_may_have_been_lost_is_repaired_only_on_request(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", target_modules=["q_proj", "v_proj", "down_proj", "o_proj"])
    found = suture.fix(base, broken, tmp_path / "out")
    assert not found.ok
    assert "o_proj" in found.possible[0].assumes
    assert not (tmp_path / "out").exists()
    assert suture.fix(base, broken, tmp_path / "out", unsafe=True).ok


def test_a_flag_that_contradicts_the_layers(base, healthy, tmp_path):
    found = suture.fix(base, damaged(healthy, tmp_path / "broken", fan_in_fan_out=True), tmp_path / "out")
    assert [r.code for r in found.repairs] == ["A209"]
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["fan_in_fan_out"] is False
    assert not found.after


def test_biases_of_the_factors(base_of, tmp_path):
    family = FAMILIES["qwen2"]
    live = get_peft_model(load(family, base_of("qwen2")), LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    trained(live).save_pretrained(tmp_path / "whole")
    broken = damaged(tmp_path / "whole", tmp_path / "broken", lora_bias=False)
    found = suture.fix(base_of("qwen2"), broken, tmp_path / "out")
    assert found.ok, found.after
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["lora_bias"] is True


def test_experts_that_are_called_as_another_version_calls_them(base_of, tmp_path):
    """An adapter for the experts of Mixtral, as they lie on the disk, in the words of Qwen."""
    names = [f"model.layers.{n}.block_sparse_moe.experts.{e}" for n in (0, 1) for e in range(4)]
    sizes = {"w1": (32, 48), "w2": (48, 32), "w3": (32, 48)}
    tensors = {k: v for name in names for w, size in sizes.items() for k, v in pair(f"{name}.{w}", *size).items()}
    whole = adapter(tmp_path / "whole", tensors, target_modules=["w1", "w2", "w3"])
    assert suture.fix(base_of("mixtral"), whole).ok
    qwen = {"block_sparse_moe": "mlp", ".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}

    def renamed(name):
        for old, new in qwen.items():
            name = name.replace(old, new)
        return name

    broken = damaged(whole, tmp_path / "broken", renamed)
    assert "names in memory" in suture.fix(base_of("mixtral"), broken).possible[0].assumes
    found = suture.fix(base_of("mixtral"), broken, tmp_path / "out", unsafe=True)
    assert found.ok, found.after
    assert same(whole, tmp_path / "out")


def test_ranks_are_told_by_the_tensors_and_alpha_is_assumed(base, tmp_path):
    whole = saved(tmp_path / "whole", rank_pattern={"down_proj": 2, "layers.1.self_attn.q_proj": 3})
    broken = damaged(whole, tmp_path / "broken", r=8, rank_pattern={})
    assert "lora_alpha" in suture.fix(base, broken).possible[0].assumes
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert found.ok, found.after
    assert torch.equal(logits(base, whole), logits(base, tmp_path / "out"))


@pytest.mark.filterwarnings("ignore")
def test_separated_ends_are_merged_rightly_by_peft_too(base, tmp_path):
    """PEFT's own merge of a LoRA on a tied head is wrong; of its separated form it is right."""
    tied = saved(tmp_path / "tied", target_modules=["q_proj", "lm_head"])
    found = suture.fix(base, tied, tmp_path / "out", separate=True, logits=LogitsSettings())
    assert found.ok
    assert found.logits.mean_kl <= 1e-6
    expected = logits(base, tied)
    assert torch.allclose(logits(base, tmp_path / "out"), expected, atol=1e-5)

    def merged(adapter):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
        model.save_pretrained(tmp_path / f"merged-{adapter.name}")
        with torch.no_grad():
            reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / f"merged-{adapter.name}")
            return reloaded(input_ids=torch.arange(3, 40)[None]).logits

    assert not torch.allclose(merged(tied), expected, atol=1e-2)
    assert torch.allclose(merged(tmp_path / "out"), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": r".*(q_proj|lm_head)", "exclude_modules": r".*v_proj"},
        {"target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 2}, "alpha_pattern": {"q_proj": 3}},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [4, 7], "embed_tokens": [3]}},
    ],
    ids=["patterns", "ranks", "embedding", "tokens"],
)
def test_what_is_separated_loads_without_a_word(base, tmp_path, settings):
    tied = saved(tmp_path / "tied", **settings)
    found = suture.fix(base, tied, tmp_path / "out", separate=True)
    assert not [f for f in found.after if f.severity != "info"]
    assert "--separate" not in " ".join(f.do for f in found.after)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert torch.allclose(logits(base, tmp_path / "out"), logits(base, tied), atol=1e-5)


def test_separating_what_is_not_tied_apart_is_refused(base, healthy, tmp_path):
    with pytest.raises(UsageError, match="no tied parameters come apart"):
        suture.fix(base, healthy, tmp_path / "out", separate=True)


def test_a_head_alone_cannot_be_separated_because_peft_wants_a_low_rank_module(base, tmp_path):
    alone = saved(tmp_path / "alone", target_modules=["lm_head"])
    with pytest.raises(UsageError, match="alone"):
        suture.fix(base, alone, tmp_path / "out", separate=True)


def test_a_healthy_adapter_needs_nothing(base, healthy, tmp_path):
    found = suture.fix(base, healthy, tmp_path / "out")
    assert found.ok
    assert not found.repairs
    assert not (tmp_path / "out").exists()


def test_without_out_nothing_is_written(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.removeprefix(PREFIX))
    found = suture.fix(base, broken)
    assert found.ok, "as it would be"
    assert found.repairs
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_an_adapter_that_is_left_with_errors_is_not_written(base, healthy, tmp_path):
    """The names can be put right; the half of a pair that is missing cannot."""
    first = "model.layers.0.self_attn.q_proj.lora_B.weight"
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.replace(PREFIX + "model.", PREFIX), drop=[first])
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert found.repairs
    assert not found.ok
    assert found.out is None
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="other defects: M302"):
        suture.fix(base, broken, tmp_path / "out", separate=True)


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"target_modules": ["q_proj", "embed_tokens"]}],
    ids=["saved", "dora", "embedding"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_state_dict_of_the_model_in_memory(base, tmp_path, settings):
    """Sharded trainers save what they see: names of adapters, and the copies of wrappers."""
    model = trained(wrapped(adapter_name="sft", **settings))
    model.save_pretrained(tmp_path / "whole")
    whole = tmp_path / "whole" / "sft"
    broken = tmp_path / "broken"
    broken.mkdir()
    raw = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    save_file(raw, broken / FILE, metadata={"format": "pt"})
    (broken / CONFIG).write_text((whole / CONFIG).read_text())
    found = suture.fix(base, broken, tmp_path / "out")
    assert found.ok, found.after
    assert torch.equal(logits(base, whole), logits(base, tmp_path / "out"))


def test_a_layer_of_a_kind_that_is_missing_may_have_been_lost(base, tmp_path):
    whole = saved(tmp_path / "whole", target_modules=["q_proj", "v_proj", "o_proj"])
    lost = ["layers.1.self_attn.o_proj.lora_A.weight", "layers.1.self_attn.o_proj.lora_B.weight"]
    broken = damaged(whole, tmp_path / "broken", drop=lost, target_modules=["q_proj"])
    found = suture.fix(base, broken, tmp_path / "out")
    assert not found.ok
    assert "layers.1.self_attn.o_proj" in found.possible[0].assumes


def test_patterns_of_fused_experts_are_renamed_and_survive_separation(base_of, tmp_path):
    family = FAMILIES["qwen3-moe"]
    base = base_of(family.name)
    path = "model.layers.0.mlp.experts.down_proj"
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj"], target_parameters=["down_proj"], alpha_pattern={path: 64}
    )
    trained(get_peft_model(load(family, base), config)).save_pretrained(tmp_path / "whole")
    old = {"alpha_pattern": {path.replace("model.", "backbone.", 1): 64}}
    broken = damaged(
        tmp_path / "whole", tmp_path / "broken", lambda n: n.replace(PREFIX + "model.", PREFIX + "backbone."), **old
    )
    found = suture.fix(base, broken, tmp_path / "out", unsafe=True)
    assert found.ok, found.after
    assert torch.equal(logits(base, tmp_path / "whole"), logits(base, tmp_path / "out"))


def test_what_lies_beside_comes_along_and_what_does_not_is_told(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.removeprefix(PREFIX))
    (broken / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (broken / "value_head.safetensors").write_bytes((healthy / FILE).read_bytes())
    found = suture.fix(base, broken, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer_config.json").read_text() == '{"chat_template": "x"}'
    assert found.left_behind == ("value_head.safetensors",)


def test_an_output_inside_of_what_is_read(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.removeprefix(PREFIX))
    for inside in (broken / "fixed", base / "fixed"):
        with pytest.raises(OutputError, match="inside of"):
            suture.fix(base, broken, inside)
        with pytest.raises(OutputError, match="inside of"):
            suture.merge(base, healthy, healthy / "merged")


def test_an_output_with_files_is_left_alone(base, healthy, tmp_path):
    broken = damaged(healthy, tmp_path / "broken", lambda n: n.removeprefix(PREFIX))
    with pytest.raises(OutputExists):
        suture.fix(base, broken, healthy)
