"""Small checkpoints, adapters and plans, made by hand: what the tests of `execute` and the crash tests run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from suture.execute import Inputs
from suture.formats.dtypes import DTYPES, from_float
from suture.values import (
    Adapter,
    Checkpoint,
    Operation,
    Options,
    OutputFile,
    Plan,
    Shard,
    SideFile,
    Source,
    TensorInfo,
    Term,
    View,
)

ADAPTER_FILE = "adapter_model.safetensors"


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """A safetensors header for tensors of (dtype, shape, bytes), in that order."""
    entries, at = {}, 0
    for name, (dtype, shape, n_bytes) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values as a file of that dtype holds them."""
    if DTYPES[dtype].computable:
        return from_float(np.asarray(values, np.float64 if dtype == "F64" else np.float32), dtype)
    return np.asarray(values).astype(DTYPES[dtype].storage)


def write_tensors(folder: Path, file: str, tensors: Mapping[str, tuple[str, np.ndarray]]) -> dict[str, TensorInfo]:
    """Write a safetensors file of (dtype, values), unless it is there already."""
    raw = {name: stored(values, dtype) for name, (dtype, values) in tensors.items()}
    header = header_of({name: (tensors[name][0], a.shape, a.nbytes) for name, a in raw.items()})
    _write_once(folder / file, header + b"".join(a.tobytes() for a in raw.values()))
    infos, at = {}, len(header)
    for name, a in raw.items():
        infos[name] = TensorInfo(name, tensors[name][0], a.shape, file, at, at + a.nbytes)
        at += a.nbytes
    return infos


def _write_once(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


def operation(
    info: TensorInfo,
    terms: Iterable[Term] = (),
    *,
    dtype: str | None = None,
    cols: int | None = None,
    block_rows: int = 64,
    **changes: object,
) -> Operation:
    """An operation on a base tensor, without its place in the output."""
    cols = info.shape[-1] if cols is None else cols
    rows = info.n_values // cols
    op = Operation(
        tensor=info.name,
        why="merge",
        source=Source("base", info),
        terms=tuple(terms),
        dtype=dtype or info.dtype,
        shape=info.shape,
        cols=cols,
        block_rows=min(block_rows, max(rows, 1)),
        file=info.file,
        begin=0,
        end=0,
    )
    return replace(op, **changes)


def place(
    operations: Iterable[Operation], texts: Mapping[str, str] | None = None, side_files: Iterable[SideFile] = ()
) -> Plan:
    """The plan that writes these operations, in this order."""
    by_file: dict[str, list[Operation]] = {}
    for op in operations:
        by_file.setdefault(op.file, []).append(op)
    placed, files = [], []
    for name in sorted(by_file):
        sizes = {op.tensor: math.prod(op.shape) * DTYPES[op.dtype].bits // 8 for op in by_file[name]}
        header = header_of({op.tensor: (op.dtype, op.shape, sizes[op.tensor]) for op in by_file[name]})
        at = len(header)
        for op in by_file[name]:
            placed.append(replace(op, begin=at, end=at + sizes[op.tensor]))
            at += sizes[op.tensor]
        files.append(OutputFile(name, at, header.decode("latin-1")))
    return Plan(
        schema=1,
        base_fingerprint="base",
        adapter_sha256="adapter",
        options=Options(),
        operations=tuple(placed),
        files=tuple(files),
        texts=dict(texts or {}),
        side_files=tuple(side_files),
    )


@dataclass
class Pair:
    """A base and an adapter on disk."""

    folder: Path
    base: dict[str, TensorInfo] = field(default_factory=dict)
    adapter: dict[str, TensorInfo] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    side_files: list[str] = field(default_factory=list)

    def add_shard(self, name: str, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
        """Write one weight file of the base."""
        self.base |= write_tensors(self.folder / "base", name, tensors)
        self.shards.append(Shard(name, (self.folder / "base" / name).stat().st_size, {}))

    def add_adapter(self, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
        """Write the adapter's file."""
        self.adapter = write_tensors(self.folder / "adapter", ADAPTER_FILE, tensors)

    def add_side_file(self, name: str, data: bytes) -> None:
        """Write another file of the base."""
        _write_once(self.folder / "base" / name, data)
        self.side_files.append(name)

    @property
    def inputs(self) -> Inputs:
        """Both sides, as the engine takes them."""
        base = Checkpoint(self.folder / "base", {}, self.base, tuple(self.shards), None, {}, tuple(self.side_files))
        adapter = Adapter(self.folder / "adapter", "default", {}, self.adapter, ADAPTER_FILE, ())
        return Inputs(base, adapter)

    def lora(self, module: str, rows: int, *, scale: float = 0.5, start: int = 0) -> Term:
        """The term of the adapter's factors module.A and module.B."""
        factors = {f: View.whole(self.adapter[f"{module}.{f}"]) for f in "AB"}
        return Term("lora", module, factors, scale, start, start + rows, self.adapter[f"{module}.A"].shape[0])


def make_pair(folder: Path, *, n_shards: int = 3, rows: int = 200, cols: int = 96, rank: int = 4) -> Pair:
    """A base of several shards: in each a copied norm, a matrix with LoRA, copied integers, and a small vector."""
    random = np.random.default_rng(7)
    pair = Pair(folder)
    factors: dict[str, tuple[str, np.ndarray]] = {}
    for k in range(n_shards):
        pair.add_shard(
            f"model-{k + 1:05}-of-{n_shards:05}.safetensors",
            {
                f"norm{k}": ("BF16", random.normal(size=cols)),
                f"w{k}": ("BF16", random.normal(size=(rows, cols))),
                f"ids{k}": ("I64", np.arange(50 * (k + 1))),
                f"bias{k}": ("F16", random.normal(size=rows)),
            },
        )
        factors[f"w{k}.A"] = ("F32", random.normal(size=(rank, cols)))
        factors[f"w{k}.B"] = ("F32", random.normal(size=(rows, rank)))
    pair.add_adapter(factors)
    pair.add_side_file("tokenizer.json", b'{"tokens": []}')
    pair.add_side_file("code/model.py", b"print(1)\n")
    return pair


def make_plan(pair: Pair) -> Plan:
    """Merge the LoRA of `make_pair` and copy the rest."""
    operations = []
    for name, info in pair.base.items():
        terms = [pair.lora(name, info.shape[0])] if f"{name}.A" in pair.adapter else []
        operations.append(operation(info, terms, why="merge" if terms else "copy"))
    sides = [SideFile(name, "base") for name in pair.side_files]
    return place(operations, {"config.json": '{"tie_word_embeddings": false}'}, sides)


def read_output(folder: Path, plan: Plan, tensor: str) -> np.ndarray:
    """A tensor of the output in its storage type."""
    op = next(op for op in plan.operations if op.tensor == tensor)
    raw = (folder / op.file).read_bytes()[op.begin : op.end]
    return np.frombuffer(raw, DTYPES[op.dtype].storage).reshape(op.shape)


def read_input(folder: Path, info: TensorInfo) -> np.ndarray:
    """A tensor of an input folder in its storage type."""
    raw = (folder / info.file).read_bytes()[info.begin : info.end]
    return np.frombuffer(raw, DTYPES[info.dtype].storage).reshape(info.shape)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
