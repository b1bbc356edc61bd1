"""Time what a command costs before it does its work, next to an interpreter that does nothing.

    python benchmarks/bench_startup.py

`check` gets an 8 B model as headers without weights (sparse files), and an adapter on all of its linear layers.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
LAYERS, HIDDEN, INNER, KV, VOCAB, RANK = 32, 4096, 14336, 1024, 128256, 32
BASE_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": VOCAB,
    "tie_word_embeddings": False,
}
LINEAR = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "r": RANK,
    "lora_alpha": 64,
    "target_modules": sorted(name.rpartition(".")[2] for name in LINEAR),
    "modules_to_save": ["embed_tokens", "lm_head"],
}


def write_headers(path: Path, dtype: str, size: int, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file whose tensors are holes."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, n_values = end, 1
        for n in shape:
            n_values *= n
        end = begin + n_values * size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def make(folder: Path) -> None:
    """Base and adapter, and folders with nothing but their configs."""
    layers = {f"model.layers.{k}.{m}": s for k in range(LAYERS) for m, s in LINEAR.items()}
    ends = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    norms = {f"model.layers.{k}.{n}.weight": (HIDDEN,) for k in range(LAYERS)
             for n in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
    base = {**{f"{m}.weight": s for m, s in layers.items()}, **norms, **ends, "model.norm.weight": (HIDDEN,)}
    factors: dict[str, tuple[int, ...]] = {f"base_model.model.{name}": shape for name, shape in ends.items()}
    for module, (n_out, n_in) in layers.items():
        factors[f"base_model.model.{module}.lora_A.weight"] = (RANK, n_in)
        factors[f"base_model.model.{module}.lora_B.weight"] = (n_out, RANK)
    for name, file, config in (
        ("base", "config.json", BASE_CONFIG),
        ("adapter", "adapter_config.json", ADAPTER_CONFIG),
    ):
        for kind in ("", "-config"):
            (folder / f"{name}{kind}").mkdir()
            (folder / f"{name}{kind}" / file).write_text(json.dumps(config))
    write_headers(folder / "base" / "model.safetensors", "BF16", 2, base)
    write_headers(folder / "adapter" / "adapter_model.safetensors", "F32", 4, factors)


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a command."""
    begin = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder)
        suture = [sys.executable, "-m", "suture"]
        pair, configs = ([str(folder / f"{n}{kind}") for n in ("base", "adapter")] for kind in ("", "-config"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "suture --help": [*suture, "--help"],
            "suture check, 8 B headers, Arch cached": [*suture, "check", *pair],
            "suture inspect, 8 B configs, Arch cached": [*suture, "inspect", *configs],
        }
        environment = {**os.environ, "SUTURE_CACHE": str(folder / "cache")}
        cold = seconds([*suture, "inspect", *configs], environment)
        print(f"{cold:6.2f} s  suture inspect, 8 B configs, nothing cached (once)")
        seconds(commands["suture check, 8 B headers, Arch cached"], environment)
        for name, command in commands.items():
            print(f"{statistics.median(seconds(command, environment) for _ in range(ROUNDS)):6.2f} s  {name}")


if __name__ == "__main__":
    main()
