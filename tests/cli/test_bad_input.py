"""What goes wrong in the hands of users: a clear message, an exit code, no traceback, and nothing written or lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

WEIGHTS, INDEX, TUNED = "model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Case:
    """One way to break a pair: (base, adapter) are copies that may be changed; the words must be in the message."""

    name: str
    spoil: Callable[[Path, Path], None]
    exit_code: int
    words: tuple[str, ...]


def rewrite(folder: Path, change: Callable[[dict], dict], name: str = TUNED) -> None:
    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remap(base: Path, target: str) -> None:
    index = json.loads((base / INDEX).read_text())
    edit(base / INDEX, weight_map=dict.fromkeys(index["weight_map"], target))


def overlap(path: Path) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    names = [n for n in header if n != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def pickled(adapter: Path) -> None:
    (adapter / TUNED).unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def zeroed(adapter: Path) -> None:
    rewrite(adapter, lambda t: {k: np.zeros_like(v) if "lora_B" in k else v for k, v in t.items()})


def with_nan(adapter: Path) -> None:
    rewrite(
        adapter,
        lambda t: {k: np.full_like(v, np.nan) if "layers.1.self_attn.v_proj.lora_B" in k else v for k, v in t.items()},
    )


def other_base(base: Path, adapter: Path) -> None:
    """A frozen copy of an embedding in the adapter whose rows are not this base's: same shapes, another model."""
    rewrite(
        adapter, lambda t: {**t, "base_model.model.model.embed_tokens.base_layer.weight": np.ones((96, 32), np.float32)}
    )
    edit(adapter / "adapter_config.json", target_modules=["q_proj", "v_proj"])


def wider(adapter: Path) -> None:
    rewrite(adapter, lambda t: {k: np.ones((4, 48), np.float32) if "lora_A" in k else v for k, v in t.items()})


CASES = [
    Case(
        "no index, a shard missing",
        lambda b, a: ((b / INDEX).unlink(), (b / WEIGHTS).unlink()),
        11,
        ("00001-of-00002",),
    ),
    Case("shard cut short", lambda b, a: truncate(b / WEIGHTS), 11, (WEIGHTS, "bytes")),
    Case(
        "header of 2^60 bytes",
        lambda b, a: (b / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        11,
        (WEIGHTS,),
    ),
    Case("overlapping offsets", lambda b, a: overlap(b / WEIGHTS), 11, (WEIGHTS,)),
    Case("a path out of the folder", lambda b, a: remap(b, "../secret.safetensors"), 11, ("../secret.safetensors",)),
    Case("index that is no JSON", lambda b, a: (b / INDEX).write_text("{"), 11, (INDEX,)),
    Case("another base, other shapes", lambda b, a: wider(a), 1, ("M303", "q_proj")),
    Case("another base, same shapes", other_base, 1, ("A205",)),
    Case("empty adapter", lambda b, a: rewrite(a, lambda t: {}), 1, ("M306",)),
    Case("NaN in the adapter", lambda b, a: with_nan(a), 1, ("N501", "v_proj")),
    Case("all B zero", lambda b, a: zeroed(a), 1, ("N502", "does nothing")),
    Case(
        "keys with default.default",
        lambda b, a: rewrite(a, lambda t: {k.replace(".weight", ".default.default.weight"): v for k, v in t.items()}),
        1,
        ("M301", "drop the adapter's name"),
    ),
    Case(
        "keys without the model. level",
        lambda b, a: rewrite(a, lambda t: {k.replace("model.model.model.", "model.model."): v for k, v in t.items()}),
        1,
        ("M301", "insert model."),
    ),
    Case(
        "a module in both lists", lambda b, a: edit(a / "adapter_config.json", modules_to_save=["q_proj"]), 1, ("M309",)
    ),
    Case("pickle adapter", lambda b, a: pickled(a), 12, ("adapter_model.bin", "--allow-pickle")),
    Case("no adapter at all", lambda b, a: shutil.rmtree(a), 10, ("adapter",)),
    Case(
        "adapter config that is no JSON",
        lambda b, a: (a / "adapter_config.json").write_text("]"),
        11,
        ("adapter_config",),
    ),
    Case("unknown model type", lambda b, a: edit(b / "config.json", hidden_size="many"), 11, ("config.json",)),
]


@pytest.fixture
def pair(base: Path, adapters: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a sharded base and of a sound adapter."""
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    whole = load_file(copy / "model.safetensors") if (copy / "model.safetensors").exists() else {}
    if whole:
        (copy / "model.safetensors").unlink()
        names, half = sorted(whole), len(whole) // 2
        shards = {WEIGHTS: names[:half], "model-00002-of-00002.safetensors": names[half:]}
        for file, chosen in shards.items():
            save_file({n: whole[n] for n in chosen}, copy / file, metadata={"format": "pt"})
        weight_map = {n: f for f, chosen in shards.items() for n in chosen}
        (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    shutil.copytree(adapters / "qv", tmp_path / "adapter")
    return copy, tmp_path / "adapter"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_bad_input_is_told_and_nothing_is_written(case, pair, run, tmp_path):
    base, adapter = pair
    case.spoil(base, adapter)
    before = sorted(p.name for p in tmp_path.iterdir())
    result = run("merge", base, adapter, "-o", tmp_path / "out")
    told = " ".join(result.stderr.split())
    assert result.exit_code == case.exit_code, result.stderr
    assert all(word in told for word in case.words), result.stderr
    assert "Traceback" not in result.stderr
    assert "bug in suture" not in told
    assert result.stdout == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_sound_pair_merges(pair, run, tmp_path):
    assert run("merge", *pair, "-o", tmp_path / "out").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written(pair, run, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    result = run("merge", *pair, "-o", closed / "out")
    assert (result.exit_code, "Traceback" in result.stderr) == (20, False)


def test_an_output_below_a_file(pair, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = run("merge", *pair, "-o", tmp_path / "file" / "out")
    assert (result.exit_code, "Traceback" in result.stderr) == (20, False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk(pair, run, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    result = run("merge", *pair, "-o", tmp_path / "out")
    assert (result.exit_code, "disk is full" in result.stderr) == (23, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base"]
