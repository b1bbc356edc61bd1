"""Write a Llama-like checkpoint of random bf16 weights and a LoRA adapter for it, offline: what the benchmarks merge.

    python benchmarks/make_checkpoint.py FOLDER --size 1b --targets all

makes FOLDER/base-1b and FOLDER/adapter-1b-all. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARD_BYTES = 600_000_000
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class Size:
    """Dimensions of a Llama 3.2."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int = 128256

    @property
    def kv_dim(self) -> int:
        return self.hidden // self.heads * self.kv_heads

    def linear(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear layers of a block."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.kv_dim, self.hidden),
            "self_attn.v_proj": (self.kv_dim, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the checkpoint, in the order of the files."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for k in range(self.layers):
            for name, shape in self.linear().items():
                yield f"model.layers.{k}.{name}.weight", shape
            yield f"model.layers.{k}.input_layernorm.weight", (self.hidden,)
            yield f"model.layers.{k}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)


SIZES = {
    "tiny": Size(hidden=256, intermediate=512, layers=2, heads=8, kv_heads=4, vocab=1024),
    "1b": Size(hidden=2048, intermediate=8192, layers=16, heads=32, kv_heads=8),
    "3b": Size(hidden=3072, intermediate=8192, layers=28, heads=24, kv_heads=8),
}


def config_of(size: Size) -> dict[str, object]:
    """config.json of the checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.hidden // size.heads,
        "vocab_size": size.vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def write_file(path: Path, dtype: str, tensors: list[tuple[str, tuple[int, ...]]], draw: object) -> None:
    """Write a safetensors file; `draw(name, shape)` gives each tensor's stored values."""
    item, at = {"BF16": 2, "F32": 4}[dtype], 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, shape in tensors:
        end = at + int(np.prod(shape)) * item
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            file.write(draw(name, shape).tobytes())


def make_base(folder: Path, size: Size) -> None:
    """The sharded checkpoint with its index and config."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        return (values.view(np.uint32) >> 16).astype(np.uint16)

    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in size.tensors():
        n_bytes = 2 * int(np.prod(shape))
        if shards[-1] and filled + n_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += n_bytes
    weight_map = {}
    for k, tensors in enumerate(shards):
        file = f"model-{k + 1:05}-of-{len(shards):05}.safetensors"
        write_file(folder / file, "BF16", tensors, draw)
        weight_map |= {name: file for name, _ in tensors}
    total = sum(2 * int(np.prod(shape)) for _, shape in size.tensors())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config_of(size), indent=2))


def make_adapter(folder: Path, size: Size, targets: tuple[str, ...], rank: int) -> None:
    """The adapter as PEFT saves it: float32, with B not zero."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for k in range(size.layers):
        for name, (n_out, n_in) in size.linear().items():
            if name.rpartition(".")[2] in targets:
                key = f"base_model.model.model.layers.{k}.{name}"
                tensors += [(f"{key}.lora_A.weight", (rank, n_in)), (f"{key}.lora_B.weight", (n_out, rank))]
    write_file(
        folder / "adapter_model.safetensors",
        "F32",
        sorted(tensors),
        lambda name, shape: random.standard_normal(shape, np.float32) * np.float32(0.02),
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "base_model_name_or_path": None,
        "bias": "none",
        "peft_version": "0.21.2",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def make(folder: Path, size: str, targets: str, rank: int = 16) -> tuple[Path, Path]:
    """Base and adapter below `folder`, made if they are not there."""
    base, adapter = folder / f"base-{size}", folder / f"adapter-{size}-{targets}"
    if not base.exists():
        make_base(base, SIZES[size])
    if not adapter.exists():
        make_adapter(adapter, SIZES[size], TARGETS[targets], rank)
    return base, adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--targets", choices=TARGETS, default="all")
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    base, adapter = make(args.folder, args.size, args.targets, args.rank)
    print(base)
    print(adapter)


if __name__ == "__main__":
    main()
