"""Time and memory of commands that read headers alone, next to an interpreter that does nothing.

    python benchmarks/bench_startup.py

`check` gets models of 8 B and 70 B as headers without weights (sparse files, in shards), and adapters on all of their
linear layers. The first command ever finds an empty cache. Once it looks its model up in the table of known classes,
and once it has to ask Transformers, for a config with a key that the table does not know; what it is told is kept.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

ROUNDS = 5
VOCAB, KV, RANK = 128256, 1024, 32


@dataclass(frozen=True)
class Size:
    """A Llama, by the numbers that its shapes follow from."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    shards: int

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Linear layers of a block, with (out, in)."""
        wide, thin = (self.hidden, self.hidden), (KV, self.hidden)
        attention = {"q_proj": wide, "k_proj": thin, "v_proj": thin, "o_proj": wide}
        mlp = dict.fromkeys(("gate_proj", "up_proj"), (self.inner, self.hidden)) | {
            "down_proj": (self.hidden, self.inner)
        }
        return {f"self_attn.{n}": s for n, s in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}

    @property
    def base(self) -> dict[str, tuple[int, ...]]:
        """All tensors of the model."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, self.hidden)}
        for k in range(self.layers):
            shapes |= {f"model.layers.{k}.{m}.weight": s for m, s in self.linear.items()}
            shapes |= {f"model.layers.{k}.{n}_layernorm.weight": (self.hidden,) for n in ("input", "post_attention")}
        return {**shapes, "model.norm.weight": (self.hidden,), "lm_head.weight": (VOCAB, self.hidden)}

    @property
    def adapter(self) -> dict[str, tuple[int, ...]]:
        """All tensors of an adapter on the linear layers."""
        shapes = {}
        for k in range(self.layers):
            for m, (n_out, n_in) in self.linear.items():
                shapes[f"base_model.model.model.layers.{k}.{m}.lora_A.weight"] = (RANK, n_in)
                shapes[f"base_model.model.model.layers.{k}.{m}.lora_B.weight"] = (n_out, RANK)
        return shapes

    @property
    def configs(self) -> dict[str, dict[str, object]]:
        """config.json and adapter_config.json."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": self.inner, "num_hidden_layers": self.layers}
        heads = {"num_attention_heads": self.heads, "num_key_value_heads": 8, "vocab_size": VOCAB}
        model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
        targets = sorted(name.rpartition(".")[2] for name in self.linear)
        lora = {"peft_type": "LORA", "peft_version": "0.21.2", "r": RANK, "lora_alpha": 64, "target_modules": targets}
        return {"config.json": {**model, **sizes, **heads}, "adapter_config.json": lora}


SIZES = (Size("8 B", 32, 4096, 14336, 32, 4), Size("70 B", 80, 8192, 28672, 64, 30))


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


def make(size: Size, folder: Path) -> list[str]:
    """Base and adapter; their folders."""
    base, adapter = folder / f"base-{size.layers}", folder / f"adapter-{size.layers}"
    for place, config in zip((base, adapter), size.configs.items(), strict=True):
        place.mkdir()
        (place / config[0]).write_text(json.dumps(config[1]))
    names, weight_map = iter(size.base.items()), {}
    per_shard = -(-len(size.base) // size.shards)
    for k in range(size.shards):
        file = f"model-{k + 1:05}-of-{size.shards:05}.safetensors"
        shapes = dict(islice(names, per_shard))
        write_headers(base / file, "BF16", 2, shapes)
        weight_map |= dict.fromkeys(shapes, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_headers(adapter / "adapter_model.safetensors", "F32", 4, size.adapter)
    return [str(base), str(adapter)]


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MiB of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def told(name: str, command: list[str], environment: dict[str, str], *, fresh: bool = False) -> None:
    """Print the medians of a command; each run of a `fresh` one has an empty cache."""
    runs = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            runs.append(measured(command, {**environment, "SUTURE_CACHE": cache} if fresh else environment))
    seconds, mib = zip(*runs, strict=True)
    print(f"{statistics.median(seconds):6.2f} s {statistics.median(mib):6.0f} MiB  {name}")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        suture = [sys.executable, "-m", "suture"]
        environment = {**os.environ, "SUTURE_CACHE": str(folder / "cache")}
        told("python -c pass", [sys.executable, "-c", "pass"], environment)
        told("suture --help", [*suture, "--help"], environment)
        for size in SIZES:
            check = [*suture, "check", *make(size, folder)]
            told(f"suture check, {size.name}, first command ever", check, environment, fresh=True)
            print(f"{'':21}imports of torch and Transformers: {', '.join(heavy(check, environment)) or 'none'}")
            config = Path(check[-2]) / "config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "unknown_to_the_table": 1}))
            told(f"suture check, {size.name}, first command ever, not in the table", check, environment, fresh=True)
            subprocess.run(check, env=environment, stdout=subprocess.DEVNULL, check=True)
            told(f"suture check, {size.name}, not in the table, Arch cached", check, environment)
            print(f"{'':21}imports of torch and Transformers: {', '.join(heavy(check, environment)) or 'none'}")


def heavy(command: list[str], environment: dict[str, str]) -> list[str]:
    """The large libraries that a command imports."""
    whole = [sys.executable, "-X", "importtime", *command[1:]]
    imported = subprocess.run(whole, env=environment, capture_output=True, text=True, check=True).stderr
    return [name for name in ("torch", "transformers") if re.search(rf"\| +{name}$", imported, re.MULTILINE)]


if __name__ == "__main__":
    main()
