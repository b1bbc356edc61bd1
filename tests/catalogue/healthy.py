"""Adapters with which nothing is wrong, as the real PEFT makes them: architectures, methods, options, ways to save.

The values are those of a short training: each update has 0.5 to 5 % of the norm of the weight that it changes,
magnitudes and whole matrices stay near where they started. Left out, because PEFT itself warns of them or reads them
back otherwise:

* LoRA on ends of T5's vocabulary, which cannot come apart; on a biasless layer with `lora_bias`; a head in both lists;
* a vocabulary resized with LoRA on one of two untied ends, or in a model of text and images: new rows are not saved;
* `ensure_weight_tying` where PEFT does not know the embedding by its name (`wte`, `embed_in`, `word_embeddings`);
* rank or alpha patterns of which two match one module: PEFT sorts them on saving;
* trained tokens of BERT: PEFT's forward pass forgets the bias of its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import saving
from workshop import OF_TASKS, TASKS, ZOO, Family, Healthy, Recipe, Saver, Settings
from zoo import VOCAB, linear_layers

from suture.pipeline import Reading

N_NEW = 8  # tokens that a resized vocabulary gains
IDS, OTHER_IDS, NEW_IDS = [3, 5, 90], [7, 8, 9], list(range(VOCAB, VOCAB + N_NEW))

# ------------------------------------------------------------------------------------------------------------- recipes


def always(**settings: Any) -> Recipe:
    return lambda family, model: settings


def hidden(family: Family, model: Any) -> list[str]:
    """Full names of all linear layers but the head."""
    return [name for name in linear_layers(family, model) if name != family.head]


def kinds(family: Family, model: Any) -> list[str]:
    """Last parts of the names of two kinds of linear layers."""
    return sorted({name.rpartition(".")[2] for name in hidden(family, model)} - {"0", "2"})[:2]


def every_linear(family: Family, model: Any) -> Settings:
    return {"target_modules": linear_layers(family, model)}


def some(**settings: Any) -> Recipe:
    """Two kinds of layers, with further settings."""
    return lambda family, model: {"target_modules": kinds(family, model), **settings}


def patterns(family: Family, model: Any) -> Settings:
    first, second, *_ = hidden(family, model)
    return {**some()(family, model), "target_modules": hidden(family, model), "rank_pattern": {first: 2},
            "alpha_pattern": {second: 16}}  # fmt: skip


def excluded(family: Family, model: Any) -> Settings:
    one, *_ = hidden(family, model)
    return {"target_modules": rf".*\.({'|'.join(kinds(family, model))})", "exclude_modules": [one]}


def norms(family: Family, model: Any) -> Settings:
    found = [n for n, m in model.named_modules() if "norm" in type(m).__name__.lower() and [*m.parameters()]]
    return {"target_modules": kinds(family, model), "modules_to_save": [found[-1]]}


def biased(family: Family, model: Any) -> Settings:
    layers = [n for n in hidden(family, model) if model.get_submodule(n).bias is not None]
    return {"target_modules": layers, "lora_bias": True}


def ends(*which: str, **settings: Any) -> Recipe:
    """LoRA on the ends of the vocabulary."""
    return lambda family, model: {"target_modules": [*kinds(family, model), *_ends(family, which)], **settings}


def ends_in_full(*which: str, **settings: Any) -> Recipe:
    return lambda family, model: {
        "target_modules": kinds(family, model),
        "modules_to_save": _ends(family, which),
        **settings,
    }


def _ends(family: Family, which: Sequence[str]) -> list[str]:
    return [*(family.embeddings if "embedding" in which else ()), *([family.head] if "head" in which else ())]


def experts(*which: int, **settings: Any) -> Recipe:
    return lambda family, model: {
        "target_modules": [n for n in hidden(family, model) if "self_attn" in n],
        "target_parameters": [family.experts[i] for i in which],
        **settings,
    }


def router(family: Family, model: Any) -> Settings:
    return {"target_modules": ["q_proj", "q_a_proj"], "target_parameters": [family.router]}


# ------------------------------------------------------------------------------------------------------ the collection

BIASES = ("gpt2", "bert", "vit", "opt", "bloom", "gpt-neox", "whisper", "bart", "qwen2", "wav2vec2", "videomae")
KNOWN_BY_NAME = ("llama-tied", "qwen2", "qwen3", "gemma2", "gemma3")  # tied, and PEFT knows `embed_tokens`
RESIZED = ("llama", "mistral", "olmoe", *KNOWN_BY_NAME)


def of_a_task(f: Family) -> Iterator[Healthy]:
    if f.name in TASKS:
        task = {"task_type": TASKS[f.name][0]}
        yield Healthy(f.name, "its head in full", some(**task), "in full")
        yield Healthy(f.name, "its head in full, dora", some(use_dora=True, **task), "dora")
        if task["task_type"] == "SEQ_CLS":  # elsewhere PEFT wraps the head first, and then cannot save it in full
            yield Healthy(
                f.name, "its head in full, all-linear", always(target_modules="all-linear", **task), "targets"
            )


def of_any_family(f: Family) -> Iterator[Healthy]:
    yield Healthy(f.name, "every linear layer", every_linear)
    yield Healthy(f.name, "rslora", some(r=8, lora_alpha=16, use_rslora=True), "rslora")
    yield Healthy(f.name, "dora", some(use_dora=True), "dora")
    yield Healthy(f.name, "rank and alpha of single layers", patterns, "patterns")
    yield Healthy(f.name, "one layer", some(layers_to_transform=[1], lora_dropout=0.1), "targets")
    yield Healthy(f.name, "regex with exclusions", excluded, "targets")
    yield Healthy(f.name, "norms in full", norms, "in full")
    if f.name not in ("mamba2", "wav2vec2"):  # PEFT refuses Mamba's out_proj, and a head without an embedding
        yield Healthy(f.name, "all-linear", always(target_modules="all-linear"), "targets")


def of_the_vocabulary(f: Family) -> Iterator[Healthy]:
    if not f.embeddings or not f.separable:
        return
    for which in (("embedding",), ("head",), ("embedding", "head")):
        what = " and ".join(which)
        yield Healthy(f.name, f"lora on {what}", ends(*which), "ends")
        yield Healthy(f.name, f"{what} in full", ends_in_full(*which), "in full")
    yield Healthy(f.name, "dora on both ends", ends("embedding", "head", use_dora=True), "dora")


def of_tokens(f: Family) -> Iterator[Healthy]:
    if f.embeddings and f.name != "bert":
        yield Healthy(f.name, "tokens", some(trainable_token_indices=IDS), "tokens")


def of_experts(f: Family) -> Iterator[Healthy]:
    if not f.experts:
        return
    yield Healthy(f.name, "experts", experts(0, 1), "experts")
    yield Healthy(f.name, "up of experts, rslora", experts(0, use_rslora=True), "experts")
    yield Healthy(f.name, "down of experts", experts(1, alpha_pattern={"experts.down_proj": 4}), "experts")
    yield Healthy(f.name, "router", router, "experts")


def of_one_family(f: Family) -> Iterator[Healthy]:
    if f.name in BIASES:
        yield Healthy(f.name, "all biases", some(bias="all"), "biases")
        yield Healthy(f.name, "biases of LoRA's layers", some(bias="lora_only"), "biases")
        yield Healthy(f.name, "lora_bias", biased, "biases")
    if f.name in KNOWN_BY_NAME:
        both = ("embedding", "head")
        yield Healthy(f.name, "tied lora", ends(*both, ensure_weight_tying=True), "ends")
        yield Healthy(f.name, "tied in full", ends_in_full(*both, ensure_weight_tying=True), "in full")
    if f.name in RESIZED:
        resized = {"method": "resized", "resize": N_NEW}
        yield Healthy(f.name, "lora elsewhere, resized", some(), **resized)
        yield Healthy(f.name, "new tokens, resized", some(trainable_token_indices=NEW_IDS), **resized)
        yield Healthy(f.name, "both ends in full, resized", ends_in_full("embedding", "head"), **resized)
        yield Healthy(f.name, "lora on both ends, resized", ends("embedding", "head"), **resized)


CONVOLUTIONS = {
    "wav2vec2": ["feature_extractor.conv_layers.0.conv", "feature_extractor.conv_layers.1.conv"],
    "vit": ["projection"],
    "videomae": ["projection"],
    "gemma3-image": ["patch_embedding"],
    "qwen3-vl": ["patch_embed.proj"],
}
Q_AND_V = {"target_modules": ["q_proj", "v_proj"]}
QV = always(**Q_AND_V)
OLD = dict.fromkeys(  # fields that PEFT 0.11 did not write
    ("peft_version", "target_parameters", "alora_invocation_tokens", "arrow_config", "ensure_weight_tying",
     "use_qalora", "trainable_token_indices", "exclude_modules", "lora_bias", "corda_config", "eva_config",
     "qalora_group_size", "use_bdlora", "kasa_config", "lora_ga_config", "velora_config", "monteclora_config")
)  # fmt: skip


def single_ones() -> Iterator[Healthy]:
    for family, modules in CONVOLUTIONS.items():
        for method in ("lora", "dora"):
            recipe = always(target_modules=modules, use_dora=method == "dora")
            yield Healthy(family, f"{method} on convolutions", recipe, "convolutions")
    for dtype in ("bfloat16", "float16"):
        for family in ("llama", "qwen2", "gpt2", "mixtral"):
            yield Healthy(family, f"{dtype}", every_linear, "dtypes", dtype=dtype)
            yield Healthy(family, f"{dtype} factors", every_linear, "dtypes", dtype=dtype, factors=dtype)
        yield Healthy("llama-tied", f"{dtype}, both ends in full", ends_in_full("embedding", "head"), dtype=dtype,
                      method="dtypes")  # fmt: skip
        yield Healthy("llama", f"{dtype}, dora", some(use_dora=True), "dtypes", dtype=dtype)
    for init in ("gaussian", "orthogonal", "eva", False):
        yield Healthy("llama", f"init {init}", always(**Q_AND_V, init_lora_weights=init), "inits")
    for task in ("CAUSAL_LM", "FEATURE_EXTRACTION"):
        yield Healthy("qwen3", f"task {task}", some(task_type=task), "targets")
    yield Healthy("vit", "classifier in full", always(**Q_AND_V, modules_to_save=["classifier"]), "in full")
    yield Healthy("bert", "tokens of no head", some(task_type="FEATURE_EXTRACTION"), "targets")
    yield Healthy("mixtral", "experts in full", always(**Q_AND_V, modules_to_save=["experts"]), "in full")
    yield Healthy("mixtral", "names from before fusion", always(target_modules=["w1", "w2", "w3"]), "experts")
    yield Healthy("qwen3-moe", "names from before fusion", always(target_modules=["gate_proj", "up_proj", "down_proj"]),
                  "experts")  # fmt: skip
    yield Healthy("gpt2", "positions", always(target_modules=["wpe", "c_attn"]), "ends")
    tied_apart = {"model.embed_tokens": IDS, "lm_head": OTHER_IDS}
    yield Healthy("llama-tied", "other tokens of each end", some(trainable_token_indices=tied_apart), "tokens")
    yield Healthy("llama", "tokens of both ends", some(trainable_token_indices=tied_apart), "tokens")
    yield Healthy("llama", "fan_in_fan_out", always(**Q_AND_V, fan_in_fan_out=False), "targets")
    yield Healthy(
        "llama", "a linear layer's parameter", always(**Q_AND_V, target_parameters=["k_proj.weight"]), "targets"
    )
    yield from ways_to_save()


def ways_to_save() -> Iterator[Healthy]:
    def llama(what: str, save: Saver, recipe: Recipe = QV, **facts: Any) -> Healthy:
        return Healthy(facts.pop("family", "llama"), what, recipe, "saving", save=save, **facts)

    yield llama("one of two adapters", saving.with_another)
    yield llama("the other of two adapters", saving.the_other)
    yield llama("saved again", saving.saved_again)
    tied = ends_in_full("embedding", "head", ensure_weight_tying=True)
    yield llama("saved again, tied in full", saving.saved_again, tied, family="llama-tied")
    yield llama("pickled", saving.keywords(safe_serialization=False), reading=Reading(allow_pickle=True))
    yield llama("copies of both ends", saving.keywords(save_embedding_layers=True))
    yield llama("no copies of the ends", saving.keywords(save_embedding_layers=False), ends("embedding", "head"))
    yield llama("as PEFT 0.18", saving.edited(peft_version="0.18.1"))
    yield llama(
        "as PEFT of a commit", saving.edited(peft_version="0.20.1.dev0@5d602fdb1fcb1fa53e6a0cf63fbbdb3b9bb8f2bc")
    )
    yield llama("as PEFT 0.11", saving.edited(**OLD))
    yield llama("as PEFT 0.11, gpt2", saving.edited(**OLD), every_linear, family="gpt2")
    yield llama("its base named by the Hub", saving.edited(base_model_name_or_path="someone/llama-float32"))
    for family in ("llama", "gpt2", "qwen2", "mistral", "phi3"):
        yield llama("a trainer's checkpoint", saving.in_a_checkpoint, every_linear, family=family)
    for family in ("llama", "gpt2"):
        yield llama("a trainer's checkpoint with its ledger", saving.with_its_ledger, every_linear, family=family)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    for family in ("llama", "llama-tied", "gemma2", "gpt2"):
        tokens = {"tokenizer": True, "family": family}
        yield llama("its tokenizer beside it", saving.with_tokenizer(), some(), **tokens)
        yield llama("its chat template beside it", saving.with_tokenizer(template=template), some(), **tokens)
        yield llama("its tokenizer, where the base has none", saving.with_tokenizer(), some(), family=family)
    for family in ("llama", "qwen3"):
        tokens = {"tokenizer": True, "family": family}
        yield llama("by TRL on texts", saving.by_sft(), some(), **tokens)
        yield llama("by TRL on chats", saving.by_sft(template), always(target_modules="all-linear"), **tokens)
    for family in ("llama", "llama-tied"):
        recipe = ends_in_full("embedding", "head")
        yield llama("its larger tokenizer beside it", saving.with_tokenizer(VOCAB + N_NEW), recipe, family=family,
                    tokenizer=True, resize=N_NEW)  # fmt: skip


def collection() -> Iterator[Healthy]:
    """All of them."""
    for family in ZOO.values():
        for group in (of_any_family, of_the_vocabulary, of_tokens, of_experts, of_one_family):
            yield from group(family)
    for family in OF_TASKS.values():
        yield from of_a_task(family)
        yield from of_any_family(family)
    yield from single_ones()


HEALTHY: Mapping[str, Healthy] = {h.id: h for h in collection()}
