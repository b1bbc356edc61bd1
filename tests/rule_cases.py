"""A tiny Llama and adapters for it, written by hand: rules look at names, shapes and a few values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import suture
from suture.values import Finding, Options

HIDDEN, INTER, VOCAB, R = 16, 24, 32, 2
PREFIX = "base_model.model."
Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INTER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}
LORA = {"peft_type": "LORA", "peft_version": "0.21.2", "r": R, "lora_alpha": 4, "target_modules": ["q_proj"]}

Arrays = Mapping[str, np.ndarray]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """Values that are not zero."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32) + 3


def llama(folder: Path, *, tied: bool = False, tensors: Arrays | None = None, **config: Any) -> Path:
    """A Llama of two layers; `tensors` replaces or adds some, `config` fields of its config.json."""
    shapes = {f"{EMBED}.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {} if tied else {f"{HEAD}.weight": (VOCAB, HIDDEN)}
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {f"{layer}self_attn.{p}_proj.weight": (HIDDEN, HIDDEN) for p in "qkvo"}
        shapes |= {f"{layer}mlp.{p}_proj.weight": (INTER, HIDDEN) for p in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (HIDDEN, INTER)}
        shapes |= {f"{layer}{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    weights = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(sorted(shapes.items()))}
    return save(folder, {**LLAMA, "tie_word_embeddings": tied, **config}, {**weights, **(tensors or {})}, "model")


def adapter(folder: Path, tensors: Arrays, **config: Any) -> Path:
    """An adapter with these tensors (names without PEFT's prefix); `config` changes fields of its config."""
    named = {name if name.startswith(PREFIX) else PREFIX + name: array for name, array in tensors.items()}
    return save(folder, {**LORA, **config}, named, "adapter_model")


def save(folder: Path, config: Mapping[str, Any], tensors: Arrays, stem: str) -> Path:
    """Write a config and a weight file."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "config.json" if stem == "model" else "adapter_config.json"
    (folder / name).write_text(json.dumps(config))
    save_file(dict(tensors), folder / f"{stem}.safetensors", metadata={"format": "pt"})
    return folder


def pair(module: str, n_in: int = HIDDEN, n_out: int = HIDDEN, r: int = R) -> dict[str, np.ndarray]:
    """Both factors of a linear layer."""
    return {f"{module}.lora_A.weight": random(r, n_in), f"{module}.lora_B.weight": random(n_out, r)}


def embedding_pair(module: str = EMBED, rows: int = VOCAB) -> dict[str, np.ndarray]:
    """Both factors of an embedding."""
    return {f"{module}.lora_embedding_A": random(R, rows), f"{module}.lora_embedding_B": random(HIDDEN, R)}


BOTH = {**pair(Q0), **pair(Q1)}  # what LORA asks for


def head_only(folder: Path) -> Path:
    """An adapter with LoRA on the head alone."""
    return adapter(folder, pair(HEAD, HIDDEN, VOCAB), target_modules=["lm_head"])


def tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> Path:
    """Put a tokenizer with these tokens into a folder."""
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    return folder


def findings(base: Path, tuned: Path, code: str, options: Options | None = None, **reading: Any) -> list[Finding]:
    """What one rule finds."""
    found = suture.check(base, tuned, options=options, deep=True, **reading)
    return [f for f in found if f.code == code]


def only(base: Path, tuned: Path, code: str, options: Options | None = None) -> Finding:
    """The one finding of a rule."""
    (finding,) = findings(base, tuned, code, options)
    return finding
