"""Small model and adapter folders, well-formed: the tests break them."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

INDEX = "model.safetensors.index.json"
TENSORS = {
    "model.embed_tokens.weight": np.arange(32, dtype=np.float32).reshape(8, 4),
    "model.layers.0.mlp.weight": np.arange(16, dtype=np.float16).reshape(4, 4),
    "model.norm.weight": np.ones(4, np.float32),
}
SHARDS = {
    "model-00001-of-00002.safetensors": ["model.embed_tokens.weight"],
    "model-00002-of-00002.safetensors": ["model.layers.0.mlp.weight", "model.norm.weight"],
}
PEFT_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["mlp"]}
FACTORS = {
    "base_model.model.model.layers.0.mlp.lora_A.weight": np.ones((2, 4), np.float32),
    "base_model.model.model.layers.0.mlp.lora_B.weight": np.ones((4, 2), np.float32),
}


def write_json(path: Path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_text(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")


def single_model(folder: Path, tensors=None) -> Path:
    """config.json and one model.safetensors."""
    write_json(folder / "config.json", {"model_type": "llama", "hidden_size": 4})
    save_file(TENSORS if tensors is None else tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def sharded_model(folder: Path, shards=None, index=True) -> Path:
    """config.json, shards, and their index."""
    shards = SHARDS if shards is None else shards
    write_json(folder / "config.json", {"model_type": "llama", "hidden_size": 4})
    for file, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    if index:
        write_index(folder, {name: file for file, names in shards.items() for name in names})
    return folder


def write_index(folder: Path, weight_map, metadata=None) -> None:
    write_json(folder / INDEX, {"metadata": metadata or {"total_size": 176}, "weight_map": weight_map})


def adapter(folder: Path, config=None, weights=True) -> Path:
    """adapter_config.json and adapter_model.safetensors."""
    write_json(folder / "adapter_config.json", PEFT_CONFIG if config is None else config)
    if weights:
        save_file(FACTORS, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def n_descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/dev/fd").iterdir()))
