"""Defects of adapter_config.json: F05, F11, F16, F18, F19, F20, F28 to F33, F50, F51."""

from __future__ import annotations

from typing import Any

from mutants import CONFIG, PREFIX, WEIGHTS, Subject, mutator

REMOVED = object()


def _setting(field: str, value: Any, where: Any = None):
    """Set a field, where it has another value and the condition holds."""

    def change(s: Subject) -> bool:
        new = value(s) if callable(value) else value
        if (
            (new is None and value is not None)
            or (s.config.get(field) or None) == (new or None)
            or (where is not None and not where(s))
        ):
            return False
        if new is REMOVED:
            return s.config.pop(field, None) is not None
        s.config[field] = new
        return True

    return change


def _has(ending: str):
    return lambda s: any(ending in key for key in s.tensors)


def _module(s: Subject) -> str | None:
    chosen = s.pick(s.modules)
    return chosen[0].removeprefix(PREFIX).replace(".base_layer", "") if chosen else None


def _pattern(n: Any):
    def value(s: Subject) -> Any:
        module = _module(s)
        return None if module is None else {module: n(s)}

    return value


def _ids(change: Any):
    """Change the numbers of trained tokens, all of them in the same way."""

    def value(s: Subject) -> Any:
        ids = s.config.get("trainable_token_indices")
        if not ids:
            return None
        return {k: change(v) for k, v in ids.items()} if isinstance(ids, dict) else change(ids)

    return value


def _list(field: str, change: Any):
    def value(s: Subject) -> Any:
        names = s.config.get(field)
        return change(sorted(names)) if isinstance(names, list) and names else None

    return value


def _alpha(factor: float):
    return lambda s: s.config["lora_alpha"] * factor


def is_lora(s: Subject) -> bool:
    return bool(s.modules)


# Name of the defect → mode, field, its new value (or what makes it), and where it is a defect.
SETTINGS: dict[str, tuple[Any, ...]] = {
    "r doubled": ("F20", "r", lambda s: 2 * s.config["r"]),
    "r removed": ("F20", "r", REMOVED),
    "r is a text": ("F20", "r", "4"),
    "r is 0": ("F20", "r", 0),
    "lora_alpha doubled": ("F19", "lora_alpha", _alpha(2)),
    "lora_alpha a thousand times": ("F19", "lora_alpha", _alpha(2000)),
    "lora_alpha 0": ("F61", "lora_alpha", 0),
    "lora_alpha negative": ("F19", "lora_alpha", _alpha(-1)),
    "lora_alpha removed": ("F19", "lora_alpha", lambda s: REMOVED if s.config["lora_alpha"] != 8 else None),
    "lora_alpha not finite": ("F61", "lora_alpha", float("inf")),
    "use_rslora flipped": ("F19", "use_rslora", lambda s: not s.config.get("use_rslora")),
    "use_dora off": ("F29", "use_dora", lambda s: False if s.config.get("use_dora") else None),
    "use_dora on": ("F29", "use_dora", lambda s: None if s.config.get("use_dora") else True),
    "rank_pattern for one module": ("F20", "rank_pattern", _pattern(lambda s: s.config["r"] + 1)),
    "rank_pattern that matches nothing": ("F20", "rank_pattern", {"no_such_module": 3}),
    "rank_pattern removed": ("F20", "rank_pattern", {}),
    "alpha_pattern for one module": ("F20", "alpha_pattern", _pattern(lambda s: s.config["lora_alpha"] * 2)),
    "alpha_pattern that matches nothing": ("F20", "alpha_pattern", {"no_such_module": 3}),
    "alpha_pattern removed": ("F20", "alpha_pattern", {}),
    "alpha_pattern that is no regex": ("F20", "alpha_pattern", {"(": 3}),
    "target_modules without one name": ("F05", "target_modules", _list("target_modules", lambda names: names[1:])),
    "target_modules with one more name": (
        *("F05", "target_modules"),
        _list("target_modules", lambda names: [*names, "o_proj", "dense", "c_fc", "wo", "fc2"]),
    ),
    "target_modules empty": ("F05", "target_modules", lambda s: [] if s.config.get("target_modules") else None),
    "target_modules of another model": ("F05", "target_modules", ["query_key_value"], is_lora),
    "target_modules that is no regex": ("F05", "target_modules", "*proj", is_lora),
    "target_modules as a narrow regex": ("F05", "target_modules", r".*\.1\..*", is_lora),
    "modules_to_save with a name that is not in the file": ("F11", "modules_to_save", ["score"]),
    "modules_to_save with a norm that is not in the file": (
        *("F11", "modules_to_save"),
        lambda s: [*(s.config.get("modules_to_save") or []), "layernorm", "norm", "ln_f"],
    ),
    "modules_to_save removed": ("F11", "modules_to_save", None),
    "modules_to_save names what LoRA changes": ("F51", "modules_to_save", lambda s: s.kinds()[:1] or None),
    "target_parameters removed": ("F05", "target_parameters", None),
    "target_parameters without one name": ("F05", "target_parameters", _list("target_parameters", lambda n: n[1:])),
    "target_parameters with one more name": (
        *("F05", "target_parameters"),
        lambda s: [*(s.config.get("target_parameters") or []), "input_layernorm.weight"],
    ),
    "exclude_modules names what is in the file": ("F05", "exclude_modules", lambda s: s.kinds()[:1] or None),
    "layers_to_transform names one layer of two": ("F05", "layers_to_transform", [0]),
    "layers_to_transform beyond the model": ("F05", "layers_to_transform", [7]),
    "layers_to_transform removed": ("F05", "layers_to_transform", None),
    "layer_replication": ("F32", "layer_replication", [[0, 2], [1, 2]]),
    "alora_invocation_tokens": ("F31", "alora_invocation_tokens", [1, 2]),
    "invocation_string": ("F31", "invocation_string", "<start>"),
    "arrow_config": ("F50", "arrow_config", {"top_k": 2}),
    "kasa_config": ("F18", "kasa_config", {"beta": 1.0}),
    "use_qalora": ("F50", "use_qalora", True),
    "use_bdlora": ("F50", "use_bdlora", {"nblocks": 2}),
    "velora_config": ("F50", "velora_config", {"n": 1}),
    "monteclora_config": ("F50", "monteclora_config", {"n": 1}),
    "megatron_config": ("F50", "megatron_config", {"tp": 2}),
    "init pissa": ("F18", "init_lora_weights", "pissa"),
    "init pissa_niter_4": ("F18", "init_lora_weights", "pissa_niter_4"),
    "init olora": ("F18", "init_lora_weights", "olora"),
    "init corda": ("F18", "init_lora_weights", "corda"),
    "init lora_ga": ("F18", "init_lora_weights", "lora_ga"),
    "init loftq": ("F18", "init_lora_weights", "loftq"),
    "init of a future version": ("F18", "init_lora_weights", "subspace"),
    "loftq_config": ("F18", "loftq_config", {"loftq_bits": 4}),
    "a field of a future version": ("F50", "lora_gate", 0.5),
    "fan_in_fan_out flipped": ("F33", "fan_in_fan_out", lambda s: not s.config.get("fan_in_fan_out")),
    "bias none": ("F30", "bias", lambda s: None if s.config.get("bias") == "none" else "none", _has(".bias")),
    "bias all": ("F30", "bias", "all"),
    "bias lora_only": ("F30", "bias", "lora_only"),
    "lora_bias flipped": ("F30", "lora_bias", lambda s: not s.config.get("lora_bias")),
    "tokens: other ids": ("F28", "trainable_token_indices", _ids(lambda ids: [i + 1 for i in ids[:-1]] + ids[-1:])),
    "tokens: other order": ("F28", "trainable_token_indices", _ids(lambda ids: ids[::-1])),
    "tokens: an id beyond the vocabulary": ("F28", "trainable_token_indices", _ids(lambda ids: [*ids[:-1], 5000])),
    "tokens: a negative id": ("F28", "trainable_token_indices", _ids(lambda ids: [-1, *ids[1:]])),
    "tokens: an id twice": ("F28", "trainable_token_indices", _ids(lambda ids: [ids[1], *ids[1:]])),
    "tokens: an id more": ("F28", "trainable_token_indices", _ids(lambda ids: [*ids, 11])),
    "tokens: an id less": ("F28", "trainable_token_indices", _ids(lambda ids: ids[:-1])),
    "tokens: removed": ("F28", "trainable_token_indices", None),
    "tokens: asked for, not in the file": ("F28", "trainable_token_indices", [1, 2]),
    "peft_type LOHA": ("F50", "peft_type", "LOHA"),
    "peft_type ADALORA": ("F50", "peft_type", "ADALORA"),
    "peft_type removed": ("F50", "peft_type", REMOVED),
    "peft_version before experts' axes were exchanged": ("F16", "peft_version", "0.18.1", _has(".experts.")),
    "peft_version removed, with experts": ("F16", "peft_version", REMOVED, _has(".experts.")),
    "lora_B_layout expert_major": ("F15", "lora_B_layout", "expert_major", _has(".experts.")),
    "lora_B_layout unknown": ("F15", "lora_B_layout", "diagonal"),
    "base named otherwise": ("F06", "base_model_name_or_path", "someone/another-model-8b"),
    "base named as a quantised one by Unsloth": ("F15", "base_model_name_or_path", "unsloth/x-bnb-4bit"),
    "task_type of a classifier": ("F35", "task_type", "SEQ_CLS", lambda s: "ForCausalLM" in s.base_class),
    "ensure_weight_tying flipped": ("F03", "ensure_weight_tying", lambda s: not s.config.get("ensure_weight_tying")),
}  # fmt: skip

for kind, (mode, *how) in SETTINGS.items():
    mutator(mode, f"config: {kind}")(_setting(*how))


@mutator("F20", "config: r and lora_alpha doubled")
def doubled(s: Subject) -> bool:
    s.config |= {"r": 2 * s.config["r"], "lora_alpha": 2 * s.config["lora_alpha"]}
    return True


@mutator("F20", "config: rank_pattern in another order")
def reordered(s: Subject) -> bool:
    patterns = s.config.get("rank_pattern") or {}
    s.config["rank_pattern"] = {r".*\.layers.*": s.config["r"], **patterns}
    return bool(patterns)


@mutator("F20", "config: alpha_pattern in another order")
def alpha_reordered(s: Subject) -> bool:
    patterns = s.config.get("alpha_pattern") or {}
    s.config["alpha_pattern"] = {r".*\.layers.*": s.config["lora_alpha"], **patterns}
    return bool(patterns)


@mutator("F05", "config: target_modules and the tensors of one kind are gone")
def consistently_less(s: Subject) -> bool:
    targets, kinds = s.config.get("target_modules"), s.kinds()
    if not isinstance(targets, list) or not set(kinds) <= set(targets) or len(kinds) < 2:
        return False
    gone = s.rng.choice(kinds)
    s.config["target_modules"] = [t for t in targets if t != gone]
    return s.drop([k for k in s.tensors if f".{gone}.lora_" in k])


# ------------------------------------------------------------------------------------------------- files of the folder


@mutator("F21", "folder: no config")
def no_config(s: Subject) -> bool:
    s.files[CONFIG] = None
    return True


@mutator("F21", "folder: half a config")
def half_config(s: Subject) -> bool:
    s.files[CONFIG] = b'{"peft_type": "LORA", "r": '
    return True


@mutator("F46", "folder: a config of MLX")
def mlx_config(s: Subject) -> bool:
    s.files[CONFIG] = b'{"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 20.0}}'
    return True


@mutator("F21", "folder: no weights")
def no_weights(s: Subject) -> bool:
    s.files[WEIGHTS] = None
    return True


@mutator("F35", "folder: non_lora_state_dict.bin")
def other_weights(s: Subject) -> bool:
    s.files["non_lora_state_dict.bin"] = b"x" * 64
    return True


@mutator("F35", "folder: value_head.safetensors")
def value_head(s: Subject) -> bool:
    s.files["value_head.safetensors"] = b"x" * 64
    return True


@mutator("F12", "folder: new_embeddings.safetensors")
def new_embeddings(s: Subject) -> bool:
    s.files["new_embeddings.safetensors"] = b"x" * 64
    return True
