"""Defects of the adapter's keys, and of which tensors are there: F04, F05, F08, F11, F21, F22, F37, F46."""

from __future__ import annotations

import re

import torch
from mutants import PREFIX, Subject, mutator

FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
TOKENS = ".trainable_tokens_delta"

# What happens to the keys: mode, name → pattern, replacement, in every key.
RENAMINGS = {
    ("F22", "prefix lost"): (r"^base_model\.model\.", ""),
    ("F22", "half of the prefix lost"): (r"^base_model\.model\.", "base_model."),
    ("F08", "prefix twice"): (r"^", PREFIX),
    ("F22", "_orig_mod"): (r"^base_model\.model\.", PREFIX + "_orig_mod."),
    ("F22", "_orig_mod before all"): (r"^", "_orig_mod."),
    ("F22", "_fsdp_wrapped_module in layers"): (r"\.(\d+)\.", r".\1._fsdp_wrapped_module."),
    ("F22", "_checkpoint_wrapped_module in layers"): (r"\.(\d+)\.", r".\1._checkpoint_wrapped_module."),
    ("F22", "module. of DDP"): (r"^base_model\.model\.", "module." + PREFIX),
    ("F22", "adapter's name kept"): (r"(\.lora_(?:A|B|embedding_A|embedding_B))(?=\.|$)", r"\1.default"),
    ("F22", "adapter's name doubled"): (r"(\.lora_(?:A|B|embedding_A|embedding_B))(?=\.|$)", r"\1.default.default"),
    ("F43", "another adapter's name kept"): (r"(\.lora_(?:A|B|embedding_A|embedding_B))(?=\.|$)", r"\1.policy"),
    ("F37", "model. inserted"): (r"^base_model\.model\.", PREFIX + "model."),
    ("F37", "first level lost"): (r"^base_model\.model\.(?:model|transformer|bert|gpt_neox|vit|backbone)\.", PREFIX),
    ("F37", "language_model. inserted"): (r"^base_model\.model\.model\.", PREFIX + "model.language_model."),
    ("F46", "names of kohya"): (r"\.lora_A\.weight$", ".lora_down.weight"),
    ("F46", "names of MLX"): (r"\.lora_(A|B)\.weight$", r".lora_\1"),
    ("F46", "names in lower case"): (r"\.lora_A\.weight$", ".lora_a.weight"),
    ("F06", "layers counted from 1"): (r"\.1\.(?!.*\.\d+\.)", ".2."),
    ("F44", "separators lost"): (r"\.self_attn\.", "_self_attn_"),
}


def _renamer(pattern: str, new: str):
    return lambda s: s.rename(lambda key: re.sub(pattern, new, key, count=0 if pattern != "^" else 1))


for (mode, kind), (pattern, new) in RENAMINGS.items():
    mutator(mode, f"keys: {kind}")(_renamer(pattern, new))


@mutator("F46", "keys: A and B exchanged")
def exchange_names(s: Subject) -> bool:
    def other(key: str) -> str:
        return re.sub(r"lora_(embedding_)?([AB])", lambda m: f"lora_{m[1] or ''}{'BA'['AB'.index(m[2])]}", key)

    names = {other(k): v for k, v in s.tensors.items()}
    changed = list(names) != list(s.tensors)
    s.tensors = names
    return changed


@mutator("F04", "keys: one misspelt")
def misspell(s: Subject) -> bool:
    chosen = s.pick(s.keys(*FACTORS))
    return s.rename(lambda key: re.sub(r"\.(\w)(\w)(\w*)\.lora_", r".\2\1\3.lora_", key) if key in chosen else key)


@mutator("F04", "keys: one module of a name that the model has not")
def unknown_module(s: Subject) -> bool:
    chosen = s.pick(s.modules)
    return s.rename(lambda k: k.replace(chosen[0] + ".", chosen[0] + "_new.") if chosen and chosen[0] in k else k)


@mutator("F22", "keys: .weight lost")
def no_weight(s: Subject) -> bool:
    return s.rename(lambda key: key.removesuffix(".weight"))


@mutator("F08", "keys: one level of base_layer more")
def base_layer(s: Subject) -> bool:
    chosen = s.pick(s.modules)
    return bool(chosen) and s.rename(lambda k: k.replace(chosen[0] + ".lora_", chosen[0] + ".base_layer.lora_"))


@mutator("F15", "keys: levels of experts exchanged")
def exchange_levels(s: Subject) -> bool:
    inner = ".experts.base_layer.lora_"
    if not any(inner in k for k in s.tensors):
        return False
    names = {}
    for key, x in s.tensors.items():
        outer = key.replace(inner, ".experts.lora_")
        names[outer if outer != key else key.replace(".experts.lora_", inner)] = x
    s.tensors = names
    return True


# -------------------------------------------------------------------------------------------------------- what is lost


@mutator("F22", "lost: one A")
def lose_a(s: Subject) -> bool:
    return s.drop(s.pick(s.keys(".lora_A.weight", ".lora_embedding_A")))


@mutator("F22", "lost: one B")
def lose_b(s: Subject) -> bool:
    return s.drop(s.pick(s.keys(".lora_B.weight", ".lora_embedding_B")))


@mutator("F21", "lost: every B")
def lose_all_b(s: Subject) -> bool:
    return s.drop(s.keys(".lora_B.weight", ".lora_embedding_B"))


@mutator("F21", "lost: one pair")
def lose_pair(s: Subject) -> bool:
    chosen = s.pick(s.modules)
    return bool(chosen) and s.drop([k for k in s.tensors if k.startswith(chosen[0] + ".lora_")])


@mutator("F27", "lost: pairs of embeddings")
def lose_embedding(s: Subject) -> bool:
    return s.drop(s.keys(".lora_embedding_A", ".lora_embedding_B"))


@mutator("F21", "lost: one layer")
def lose_layer(s: Subject) -> bool:
    layer = s.rng.choice("01")
    return s.drop([k for k in s.tensors if re.match(rf"[^0-9]*\.{layer}\.", k)])


@mutator("F05", "lost: one kind of module")
def lose_kind(s: Subject) -> bool:
    kind = s.rng.choice(s.kinds())
    return s.drop([k for k in s.tensors if f".{kind}.lora_" in k])


@mutator("F11", "lost: one whole matrix")
def lose_saved(s: Subject) -> bool:
    return s.drop(s.pick([k for k in s.tensors if "lora_" not in k and TOKENS not in k and "base_layer" not in k]))


@mutator("F11", "lost: all whole matrices")
def lose_all_saved(s: Subject) -> bool:
    return s.drop([k for k in s.tensors if "lora_" not in k and TOKENS not in k])


@mutator("F29", "lost: one magnitude")
def lose_magnitude(s: Subject) -> bool:
    return s.drop(s.pick(s.keys(".lora_magnitude_vector")))


@mutator("F29", "lost: all magnitudes")
def lose_magnitudes(s: Subject) -> bool:
    return s.drop(s.keys(".lora_magnitude_vector"))


@mutator("F28", "lost: trained tokens")
def lose_tokens(s: Subject) -> bool:
    return s.drop(s.pick(s.keys(TOKENS)))


@mutator("F30", "lost: one bias")
def lose_bias(s: Subject) -> bool:
    return s.drop(s.pick(s.keys(".bias")))


@mutator("F30", "lost: all biases")
def lose_biases(s: Subject) -> bool:
    return s.drop(s.keys(".bias"))


@mutator("F12", "lost: the resized matrix")
def lose_resized(s: Subject) -> bool:
    return s.drop(s.keys(".base_layer.weight", ".original_module.weight"))


@mutator("F21", "lost: everything")
def lose_everything(s: Subject) -> bool:
    s.tensors = {}
    return True


@mutator("F13", "lost: pairs of experts")
def lose_experts(s: Subject) -> bool:
    return s.drop([k for k in s.tensors if ".experts." in k])


# ------------------------------------------------------------------------------------------------- what is there twice


@mutator("F35", "more: a value head")
def value_head(s: Subject) -> bool:
    s.tensors["v_head.summary.weight"] = torch.ones(1, 32)
    return True


@mutator("F35", "more: a head below the prefix")
def score_head(s: Subject) -> bool:
    s.tensors[PREFIX + "score.weight"] = torch.ones(2, 32)
    return True


@mutator("F05", "more: a pair that the config does not name")
def more_pairs(s: Subject) -> bool:
    for new in ("o_proj", "q_proj", "dense", "c_proj", "out_proj", "k"):
        for module in s.modules:
            parent, _, kind = module.rpartition(".")
            key = f"{parent}.{new}"
            weight = s.base.get(f"{key.removeprefix(PREFIX)}.weight")
            if new != kind and key not in s.modules and weight is not None and weight.ndim == 2:
                n_out, n_in = weight.T.shape if s.pair.healthy.family == "gpt2" else weight.shape
                rank = int(s.config["r"])
                s.tensors[f"{key}.lora_A.weight"] = torch.full((rank, n_in), 0.01)
                s.tensors[f"{key}.lora_B.weight"] = torch.full((n_out, rank), 0.01)
                del s.__dict__["base"]  # it was only looked at
                return True
    return False


@mutator("F05", "more: a whole matrix where LoRA is")
def whole_and_lora(s: Subject) -> bool:
    for module in s.pick(s.modules, len(s.modules)):
        weight = s.base.get(f"{module.removeprefix(PREFIX)}.weight")
        if weight is not None:
            s.tensors[f"{module}.weight"] = weight * 1.01
            del s.__dict__["base"]
            return True
    return False


@mutator("F05", "more: a norm that the config does not name")
def more_norms(s: Subject) -> bool:
    norms = [k for k, x in s.base.items() if x.ndim == 1 and "norm" in k and PREFIX + k not in s.tensors]
    chosen = s.pick(sorted(norms))
    s.tensors |= {PREFIX + k: s.base[k] * 1.1 for k in chosen}
    del s.__dict__["base"]
    return bool(chosen)


@mutator("F58", "twice: a whole matrix, other values")
def twice_other(s: Subject) -> bool:
    return _twice(s, 1.1)


@mutator("F58", "twice: a whole matrix, same values")
def twice_same(s: Subject) -> bool:
    return _twice(s, 1.0)


def _twice(s: Subject, factor: float) -> bool:
    whole = [
        k for k in s.keys(".weight") if "lora_" not in k and "base_layer" not in k and ".modules_to_save." not in k
    ]
    chosen = s.pick([k for k in whole if ".original_module." not in k])
    for key in chosen:
        module = key.removesuffix(".weight")
        if f"{module}.modules_to_save.weight" in s.tensors:
            return False
        s.tensors[f"{module}.modules_to_save.weight"] = s.tensors[key] * factor
    return bool(chosen)


@mutator("F58", "twice: a pair below base_layer")
def twice_below(s: Subject) -> bool:
    chosen = [m for m in s.pick(s.modules) if not m.endswith(".base_layer") and ".experts" not in m]
    for module in chosen:
        for factor in (".lora_A.weight", ".lora_B.weight"):
            s.tensors[f"{module}.base_layer{factor}"] = s.tensors[module + factor].clone()
    return bool(chosen)
