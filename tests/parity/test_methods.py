"""Merged = unmerged, for every kind of tensor that PEFT writes for LoRA, on models where the kind occurs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from zoo import FAMILIES, load, logits
from zoo_adapters import Oracle, compare, load_base, make_adapter, merge_and_compare, perturb

import suture
from suture.errors import Findings

N_NEW = 8  # tokens that a resized vocabulary gains
IDS, OTHER_IDS, NEW_IDS = [3, 5, 90], [7, 8, 9], list(range(96, 96 + N_NEW))


@dataclass(frozen=True)
class Case:
    """An adapter: its family, what it trains, and settings of its LoraConfig."""

    family: str
    what: str
    settings: dict[str, Any] = field(hash=False)
    resize: int = 0
    std: float = 0.05
    oracle: Oracle = "both"

    @property
    def config(self) -> LoraConfig:
        """Rank 4 with scale 2, on top of which come the settings."""
        return LoraConfig(**{"r": 4, "lora_alpha": 8, **self.settings})


@dataclass(frozen=True)
class Names:
    """How a family calls its parts."""

    family: str
    linear: list[str] = field(hash=False)
    embedding: str = ""
    norm: str = ""
    tied: bool = True
    seen_as_embedding: bool = True  # PEFT knows the embedding by name and ties it on request


NAMES = (
    Names("llama", ["q_proj", "v_proj", "down_proj"], "embed_tokens", "norm", tied=False),
    Names("llama-tied", ["q_proj", "v_proj", "down_proj"], "embed_tokens", "norm"),
    Names("gpt2", ["c_attn", "c_proj"], "wte", "ln_f", seen_as_embedding=False),
)


def cases_of_linear_layers(n: Names) -> Iterator[Case]:
    linear = {"target_modules": n.linear}
    yield Case(n.family, "lora", linear)
    yield Case(n.family, "rslora", {**linear, "use_rslora": True})
    yield Case(n.family, "dora", {**linear, "use_dora": True})
    yield Case(n.family, "dora, rslora", {**linear, "use_dora": True, "use_rslora": True})
    yield Case(n.family, "norms in full", {**linear, "modules_to_save": [n.norm]})


def cases_of_the_ends(n: Names) -> Iterator[Case]:
    e, h = n.embedding, "lm_head"
    for which, modules in {"embedding": [e], "head": [h], "both": [e, h]}.items():
        targets = {"target_modules": [*n.linear, *modules]}
        yield Case(n.family, f"lora on {which}", targets)
        yield Case(n.family, f"rslora on {which}", {**targets, "use_rslora": True})
        yield Case(n.family, f"dora on {which}", {**targets, "use_dora": True})
        yield Case(n.family, f"{which} in full", {"target_modules": n.linear, "modules_to_save": modules})
    yield Case(n.family, "lora on embedding, head in full", {"target_modules": [e], "modules_to_save": [h]})
    yield Case(n.family, "lora on head, embedding in full", {"target_modules": [h], "modules_to_save": [e]})


def cases_of_ensured_ties(n: Names) -> Iterator[Case]:
    e, h = n.embedding, "lm_head"
    for which, modules in {"embedding": [e], "head": [h], "both": [e, h]}.items():
        lora = {"target_modules": [*n.linear, *modules], "ensure_weight_tying": True}
        # PEFT strikes the head from target_modules and adds it again on loading only if it knows the embedding's name
        oracle = "both" if n.seen_as_embedding or which == "embedding" else "memory"
        yield Case(n.family, f"tied lora on {which}", lora, oracle=oracle)
        full = {"target_modules": n.linear, "modules_to_save": [*modules], "ensure_weight_tying": True}
        yield Case(n.family, f"tied {which} in full", full)


def cases_of_single_tokens(n: Names) -> Iterator[Case]:
    e, h = n.embedding, "lm_head"
    for what, ids in {
        "tokens": IDS,
        "tokens of embedding": {e: IDS},
        "tokens of head": {h: IDS},
        "same tokens of both": {e: IDS, h: IDS},
        "other tokens of each": {e: IDS, h: OTHER_IDS},
    }.items():
        yield Case(n.family, what, {"target_modules": n.linear, "trainable_token_indices": ids})
    lora_on_head = {"target_modules": [*n.linear, h], "trainable_token_indices": {e: IDS}}
    yield Case(n.family, "tokens of embedding, lora on head", lora_on_head)


def cases_of_resized_vocabularies(n: Names) -> Iterator[Case]:
    e, h = n.embedding, "lm_head"
    linear = {"target_modules": n.linear}
    for what, settings in {
        "lora elsewhere": linear,
        "embedding in full": {**linear, "modules_to_save": [e]},
        "both in full": {**linear, "modules_to_save": [e, h]},
        "tied both in full": {**linear, "modules_to_save": [e, h], "ensure_weight_tying": True},
        "new tokens": {**linear, "trainable_token_indices": NEW_IDS},
        "new tokens of both": {**linear, "trainable_token_indices": {e: NEW_IDS, h: NEW_IDS}},
        "lora on both": {"target_modules": [*n.linear, e, h]},
    }.items():
        yield Case(n.family, f"{what}, resized", settings, resize=N_NEW)
    if n.tied:  # elsewhere PEFT does not save the new rows of the other end: see REFUSED
        for what, module in {"embedding": e, "head": h}.items():
            settings = {"target_modules": [*n.linear, module]}
            yield Case(n.family, f"lora on {what}, resized", settings, resize=N_NEW)


def llama(what: str, settings: dict[str, Any], **facts: Any) -> Case:
    return Case("llama", what, settings, **facts)


Q_AND_V = {"target_modules": ["q_proj", "v_proj"]}
Q_OF_LAYER_1 = "layers.1.self_attn.q_proj"

PATTERNS = (
    llama("special rank first", {**Q_AND_V, "rank_pattern": {Q_OF_LAYER_1: 2, "q_proj": 8}}),
    llama("special alpha first", {**Q_AND_V, "alpha_pattern": {Q_OF_LAYER_1: 32, "q_proj": 2}}),
    # the file's keys are sorted: PEFT reads another alpha than it trained with, and the file holds no other
    llama("special alpha last", {**Q_AND_V, "alpha_pattern": {"q_proj": 2, Q_OF_LAYER_1: 32}}, oracle="file"),
    llama("rank and alpha, rslora", {**Q_AND_V, "rank_pattern": {"v": 3, ".*v_proj": 5}, "use_rslora": True}),
    llama("regex", {**Q_AND_V, "rank_pattern": {r"^model\.layers\.0\..*q_proj": 3}, "alpha_pattern": {".*q_proj": 1}}),
    llama("half a name matches nothing", {**Q_AND_V, "rank_pattern": {"proj": 9}, "alpha_pattern": {"v_proj": 3}}),
)

TARGETS = (
    llama("regex", {"target_modules": r".*layers\.1.*(q|k)_proj"}),
    llama("all-linear", {"target_modules": "all-linear"}),
    llama("layers_to_transform", {**Q_AND_V, "layers_to_transform": [1]}),
    llama("layers_pattern", {**Q_AND_V, "layers_to_transform": 0, "layers_pattern": "layers"}),
    llama("exclude_modules", {**Q_AND_V, "exclude_modules": ["layers.0.self_attn.q_proj"]}),
    llama("exclude_modules as regex", {**Q_AND_V, "exclude_modules": r".*\.0\..*"}),
    llama("fan_in_fan_out of a linear layer", {**Q_AND_V, "fan_in_fan_out": True}),
    llama("a linear layer's parameter", {**Q_AND_V, "target_parameters": ["k_proj.weight", "lm_head.weight"]}),
)

BIASES = (
    Case("gpt2", "all", {"target_modules": ["c_attn"], "bias": "all"}),
    Case("gpt2", "lora_only", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    Case("gpt2", "lora_bias", {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}),
    Case("bert", "all", {"target_modules": ["query"], "bias": "all"}),
    Case("bert", "lora_only on a tied head", {"target_modules": ["query", "decoder"], "bias": "lora_only"}),
    Case("bert", "lora_bias on a tied head", {"target_modules": ["query", "decoder"], "lora_bias": True}),
    Case("vit", "lora_only on a convolution", {"target_modules": ["projection"], "bias": "lora_only"}, std=0.2),
    Case("vit", "lora_bias on a convolution", {"target_modules": ["projection"], "lora_bias": True}, std=0.2),
    Case(
        "gpt-oss",
        "all, with experts",
        {"target_modules": ["q_proj"], "bias": "all", "target_parameters": ["down_proj"]},
    ),
)

CONVOLUTIONS = tuple(
    Case(family, what, {"target_modules": modules, **settings}, std=0.2)
    for family, modules in {
        "wav2vec2": [f"feature_extractor.conv_layers.{i}.conv" for i in (0, 1)],
        "vit": ["projection"],
        "gemma3-image": ["patch_embedding"],
        "videomae": ["projection"],
        "qwen3-vl": ["patch_embed.proj"],
    }.items()
    for what, settings in {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}.items()
)

IN_FULL = (
    Case("vit", "classifier", {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
    Case("vit", "convolution", {"target_modules": ["q_proj"], "modules_to_save": ["projection"]}),
    Case("bert", "tied head", {"target_modules": ["query"], "modules_to_save": ["decoder"]}),
    Case("bert", "head of several layers", {"target_modules": ["query"], "modules_to_save": ["predictions"]}),
    Case("bart", "shared embedding", {"target_modules": ["q_proj"], "modules_to_save": ["shared"]}),
    Case("bart", "both embeddings", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    Case("gemma3-image", "both ends", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    Case("qwen3-vl", "embedding", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    Case("mixtral", "experts", {"target_modules": ["q_proj"], "modules_to_save": ["experts"]}),
    Case("mixtral", "router", {"target_modules": ["q_proj"], "modules_to_save": ["mlp.gate"]}),
)

TOKENS = tuple(
    Case(family, "tokens", {"target_modules": modules, "trainable_token_indices": IDS})
    for family, modules in {
        "t5": ["q"],
        "bart": ["q_proj"],
        "whisper": ["q_proj"],
        "gemma2": ["q_proj"],
        "gemma3-image": ["q_proj"],
        "qwen3-vl": ["q_proj"],
    }.items()
)

FUSED = {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}

EXPERTS = (
    Case("mixtral", "rslora, own rank", {**FUSED, "rank_pattern": {"gate_up_proj": 2}, "use_rslora": True}),
    Case(
        "gpt-oss",
        "own rank and alpha",
        {**FUSED, "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"experts.down_proj": 32}},
    ),
    Case("gpt-oss", "biases of experts", {**FUSED, "target_parameters": ["gate_up_proj_bias"]}),
    Case("gemma3-image", "a bare matrix", {**FUSED, "target_parameters": ["mm_input_projection_weight"]}),
    Case("qwen3-moe", "names from before fusion", {"target_modules": ["gate_proj", "up_proj", "down_proj"]}),
    Case("mixtral", "names from before fusion", {"target_modules": ["w1", "w2", "w3"]}),
    Case("deepseek-v3", "all-linear", {"target_modules": "all-linear"}),
)

EMBEDDINGS = (
    Case("qwen3-vl", "positions of patches", {"target_modules": ["pos_embed"]}),
    Case("gpt2", "positions", {"target_modules": ["wpe"], "use_dora": True}),
    Case("mamba2", "tokens", {"target_modules": ["in_proj", "embeddings"]}),
    Case("gemma2", "scaled", {"target_modules": ["embed_tokens"], "use_rslora": True}),
)

GROUPS = {
    "linear": [c for n in NAMES for c in cases_of_linear_layers(n)],
    "ends": [c for n in NAMES for c in cases_of_the_ends(n)],
    "ensured": [c for n in NAMES for c in cases_of_ensured_ties(n)],
    "tokens": [*(c for n in NAMES for c in cases_of_single_tokens(n)), *TOKENS],
    "resized": [c for n in NAMES for c in cases_of_resized_vocabularies(n)],
    "patterns": PATTERNS,
    "targets": TARGETS,
    "biases": BIASES,
    "convolutions": CONVOLUTIONS,
    "in full": IN_FULL,
    "experts": EXPERTS,
    "embeddings": EMBEDDINGS,
}

REFUSED = (
    ("T403", llama("new rows of the head were not saved", {"target_modules": ["embed_tokens"]}, resize=N_NEW)),
    ("T403", llama("new rows of the embedding were not saved", {"target_modules": ["lm_head"]}, resize=N_NEW)),
    ("M303", llama("there is no bias to add to", {"target_modules": ["q_proj"], "lora_bias": True})),
    ("T402", Case("t5", "the head alone, in full", {"target_modules": ["q"], "modules_to_save": ["lm_head"]})),
)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{g}-{c.family}-{c.what}") for g, cases in GROUPS.items() for c in cases]
)
def test_merged_is_unmerged(case, base_of, tmp_path):
    family, base = FAMILIES[case.family], base_of(case.family)
    made = make_adapter(
        family, base, case.config, tmp_path / "adapter", std=case.std, resize=case.resize, oracle=case.oracle
    )
    comparison = merge_and_compare(family, base, made, tmp_path / "merged")
    assert comparison.same, comparison


@pytest.mark.parametrize(("code", "case"), [pytest.param(*r, id=f"{r[1].family}-{r[1].what}") for r in REFUSED])
def test_what_cannot_be_merged_is_refused(code, case, base_of, tmp_path):
    family, base = FAMILIES[case.family], base_of(case.family)
    made = make_adapter(family, base, case.config, tmp_path / "adapter", std=case.std, resize=case.resize)
    with pytest.raises(Findings, match=code):
        merge_and_compare(family, base, made, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("names", NAMES, ids=lambda n: n.family)
def test_head_in_both_lists_is_merged_only_on_request(names, base_of, tmp_path):
    """PEFT trains it in full and adds no LoRA to it."""
    family, base = FAMILIES[names.family], base_of(names.family)
    config = LoraConfig(target_modules=[*names.linear, "lm_head"], modules_to_save=["lm_head"])
    made = make_adapter(family, base, config, tmp_path / "adapter")
    with pytest.raises(Findings, match="M309"):
        merge_and_compare(family, base, made, tmp_path / "merged")
    options = suture.Options(ignore=("M309",))
    comparison = merge_and_compare(family, base, made, tmp_path / "merged", options)
    assert comparison.same, comparison


def test_ranks_that_the_file_contradicts_are_refused(base_of, tmp_path):
    """PEFT sorts the patterns on saving, so that a general one that came first comes last; it cannot load the file."""
    family, base = FAMILIES["llama"], base_of("llama")
    config = LoraConfig(r=4, **Q_AND_V, rank_pattern={"q_proj": 8, Q_OF_LAYER_1: 2})
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_adapter(family, base, config, tmp_path / "adapter")
    with pytest.raises(Findings, match="M304"):
        suture.merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_tokens_of_a_head_with_a_bias(base_of, tmp_path):
    """The live adapter forgets BERT's bias; the merged model is the live one with its bias."""
    family, base = FAMILIES["bert"], base_of("bert")
    config = LoraConfig(target_modules=["query"], trainable_token_indices=IDS)
    made = make_adapter(family, base, config, tmp_path / "adapter")
    bias = load(family, base).cls.predictions.decoder.bias.detach()
    suture.merge(base, made.folder, tmp_path / "merged")
    comparison = compare(made.reference + bias, logits(load(family, tmp_path / "merged"), made.feed))
    assert comparison.same, comparison


@pytest.mark.parametrize("name", ["default", "second"])
def test_one_of_several_adapters(name, base_of, tmp_path):
    family, base = FAMILIES["llama"], base_of("llama")
    torch.manual_seed(0)
    live = get_peft_model(load_base(family, base), LoraConfig(r=4, target_modules=["q_proj"]))
    live.add_adapter("second", LoraConfig(r=2, target_modules=["k_proj", "lm_head"]))
    perturb_both(live)
    live.save_pretrained(tmp_path / "adapters")
    live.set_adapter(name)
    feed = family.feed(live.get_base_model(), torch.Generator().manual_seed(0))
    reference = logits(live.eval(), feed)
    folder = tmp_path / "adapters" / ("" if name == "default" else name)
    suture.merge(base, folder, tmp_path / "merged")
    comparison = compare(reference, logits(load(family, tmp_path / "merged"), feed))
    assert comparison.same, comparison


def perturb_both(live) -> None:
    for name in ("default", "second"):
        live.set_adapter(name)
        perturb(live, seed=len(name), std=0.05)
