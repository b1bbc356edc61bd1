"""What the keys of a GGUF file say of a model that Transformers' map of them leaves out. Pure.

Sizes of experts and heads, soft caps, rotary positions: `rope_freqs.weight` and `rope_factors_*.weight` are tensors
that hold numbers of the config. Sources: llama.cpp's convert_hf_to_gguf.py and llama-model.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from suture.errors import FormatError
from suture.formats.dtypes import Array
from suture.formats.files import quoted
from suture.formats.gguf.header import Header, Stored

ARCHITECTURES = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3")
MAX_LAYERS = 1 << 10

# Layers of the models of 27 B, whose attention is not scaled by the size of their heads.
_LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}
# Keys that Transformers maps, and those that are the same for every model of an architecture.
_MAPPED = frozenset({
    *("context_length", "block_count", "feed_forward_length", "embedding_length", "vocab_size", "expert_used_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base"),
    *("rope.scaling.finetuned", "tensor_data_layout", "attention.causal", "expert_shared_count"),
})  # fmt: skip
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(slots=True)
class Said:
    """The keys of one architecture; `used` grows with those that were looked at."""

    header: Header
    where: str
    used: set[str]

    @property
    def architecture(self) -> str:
        """Which it is."""
        return str(self.header.get("general.architecture"))

    def get(self, name: str) -> Any:
        """The value of a key, None where there is none."""
        self.used.add(name)
        return self.header.get(f"{self.architecture}.{name}")

    def count(self, name: str, default: int | None = None) -> int:
        """A key that says how many.

        Raises:
            FormatError: it is missing, or no count.
        """
        value = self.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 <= value < 1 << 31:
            self.refuse(f"{name} is {quoted(value)}", "a number, the same for all layers")
        return value

    def number(self, name: str) -> float | None:
        """A key that says how much, as the shortest decimal that means this float32; None where there is none.

        Raises:
            FormatError: it is no finite number.
        """
        value = self.get(name)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            self.refuse(f"{name} is {quoted(value)}", "a number")
        return None if value is None else float(shortest(value))

    def refuse(self, found: str, expected: str) -> NoReturn:
        """Raise a FormatError about the keys."""
        raise FormatError(found, where=self.where, expected=expected, do="Use the safetensors weights of the model.")


def additions(said: Said, tensors: Mapping[str, Stored], factors: Mapping[str, Array]) -> dict[str, Any]:
    """Entries of config.json, to be laid over those that Transformers makes.

    Args:
        said: the keys.
        tensors: of the file, by name.
        factors: the values of those that hold numbers of the config.

    Raises:
        FormatError: keys are missing, or contradict each other or the tensors, or say what no config can.
    """
    n_layers, heads = said.count("block_count"), said.count("attention.head_count")
    layers = {int(match[1]) for name in tensors if (match := re.match(r"blk\.(\d{1,9})\.", name))}
    if not 0 < n_layers <= MAX_LAYERS or layers != set(range(n_layers)):
        said.refuse(f"block_count is {n_layers}, the tensors are of {len(layers)} layers", "tensors of each layer")
    if "token_embd.weight" not in tensors or heads < 1:
        said.refuse("there is no token_embd.weight, or no head of attention", "a language model")
    width, n_rows = said.count("embedding_length") // heads, tensors["token_embd.weight"].shape[0]
    tokens = said.header.keys.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.n_items != n_rows:
        said.refuse(f"{tokens.n_items} tokens, and {n_rows} rows in token_embd.weight", "a row for each token")
    added = {
        "vocab_size": n_rows,
        "num_key_value_heads": said.count("attention.head_count_kv", heads),
        **_heads(said, width),
        **_experts(said, tensors, n_layers),
        **_gemma(said, n_layers, width),
    }
    head_dim = added.get("head_dim") or said.count("rope.dimension_count", width)
    if (scaling := _rope_scaling(said, factors, head_dim)) is not None:
        added["rope_scaling"] = scaling
    return added


def unused(said: Said) -> list[str]:
    """Keys of the architecture that neither Transformers nor this module takes into account."""
    prefix = said.architecture + "."
    names = (name.removeprefix(prefix) for name in said.header.keys if name.startswith(prefix))
    return sorted(set(names) - said.used - _MAPPED)


def shortest(value: Any) -> Any:
    """A float that is a float32 as the shortest decimal that means this float32: 1e-05, as configs are written."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _heads(said: Said, width: int) -> dict[str, Any]:
    """The size of a head, and how much of it turns with the position."""
    rotary = said.get("rope.dimension_count")
    size, values = said.get("attention.key_length"), said.get("attention.value_length")
    if size is not None and values is not None and values != size:
        said.refuse(f"keys of {quoted(size)} values and values of {quoted(values)}", "heads of one size")
    if said.architecture == "phi3":
        window = said.count("attention.sliding_window", 0)
        original = said.count("rope.scaling.original_context_length", said.count("context_length"))
        part = said.count("rope.dimension_count", width) / max(width, 1)
        partial = {} if part == 1 else {"partial_rotary_factor": part}
        return {"sliding_window": window or None, "original_max_position_embeddings": original, **partial}
    if size is None:
        return {}
    if rotary is not None and rotary != size:
        said.refuse(f"{quoted(rotary)} of {quoted(size)} values of a head are rotary", "whole heads")
    return {"head_dim": said.count("attention.key_length")}


def _experts(said: Said, tensors: Mapping[str, Stored], n_layers: int) -> dict[str, Any]:
    """Sizes of experts, and the layers that have none."""
    sizes = [t.shape[-2] for name, t in sorted(tensors.items()) if name.endswith(".ffn_gate_exps.weight")]
    if not sizes or not said.architecture.endswith("moe"):
        return {}
    for name in ("expert_feed_forward_length", "expert_shared_feed_forward_length"):
        said.get(name)  # the tensors say so as well, also in files that were made before there were such keys
    added: dict[str, Any] = {"moe_intermediate_size": sizes[0], "num_experts": said.count("expert_count")}
    added["mlp_only_layers"] = [k for k in range(n_layers) if f"blk.{k}.ffn_gate.weight" in tensors]
    shared = [t.shape[0] for name, t in sorted(tensors.items()) if name.endswith(".ffn_gate_shexp.weight")]
    if shared:
        added["shared_expert_intermediate_size"] = shared[0]
    if isinstance(norm := said.get("expert_weights_norm"), bool):
        added["norm_topk_prob"] = norm
    return added


def _gemma(said: Said, n_layers: int, width: int) -> dict[str, Any]:
    """Soft caps, the scale of attention, and layers that see a window."""
    architecture = said.architecture
    if architecture not in _LARGE_GEMMA:
        return {}
    large = n_layers == _LARGE_GEMMA[architecture]
    added: dict[str, Any] = {"query_pre_attn_scalar": width if large else said.count("attention.key_length", 256)}
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := said.number(name)) is not None:
            added[name] = cap
    said.get("attention.sliding_window")
    if (pattern := said.get("attention.sliding_window_pattern")) is not None:
        added["sliding_window_pattern"] = said.count("attention.sliding_window_pattern") if pattern else None
    if (base := said.number("rope.freq_base_swa")) is not None:
        added["rope_local_base_freq"] = base
    return added


def _rope_scaling(said: Said, factors: Mapping[str, Array], head_dim: int) -> dict[str, Any] | None:
    """How positions are stretched, as Transformers' `rope_scaling`; None where they are not."""
    kind, factor = said.get("rope.scaling.type"), said.number("rope.scaling.factor")
    linear = said.number("rope.scale_linear")
    if "rope_factors_long.weight" in factors:
        said.get("rope.scaling.attn_factor")  # follows from the two lengths
        both = {f"{name}_factor": _list(factors[f"rope_factors_{name}.weight"]) for name in ("short", "long")}
        return {"rope_type": "longrope", **both}
    if "rope_freqs.weight" in factors:
        return _llama3(said, factors["rope_freqs.weight"], head_dim)
    if kind in (None, "none", "linear"):
        factor = linear if factor is None else factor
        return {"rope_type": "linear", "factor": factor} if factor not in (None, 0.0, 1.0) else None
    if kind != "yarn" or factor is None:
        said.refuse(f"rope.scaling.type is {quoted(kind)}", "none, linear, or yarn with a factor")
    original = said.count("rope.scaling.original_context_length")
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if (value := said.number(f"rope.scaling.yarn_{name}")) is not None:
            scaling[name] = value
    return scaling


def _llama3(said: Said, factors: Array, head_dim: int) -> dict[str, Any] | None:
    """The one way of stretching that Llama 3 has, if the file's factors are those that follow from it.

    A wave of w positions is slowed `factor` times where w > original / low, not at all where w < original / high, and
    between them 1 / ((1 - s) / factor + s) times, s = (original / w - low) / (high - low).
    """
    if np.all(factors == 1):
        return None
    if factors.size * 2 != head_dim:
        said.refuse(f"rope_freqs.weight has {factors.size} factors", f"{head_dim} / 2, one for two values of a head")
    factor, theta = shortest(float(factors.max())), said.number("rope.freq_base") or 10000.0
    low, high, original = _LLAMA3.values()
    with np.errstate(all="ignore"):
        waves = 2 * math.pi * np.float64(theta) ** (np.arange(0, head_dim, 2) / head_dim)
        s = (original / waves - low) / (high - low)
        expected = np.where(waves > original / low, factor, 1 / ((1 - s) / factor + s))
        expected[waves < original / high] = 1
        if not np.allclose(factors, expected, rtol=1e-3):
            said.refuse("rope_freqs.weight does not hold Llama 3's factors", "factors that a config can say")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def _list(values: Array) -> list[float]:
    return [shortest(float(value)) for value in values]
