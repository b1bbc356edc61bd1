"""A PeftModel in memory, its parameters under the keys that they have in an adapter file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from peft import PeftModel

from suture.arch import describe
from suture.errors import UsageError
from suture.groups import group_of
from suture.rewriting import PREFIX
from suture.values import Arch, Json

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True, slots=True)
class Live:
    """What a PeftModel holds.

    `held` are the active adapter's own parameters by file key. One that several modules share has several keys, of
    which PEFT saves the first, or all.
    """

    model: PeftModel
    adapter: str
    config: Json  # of the adapter, as it would be saved
    arch: Arch
    held: Mapping[str, torch.nn.Parameter]
    strangers: Mapping[str, torch.nn.Parameter]  # trainable parameters that are not the adapter's, by name in memory
    others: Mapping[str, torch.nn.Parameter]  # those of other adapters, trainable or not, by name in memory
    is_wrapped_twice: bool  # a PeftModel lies inside of the PeftModel

    def group(self, key: str) -> str:
        """The group of a tensor, by its key."""
        return group_of(key, self.arch)

    def of_module(self, module: str) -> dict[str, torch.nn.Parameter]:
        """What the adapter holds of one module, by the module's name in the base."""
        path = f"{PREFIX}{module}"
        begins = (f"{path}.lora_", f"{path}.token_adapter.")
        return {key: p for key, p in self.held.items() if key == f"{path}.weight" or key.startswith(begins)}

    def unique(self) -> dict[str, torch.nn.Parameter]:
        """`held`, every parameter once, under its first key."""
        seen: dict[int, str] = {}
        for key, parameter in self.held.items():
            seen.setdefault(id(parameter), key)
        return {key: self.held[key] for key in seen.values()}


def look(model: Any) -> Live:
    """The adapter of a model, wrapped by DDP, torch.compile or a trainer or not.

    Raises:
        UsageError: it is no PeftModel, its adapter is not LoRA, or several adapters are active.
    """
    peft = unwrap(model)
    active = list(peft.active_adapters)
    if len(active) != 1:
        raise UsageError(
            f"{len(active)} adapters are active: {', '.join(active)}",
            expected="one adapter that trains",
            do="model.set_adapter(name) chooses it.",
        )
    (adapter,) = active
    config = plain(peft.peft_config[adapter].to_dict())
    if config.get("peft_type") != "LORA":
        raise UsageError(f"the adapter's method is {config.get('peft_type')}", expected="LoRA, rsLoRA or DoRA")
    held, strangers, others = {}, {}, {}
    for name, parameter in peft.named_parameters(remove_duplicate=False):
        key = key_of(name, adapter, config)
        if key is not None:
            held[key] = parameter
        elif adapter_of(name) in peft.peft_config:
            others[name] = parameter
        if key is None and parameter.requires_grad:
            strangers[name] = parameter
    outer = base = peft.get_base_model()
    while isinstance(base, PeftModel):
        base = base.get_base_model()
    arch = describe({**without_quantization(base.config.to_dict()), "architectures": [type(base).__name__]}, {})
    return Live(peft, adapter, config, arch, held, strangers, others, isinstance(outer, PeftModel))


def unwrap(model: Any) -> PeftModel:
    """The PeftModel inside of what a trainer has made of it.

    Raises:
        UsageError: there is none.
    """
    inner = model
    while not isinstance(inner, PeftModel):
        inner = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if inner is None:
            raise UsageError(
                f"{type(model).__name__} is no PeftModel",
                expected="a model with an adapter",
                do="Pass what peft.get_peft_model or PeftModel.from_pretrained returned.",
            )
    return inner


def key_of(name: str, adapter: str, config: Json) -> str | None:
    """The file key of a parameter by its name in memory; None if it is not this adapter's.

    base_model.model.….q_proj.lora_A.default.weight                  → ….q_proj.lora_A.weight
    base_model.model.….embed_tokens.modules_to_save.default.weight   → ….embed_tokens.weight
    base_model.model.….lora_magnitude_vector.default.weight          → ….lora_magnitude_vector
    base_model.model.….token_adapter.trainable_tokens_delta.default  → ….token_adapter.trainable_tokens_delta
    """
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    if "modules_to_save" in parts:
        cut = parts.index("modules_to_save")
        return ".".join(parts[:cut] + parts[cut + 2 :]) if parts[cut + 1 : cut + 2] == [adapter] else None
    at = _name_at(parts)
    if at is None:
        return _bias_key(parts, config) if parts[-1] == "bias" else None
    if parts[at] != adapter:
        return None
    if parts[at - 1] == "lora_magnitude_vector":
        return ".".join(parts[:at])
    return ".".join(parts[:at] + parts[at + 1 :])


def adapter_of(name: str) -> str | None:
    """The adapter that a parameter belongs to, by its name in memory; None for the base's own."""
    parts = name.split(".")
    at = parts.index("modules_to_save") + 1 if "modules_to_save" in parts[:-1] else _name_at(parts)
    return None if at is None else parts[at]


def _name_at(parts: list[str]) -> int | None:
    """Where an adapter's name stands in a path: after lora_… or trainable_tokens_…, with at most one part behind it."""
    for at in (len(parts) - 1, len(parts) - 2):
        if at > 0 and parts[at - 1].startswith(("lora_", "trainable_tokens_")):
            return at
    return None


def _bias_key(parts: list[str], config: Json) -> str | None:
    """Biases of the base train where they are: all of them, or those of layers with LoRA, as `bias` says."""
    mode = config.get("bias", "none")
    in_layer = parts[-2:-1] == ["base_layer"]
    return ".".join(parts) if mode == "all" or (mode == "lora_only" and in_layer) else None


def plain(value: Any) -> Any:
    """A config as JSON data: sets sorted, enums as their values."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return plain(value.value) if isinstance(value, Enum) else value


def without_quantization(config: Json) -> dict[str, Any]:
    """A model's config as if it had been loaded in full precision: names and shapes do not depend on the scheme."""
    return {key: value for key, value in config.items() if key != "quantization_config"}
