"""What PEFT itself makes of an adapter config on a model without weights: wrapped modules, tensor names and shapes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from zoo import FAMILIES


@dataclass(frozen=True)
class Claim:
    """An adapter config on a family of the zoo. `what` is its name in the list of tests."""

    family: str
    what: str
    settings: dict[str, Any] = field(hash=False)

    @property
    def config(self) -> LoraConfig:
        """A fresh config: PEFT changes the one it is given."""
        return LoraConfig(**{"r": 4, "lora_alpha": 8, **self.settings})


@dataclass(frozen=True)
class Injected:
    """What PEFT built from a config.

    Args:
        config: as PEFT would write it to adapter_config.json; names of fused experts have been translated by then.
        lora_modules: modules with low-rank factors. A module with several fused parameters occurs once.
        other_modules: modules that are trained in full or by rows.
        tensors: keys and shapes of the file, embeddings that PEFT adds to it on its own left out.
        n_trainable: as PEFT counts it.
        n_all: parameters of base and adapter together, as PEFT counts them.
    """

    config: dict[str, Any]
    lora_modules: tuple[str, ...]
    other_modules: tuple[str, ...]
    tensors: dict[str, tuple[int, ...]]
    n_trainable: int
    n_all: int


def inject(model_class: Any, model_config: Any, config: LoraConfig) -> Injected:
    """Wrap a model on the meta device. Reads no weight, and takes as long for 8 B parameters as for 8 k."""
    with torch.device("meta"):
        model = model_class(model_config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (UserWarning, RuntimeWarning))
        live = get_peft_model(model, config, low_cpu_mem_usage=True)
        state = get_peft_model_state_dict(live, save_embedding_layers=False)
    n_trainable, n_all = live.get_nb_trainable_parameters()
    return Injected(
        config.to_dict(),
        _wrapped(live, LoraLayer),
        _wrapped(live, AuxiliaryTrainingWrapper),
        {name: tuple(tensor.shape) for name, tensor in sorted(state.items())},
        n_trainable,
        n_all,
    )


def inject_claim(claim: Claim) -> Injected:
    """Wrap the tiny model of a claim's family."""
    family = FAMILIES[claim.family]
    return inject(family.model_class, family.make_config(), claim.config)


def _wrapped(live: PeftModel, kind: type) -> tuple[str, ...]:
    names = (name for name, module in live.base_model.model.named_modules() if isinstance(module, kind))
    return tuple(sorted({name.replace(".base_layer", "") for name in names}))


CLAIMS = (
    Claim("llama", "names", {"target_modules": ["q_proj", "v_proj"]}),
    Claim("llama", "dotted names", {"target_modules": ["self_attn.q_proj", "layers.1.mlp.up_proj"]}),
    Claim("llama", "part of a name", {"target_modules": ["proj", "v_proj"]}),
    Claim("llama", "regex", {"target_modules": r".*\.layers\.1\..*(q|k)_proj"}),
    Claim("llama", "regex of a whole path", {"target_modules": r"model\.layers\.\d+\.mlp\.(gate|up)_proj"}),
    Claim("llama", "all-linear", {"target_modules": "all-linear"}),
    Claim("llama", "default of the architecture", {"target_modules": None}),
    Claim("llama", "one layer", {"target_modules": ["q_proj"], "layers_to_transform": 1}),
    Claim("llama", "layers", {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 1]}),
    Claim(
        "llama",
        "layers by pattern",
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": ["layers", "h"]},
    ),
    Claim(
        "llama",
        "excluded names",
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj", "layers.0.self_attn.q_proj"]},
    ),
    Claim("llama", "excluded regex", {"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}),
    Claim("llama", "saved wins over target", {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}),
    Claim("llama", "saved by suffix", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    Claim(
        "llama",
        "ranks",
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 7, "v": 3}},
    ),
    Claim(
        "llama", "ranks by regex", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {r".*\.[01]\..*v_.*": 3}}
    ),
    Claim("llama", "tokens", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 6]}),
    Claim(
        "llama",
        "tokens of both ends",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [7]}},
    ),
    Claim(
        "llama", "dora, embedding, head", {"target_modules": ["embed_tokens", "lm_head", "o_proj"], "use_dora": True}
    ),
    Claim(
        "llama", "parameters of linear layers", {"target_modules": ["q_proj"], "target_parameters": ["k_proj.weight"]}
    ),
    Claim("llama-tied", "tokens", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5, 6]}),
    Claim("llama-tied", "all-linear", {"target_modules": "all-linear"}),
    Claim("gpt2", "default of the architecture", {"target_modules": None}),
    Claim("gpt2", "transposed, with biases", {"target_modules": ["c_attn", "c_proj"], "bias": "all", "use_dora": True}),
    Claim("gpt2", "biases of targets", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    Claim("gpt2", "new biases", {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}),
    Claim("gpt2", "all-linear", {"target_modules": "all-linear"}),
    Claim("vit", "convolution", {"target_modules": ["projection", "q_proj"], "modules_to_save": ["classifier"]}),
    Claim("vit", "convolution, dora", {"target_modules": ["projection"], "use_dora": True}),
    Claim("videomae", "convolution", {"target_modules": ["projection"], "use_dora": True}),
    Claim("bert", "all-linear", {"target_modules": "all-linear"}),
    Claim("t5", "names that occur on both sides", {"target_modules": ["q", "v"]}),
    Claim("whisper", "all-linear", {"target_modules": "all-linear"}),
    Claim("qwen3-vl", "names that occur in both towers", {"target_modules": ["qkv", "q_proj", "proj", "linear_fc1"]}),
    Claim("qwen3-vl", "all-linear", {"target_modules": "all-linear"}),
    Claim("gemma3-image", "all-linear", {"target_modules": "all-linear"}),
    Claim(
        "mixtral",
        "experts",
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    ),
    Claim("mixtral", "names from before fusion", {"target_modules": ["w1", "w2", "w3", "q_proj"]}),
    Claim("mixtral", "one expert parameter", {"target_modules": [], "target_parameters": ["down_proj"]}),
    Claim("mixtral", "all-linear", {"target_modules": "all-linear"}),
    Claim("mixtral", "experts in full", {"target_modules": ["q_proj"], "modules_to_save": ["experts"]}),
    Claim(
        "gpt-oss",
        "transposed experts with ranks",
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["gate_up_proj", "down_proj"],
            "rank_pattern": {"experts.gate_up_proj": 2, "q_proj": 3},
        },
    ),
    Claim("gpt-oss", "all-linear", {"target_modules": "all-linear"}),
    Claim("deepseek-v3", "all-linear", {"target_modules": "all-linear"}),
)
