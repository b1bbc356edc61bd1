"""Every Part is an equation: it is held, element by element, against what Transformers' loader makes of the file."""

from __future__ import annotations

import pytest
import torch
import transformers
import zoo

from arch.loading import headers, read, shapes, uncovered, write, wrong_parts
from suture.arch import build, describe
from suture.values import Part


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_parts_hold_and_cover_the_model(name, base_of):
    config, tensors = read(base_of(name))
    model = zoo.load(zoo.FAMILIES[name], base_of(name))
    for arch in (describe(config, headers(tensors), cache=False), build(config, headers(tensors))):
        assert arch.model_class == type(model).__name__
        assert arch.source.endswith(f"transformers {transformers.__version__}")
        assert wrong_parts(arch, tensors, model) == []
        assert uncovered(arch, model) == set()
        assert not arch.opaque
        assert not arch.unknown


OLD_NAMES = {  # of Gemma 3 before Transformers 4.52
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def old_name(name):
    new = next((n for n in OLD_NAMES if name.startswith(n)), "")
    return name.replace(new, OLD_NAMES[new], 1) if new else name


@pytest.mark.parametrize("rename", [old_name, lambda name: name], ids=["before 4.52", "since 4.52"])
def test_both_generations_of_names(rename, base_of, tmp_path):
    config, _ = read(base_of("gemma3-image"))
    family = zoo.FAMILIES["gemma3-image"]
    state = {n: v for n, v in zoo.load(family, base_of(family.name)).state_dict().items() if n != "lm_head.weight"}
    tensors = {rename(n): v for n, v in state.items()}
    model = zoo.load(family, write(tmp_path / "base", config, tensors))
    arch = describe(config, headers(tensors), cache=False)
    assert {p.tensor: p.param for p in arch.parts} == {rename(n): n for n in state}
    assert wrong_parts(arch, tensors, model) == []


def test_names_without_the_prefix_of_the_base_model(base_of, tmp_path):
    config, tensors = read(base_of("gpt2"))
    bare = {n.removeprefix("transformer."): v for n, v in tensors.items()}
    model = zoo.load(zoo.FAMILIES["gpt2"], write(tmp_path / "base", config, bare))
    arch = describe(config, headers(bare), cache=False)
    assert Part("wte.weight", "transformer.wte.weight") in arch.parts
    assert wrong_parts(arch, bare, model) == []
    assert uncovered(arch, model) == set()


def test_names_with_a_prefix_too_many(base_of, tmp_path):
    """A checkpoint of a model with a head, for a class without one."""
    config, tensors = read(base_of("llama"))
    arch = describe({**config, "architectures": ["LlamaModel"]}, headers(tensors), cache=False)
    assert Part("model.embed_tokens.weight", "embed_tokens.weight") in arch.parts
    assert arch.unknown == ("lm_head.weight",)


def test_one_tensor_on_disk_that_is_several_in_memory(tmp_path, quiet_torch):
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    config = transformers.Dinov2Config(**settings, use_swiglu_ffn=True)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "base")
    config, tensors = read(tmp_path / "base")
    arch = describe(config, headers(tensors), cache=False)
    model = transformers.Dinov2Model.from_pretrained(tmp_path / "base")
    assert wrong_parts(arch, tensors, model) == []
    assert uncovered(arch, model) == set()
    fused = [p for p in arch.parts if p.tensor == "encoder.layer.0.mlp.weights_in.weight"]
    assert [(p.param.split(".")[-2], p.index) for p in fused] == [("gate_proj", ()), ("up_proj", ())]
    assert [p.rows for p in fused] == [
        (0, len(tensors[fused[0].tensor]) // 2),
        (fused[0].rows[1], fused[0].rows[1] * 2),
    ]


def test_experts_by_the_name_of_each(base_of):
    config, tensors = read(base_of("mixtral"))
    parts = {p.tensor: p for p in describe(config, headers(tensors), cache=False).parts}
    prefix = "model.layers.0.block_sparse_moe.experts.3."
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert parts[prefix + "w1.weight"] == Part(prefix + "w1.weight", fused, (3, (0, 48)))
    assert parts[prefix + "w3.weight"] == Part(prefix + "w3.weight", fused, (3, (48, 96)))
    assert parts[prefix + "w2.weight"].index == (3,)


def test_experts_are_numbered_by_value_and_not_by_letter():
    config = {**zoo.FAMILIES["qwen3-moe"].settings, "model_type": "qwen3_moe", "num_experts": 12}
    tensors = shapes(**{f"model.layers.0.mlp.experts.{e}.down_proj.weight": (32, 24) for e in range(12)})
    parts = describe(config, tensors, cache=False).parts
    assert {int(p.tensor.split(".")[5]): p.index for p in parts} == {e: (e,) for e in range(12)}


INKLING = {"architectures": ["Inkling2ForCausalLM"], "model_type": "inkling2_text", "num_hidden_layers": 1}


def test_names_of_the_model_itself_are_kept_where_a_renaming_would_spoil_them():
    """Here `embed_norm.` becomes `embed_tokens.embed_norm.`, once too often for a file that says so already."""
    name = "model.embed_tokens.embed_norm.weight"
    arch = describe(INKLING, shapes(**{name: (4608,)}), cache=False)
    assert arch.parts == (Part(name, name),)


def test_conversions_that_are_no_parts_are_named():
    """Interleaved gate and up rows are no range of rows."""
    fused = describe(INKLING, {}, cache=False).params["model.layers.0.mlp.experts.gate_up_proj"]
    name = "model.llm.layers.0.mlp.experts.w13_weight"
    arch = describe(INKLING, shapes(**{name: fused.shape}), cache=False)
    assert arch.opaque == {name: "Interleave(dim=1)"}
    assert arch.parts == ()


def test_experts_that_do_not_make_up_the_parameter_are_named(base_of):
    config, tensors = read(base_of("mixtral"))
    lost = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    arch = describe(config, headers({n: t for n, t in tensors.items() if n != lost}), cache=False)
    others = {lost.replace("experts.3", f"experts.{e}") for e in range(3)}
    assert arch.opaque.keys() == others
    assert "instead of [4, 32, 48]" in arch.opaque[min(others)]


def test_a_second_tensor_for_a_parameter_is_left_out_as_by_the_loader(base_of, tmp_path):
    config, tensors = read(base_of("gpt2"))
    twice = {**tensors, "wpe.weight": torch.zeros_like(tensors["transformer.wpe.weight"])}
    family = zoo.FAMILIES["gpt2"]
    model = family.model_class.from_pretrained(write(tmp_path / "base", config, twice))
    arch = describe(config, headers(twice), cache=False)
    assert wrong_parts(arch, twice, model) == []
    assert arch.opaque == {"wpe.weight": "a second tensor for transformer.wpe.weight, after transformer.wpe.weight"}


def test_experts_that_are_there_twice_are_named(base_of):
    config, tensors = read(base_of("mixtral"))
    fused = "model.layers.0.mlp.experts.down_proj"
    arch = describe(config, {**headers(tensors), **shapes(**{fused: (4, 32, 48)})}, cache=False)
    assert len(arch.opaque) == 5
    assert set(arch.opaque.values()) == {f"several kinds of tensors fill {fused}"}
    assert not [p for p in arch.parts if p.param == fused]


def test_tensors_the_class_lacks_are_listed(base_of):
    config, tensors = read(base_of("llama"))
    extra = {**headers(tensors), **shapes(**{"mtp.0.weight": (3, 3), "model.layers.9.mlp.up_proj.weight": (48, 32)})}
    arch = describe(config, extra, cache=False)
    assert arch.unknown == ("model.layers.9.mlp.up_proj.weight", "mtp.0.weight")


def test_a_padded_vocabulary_keeps_its_part(base_of):
    config, tensors = read(base_of("llama"))
    padded = {**headers(tensors), **shapes(**{"lm_head.weight": (128, 32)})}
    assert Part("lm_head.weight", "lm_head.weight") in describe(config, padded, cache=False).parts


def test_a_config_is_enough(base_of):
    config, _ = read(base_of("llama"))
    arch = describe(config, {}, cache=False)
    assert arch.params["model.embed_tokens.weight"].shape == (zoo.VOCAB, 32)
    assert arch.parts == ()
