"""Tiny models of several architectures, written as GGUF files in the way of llama.cpp's converter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

N_TOKENS = 260
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 256, 512, 2, 8, 2, 32

_SIZES = {
    "vocab_size": N_TOKENS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 259,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
CONFIGS: dict[str, Any] = {
    "llama": lambda tie: LlamaConfig(**_SIZES, head_dim=HEAD, tie_word_embeddings=tie),
    "mistral": lambda tie: MistralConfig(**_SIZES, head_dim=HEAD, tie_word_embeddings=tie),
    "qwen2": lambda tie: Qwen2Config(**_SIZES, tie_word_embeddings=tie),
    "qwen3": lambda tie: Qwen3Config(**_SIZES, head_dim=64, tie_word_embeddings=tie),
    "qwen2moe": lambda tie: Qwen2MoeConfig(
        **_SIZES, **_MOE, shared_expert_intermediate_size=512, tie_word_embeddings=tie
    ),
    "qwen3moe": lambda tie: Qwen3MoeConfig(**_SIZES, **_MOE, head_dim=64, norm_topk_prob=True, tie_word_embeddings=tie),
    "gemma2": lambda tie: Gemma2Config(
        **_SIZES, head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=64, tie_word_embeddings=tie
    ),
    "gemma3": lambda tie: Gemma3TextConfig(
        **_SIZES, head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=64, tie_word_embeddings=tie
    ),
    "phi3": lambda tie: Phi3Config(**_SIZES, sliding_window=64, tie_word_embeddings=tie),
}


def make_model(architecture: str, *, tie: bool = False, config: Any = None) -> Any:
    """A model in float32, every parameter drawn from one seed."""
    model = AutoModelForCausalLM.from_config(config or CONFIGS[architecture](tie), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # of bf16, so that one can be added and taken away again without a loss
            parameter.copy_(torch.randn(parameter.shape, generator=generator).bfloat16() / 8)
    return model


def converted(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """The tensors of a model under the names, and in the form, that llama.cpp gives them."""
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    kind = known["llama" if architecture == "mistral" else architecture]
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if match := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", name):
            parts = (
                {"down": value} if match[2] == "down" else dict(zip(("gate", "up"), np.split(value, 2, 1), strict=True))
            )
            found |= {f"blk.{match[1]}.ffn_{part}_exps.weight": one for part, one in parts.items()}
            continue
        stem, _, suffix = name.rpartition(".")
        if architecture in ("llama", "mistral") and (match := re.search(r"\.([qk])_proj\.weight$", name)):
            value = _permuted(value, HEADS if match[1] == "q" else model.config.num_key_value_heads)
        if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            value = value + 1
        if name.endswith("shared_expert_gate.weight"):
            value = value[0]
        found[f"{names.get_name(stem)}.{suffix}"] = value
    return found


def _permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head, its two halves interleaved: as convert_hf_to_gguf.py writes q and k of Llama."""
    n, d = x.shape[0] // heads, x.shape[1]
    return np.stack([x.reshape(heads, 2, n // 2, d)[:, 0], x.reshape(heads, 2, n // 2, d)[:, 1]], axis=2).reshape(-1, d)


def write_gguf(
    path: Path,
    model: Any,
    architecture: str,
    *,
    types: tuple[Type, ...] = (Type.F32,),
    keys: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    vocabulary: str = "gpt2",
    split: int = 0,
) -> Path:
    """Write a GGUF file; matrices take the types in turn, other tensors are float32.

    Args:
        keys: of the architecture, over those that follow from the config; None leaves one out.
        extra: tensors beside the model's.
        split: tensors a part, where the file is to be divided.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "llama" if architecture == "mistral" else architecture
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    writer.add_name(architecture)
    for key, value in {**_keys(model.config, architecture), **(keys or {})}.items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            (add[type(value)] if not isinstance(value, list) else writer.add_array)(f"{name}.{key}", value)
    add_vocabulary(writer, vocabulary)
    rng, n_matrices = np.random.default_rng(1), 0
    for tensor, value in {**converted(model, architecture), **(extra or {})}.items():
        kind = Type.F32
        if value.ndim > 1 and "ffn_gate_inp" not in tensor:
            kind, n_matrices = types[n_matrices % len(types)], n_matrices + 1
        writer.add_tensor(tensor, packed(value, kind, rng), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def packed(value: np.ndarray, kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Values quantised by the package gguf; random blocks of finite values for the types that it only decodes."""
    values, _ = gguf.GGML_QUANT_SIZES[kind]
    if value.shape[-1] % values:
        raise ValueError(f"rows of {value.shape[-1]} values in blocks of {values}")
    try:
        return gguf.quants.quantize(value, kind)
    except NotImplementedError:
        return blocks((*value.shape[:-1], value.shape[-1] // values), kind, rng)


def blocks(shape: tuple[int, ...], kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Random blocks of a type, (…, blocks · bytes of one), of which every value is finite."""
    _, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (*shape, n_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        while not (good := np.isfinite(_values(raw, kind)).all(-1)).all():
            raw[~good] = rng.integers(0, 256, (int((~good).sum()), n_bytes), dtype=np.uint8)
    return raw.reshape(*shape[:-1], -1)


def _values(raw: np.ndarray, kind: Type) -> np.ndarray:
    return gguf.dequantize(raw.reshape(-1, raw.shape[-1]), kind).reshape(*raw.shape[:-1], -1)


def _keys(config: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's converter writes of a config."""
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters.get("full_attention", config.rope_parameters)["rope_theta"],
    }
    if architecture in ("llama", "mistral"):
        keys |= {"vocab_size": config.vocab_size, "rope.dimension_count": config.head_dim}
    if architecture in ("qwen3", "qwen3moe", "gemma2", "gemma3"):
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture in ("gemma2", "gemma3", "phi3"):
        keys["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        keys |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if architecture == "phi3":
        size = config.hidden_size // config.num_attention_heads
        keys |= {"rope.dimension_count": size, "rope.scaling.original_context_length": 4096}
    if architecture.endswith("moe"):
        keys |= {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if architecture == "qwen2moe":
        keys["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    return keys


def add_vocabulary(writer: gguf.GGUFWriter, kind: str) -> None:
    """A vocabulary of 260 tokens: "gpt2" is byte-level, "llama" is sentencepiece; "" for none."""
    special = ["<s>", "</s>", "<pad>"]
    if kind == "gpt2":
        letters = bytes_to_unicode()
        tokens = [*(letters[k] for k in range(256)), "he", *special]
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["h e"])
        types = [1] * 257 + [3] * 3
    elif kind == "llama":
        tokens = [*(f"<0x{k:02X}>" for k in range(256)), "▁", *special]
        writer.add_token_scores([-float(k) for k in range(N_TOKENS)])
        types = [6] * 256 + [1] + [3] * 3
    else:
        return
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_add_bos_token(kind == "llama")
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
