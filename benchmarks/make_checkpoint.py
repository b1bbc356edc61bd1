"""Write a checkpoint of random weights and a LoRA adapter for it, offline: what the benchmarks merge.

    python benchmarks/make_checkpoint.py FOLDER --model 1b --targets all

makes FOLDER/base-1b and FOLDER/adapter-1b-all. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 600_000_000
RANK = 16
Tensor = tuple[str, tuple[int, ...]]  # name and shape


@dataclass(frozen=True)
class Llama:
    """Dimensions of a Llama 3, in bf16."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int = 8
    vocab: int = 128256
    tied: bool = True

    dtype, shard_bytes = "BF16", SHARD_BYTES
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    linear = (*attention, "gate_proj", "up_proj", "down_proj")

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear layers of a block."""
        kv = self.hidden // self.heads * self.kv_heads
        attention = {name: (self.hidden if name in "q_proj o_proj" else kv, self.hidden) for name in self.attention}
        return {f"self_attn.{name}": shape for name, shape in attention.items()} | {
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> Iterator[Tensor]:
        """Of the checkpoint, in the order of the files."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for k in range(self.layers):
            for name, shape in self.shapes().items():
                yield f"model.layers.{k}.{name}.weight", shape
            yield f"model.layers.{k}.input_layernorm.weight", (self.hidden,)
            yield f"model.layers.{k}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    def factors(self, targets: str) -> Iterator[Tensor]:
        """Of an adapter on the layers of these names; "early": only on those of the first two blocks."""
        chosen = self.attention if targets == "attention" else self.linear
        for k in range(2 if targets == "early" else self.layers):
            for name, (n_out, n_in) in self.shapes().items():
                if name.rpartition(".")[2] in chosen:
                    key = f"base_model.model.model.layers.{k}.{name}"
                    yield from ((f"{key}.lora_A.weight", (RANK, n_in)), (f"{key}.lora_B.weight", (n_out, RANK)))

    def config(self) -> dict[str, Any]:
        """config.json"""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        }

    def lora(self, targets: str) -> dict[str, Any]:
        """What adapter_config.json says of the layers."""
        chosen = self.attention if targets == "attention" else self.linear
        early = {"layers_to_transform": [0, 1]} if targets == "early" else {}
        return {"target_modules": list(chosen), **early}


@dataclass(frozen=True)
class Olmoe:
    """Dimensions of an OLMoE: 64 experts in every block, on disk one by one; the adapter is on the experts too."""

    hidden: int = 2048
    intermediate: int = 1024
    layers: int = 3
    experts: int = 64
    vocab: int = 50304

    dtype, shard_bytes = "BF16", SHARD_BYTES
    attention = Llama.attention

    def tensors(self) -> Iterator[Tensor]:
        """Of the checkpoint, in the order of the files."""
        hidden, wide = self.hidden, self.intermediate
        yield "model.embed_tokens.weight", (self.vocab, hidden)
        for k in range(self.layers):
            layer = f"model.layers.{k}"
            yield from ((f"{layer}.self_attn.{name}.weight", (hidden, hidden)) for name in self.attention)
            yield from ((f"{layer}.self_attn.{name}_norm.weight", (hidden,)) for name in "qk")
            yield f"{layer}.mlp.gate.weight", (self.experts, hidden)
            for e in range(self.experts):
                expert = f"{layer}.mlp.experts.{e}"
                yield from ((f"{expert}.{name}_proj.weight", (wide, hidden)) for name in ("gate", "up"))
                yield f"{expert}.down_proj.weight", (hidden, wide)
            yield f"{layer}.input_layernorm.weight", (hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocab, hidden)

    def factors(self, targets: str) -> Iterator[Tensor]:
        """Of an adapter as PEFT saves it; that of one fused parameter is nested in that of the other."""
        hidden, wide, n = self.hidden, self.intermediate, self.experts * RANK
        for k in range(self.layers):
            layer = f"base_model.model.model.layers.{k}"
            for name in self.attention:
                key = f"{layer}.self_attn.{name}"
                yield from ((f"{key}.lora_A.weight", (RANK, hidden)), (f"{key}.lora_B.weight", (hidden, RANK)))
            if targets == "all":
                key = f"{layer}.mlp.experts"
                yield from ((f"{key}.base_layer.lora_A.weight", (n, hidden)), (f"{key}.lora_A.weight", (n, wide)))
                yield from ((f"{key}.base_layer.lora_B.weight", (2 * wide, n)), (f"{key}.lora_B.weight", (hidden, n)))

    def config(self) -> dict[str, Any]:
        """config.json"""
        return {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": self.experts,
            "num_experts_per_tok": 8,
            "vocab_size": self.vocab,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }

    def lora(self, targets: str) -> dict[str, Any]:
        """What adapter_config.json says of the layers."""
        experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if targets == "all" else None
        return {"target_modules": list(self.attention), "target_parameters": experts}


@dataclass(frozen=True)
class Gpt2:
    """Dimensions of a GPT-2: transposed layers, float32, one file."""

    hidden: int = 1024
    layers: int = 24
    vocab: int = 50257
    positions: int = 1024

    dtype, shard_bytes = "F32", 1 << 40

    def shapes(self, targets: str) -> dict[str, tuple[int, int]]:
        """(in, out) of the layers of a block."""
        attention = {"attn.c_attn": (self.hidden, 3 * self.hidden), "attn.c_proj": (self.hidden, self.hidden)}
        wide = {"mlp.c_fc": (self.hidden, 4 * self.hidden), "mlp.c_proj": (4 * self.hidden, self.hidden)}
        return attention if targets == "attention" else attention | wide

    def tensors(self) -> Iterator[Tensor]:
        """Of the checkpoint, in the order of the file."""
        yield "wte.weight", (self.vocab, self.hidden)
        yield "wpe.weight", (self.positions, self.hidden)
        for k in range(self.layers):
            for name, shape in self.shapes("all").items():
                yield from ((f"h.{k}.{name}.weight", shape), (f"h.{k}.{name}.bias", shape[1:]))
            for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
                yield f"h.{k}.{name}", (self.hidden,)
        yield from (("ln_f.weight", (self.hidden,)), ("ln_f.bias", (self.hidden,)))

    def factors(self, targets: str) -> Iterator[Tensor]:
        """Of an adapter as PEFT saves it."""
        for k in range(self.layers):
            for name, (n_in, n_out) in self.shapes(targets).items():
                key = f"base_model.model.transformer.h.{k}.{name}"
                yield from ((f"{key}.lora_A.weight", (RANK, n_in)), (f"{key}.lora_B.weight", (n_out, RANK)))

    def config(self) -> dict[str, Any]:
        """config.json"""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": self.hidden,
            "n_layer": self.layers,
            "n_head": 16,
            "n_positions": self.positions,
            "vocab_size": self.vocab,
            "torch_dtype": "float32",
        }

    def lora(self, targets: str) -> dict[str, Any]:
        """What adapter_config.json says of the layers."""
        return {"target_modules": list(self.shapes(targets)), "fan_in_fan_out": True}


MODELS: dict[str, Llama | Olmoe | Gpt2] = {
    "tiny": Llama(hidden=256, intermediate=512, layers=2, heads=8, kv_heads=4, vocab=1024),
    "1b": Llama(hidden=2048, intermediate=8192, layers=16, heads=32),
    "3b": Llama(hidden=3072, intermediate=8192, layers=28, heads=24),
    "8b": Llama(hidden=4096, intermediate=14336, layers=32, heads=32, tied=False),
    "moe": Olmoe(),
    "gpt2": Gpt2(),
}
TARGETS = ("all", "attention", "early")


def write_file(
    path: Path, dtype: str, tensors: Sequence[Tensor], draw: Callable[[tuple[int, ...]], np.ndarray]
) -> None:
    """Write a safetensors file; `draw(shape)` gives each tensor's values in float32."""
    item, at = {"BF16": 2, "F32": 4}[dtype], 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, shape in tensors:
        end = at + int(np.prod(shape)) * item
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors:
            values = draw(shape)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).data if dtype == "BF16" else values.data)


def make_base(folder: Path, model: Llama | Olmoe | Gpt2) -> None:
    """The checkpoint with its config, and with its index if there are several files."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    item = {"BF16": 2, "F32": 4}[model.dtype]
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for name, shape in model.tensors():
        n_bytes = item * int(np.prod(shape))
        if shards[-1] and filled + n_bytes > model.shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += n_bytes
    weight_map = {}
    for k, tensors in enumerate(shards):
        file = f"model-{k + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        write_file(
            folder / file,
            model.dtype,
            tensors,
            lambda shape: random.standard_normal(shape, np.float32) * np.float32(0.02),
        )
        weight_map |= dict.fromkeys((name for name, _ in tensors), file)
    total = sum(item * int(np.prod(shape)) for _, shape in model.tensors())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))


def make_adapter(folder: Path, model: Llama | Olmoe | Gpt2, targets: str) -> None:
    """The adapter as PEFT saves it: float32, with B not zero."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    write_file(
        folder / "adapter_model.safetensors",
        "F32",
        sorted(model.factors(targets)),
        lambda shape: random.standard_normal(shape, np.float32) * np.float32(0.02),
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "base_model_name_or_path": None,
        "bias": "none",
        "peft_version": "0.21.2",
        **model.lora(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def make(folder: Path, name: str, targets: str) -> tuple[Path, Path]:
    """Base and adapter below `folder`, made if they are not there."""
    base, adapter = folder / f"base-{name}", folder / f"adapter-{name}-{targets}"
    if not base.exists():
        make_base(base, MODELS[name])
    if not adapter.exists():
        make_adapter(adapter, MODELS[name], targets)
    return base, adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="1b")
    parser.add_argument("--targets", choices=TARGETS, default="all")
    args = parser.parse_args()
    print(*make(args.folder, args.model, args.targets), sep="\n")


if __name__ == "__main__":
    main()
