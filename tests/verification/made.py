"""A small sharded base, an adapter and a plan made by hand, and a merge in plain numpy that can be made wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from suture.formats.dtypes import DTYPES, from_float, to_float
from suture.methods import METHODS
from suture.planning.layout import lay_out
from suture.values import (
    Adapter,
    Checkpoint,
    Operation,
    Options,
    Plan,
    Shard,
    SideFile,
    Source,
    TensorInfo,
    Term,
    View,
)

RANK, SCALE, HIDDEN, VOCAB = 9, 1.5, 32, 48
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QKV, DOWN, NORM, TABLE = "model.qkv.weight", "model.down.weight", "model.norm.weight", "model.table"
SHARDS = {EMBED: 1, QKV: 1, DOWN: 2, NORM: 2, TABLE: 2, HEAD: 2}
INDEX = "model.safetensors.index.json"

Raw = dict[str, tuple[str, np.ndarray]]
Wrong = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Made:
    """The inputs, the plan, and the folder of the merge."""

    checkpoint: Checkpoint
    adapter: Adapter
    plan: Plan
    folder: Path

    @property
    def given(self) -> tuple[Plan, Checkpoint, Adapter, Path]:
        """The arguments of the verifying functions."""
        return self.plan, self.checkpoint, self.adapter, self.folder


def write_tensors(path: Path, tensors: Raw) -> dict[str, TensorInfo]:
    """Write a safetensors file."""
    entries, infos, at = {}, {}, 0
    for name, (dtype, raw) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(raw.shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        len(header).to_bytes(8, "little") + header + b"".join(raw.tobytes() for _, raw in tensors.values())
    )
    for name, (dtype, raw) in tensors.items():
        first, last = entries[name]["data_offsets"]
        begin = 8 + len(header)
        infos[name] = TensorInfo(name, dtype, raw.shape, path.name, begin + first, begin + last)
    return infos


def shard(number: int) -> str:
    """The name of one of the two weight files."""
    return f"model-{number:05}-of-00002.safetensors"


def write_json(path: Path, data: object) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def floats(shape: tuple[int, ...], seed: int, size: float = 1.0) -> np.ndarray:
    """Seeded normal values in float32."""
    return (size * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def base(folder: Path, dtype: str = "BF16", *, head: bool = False) -> Checkpoint:
    """A base of five tensors (six with its own head) in two shards."""
    shapes = {EMBED: (VOCAB, HIDDEN), QKV: (3 * HIDDEN, HIDDEN), DOWN: (HIDDEN, 2 * HIDDEN), NORM: (HIDDEN,)}
    shapes |= {HEAD: (VOCAB, HIDDEN)} if head else {}
    tensors: Raw = {n: (dtype, from_float(floats(s, k), dtype)) for k, (n, s) in enumerate(shapes.items())}
    tensors[TABLE] = ("I64", np.arange(7))
    infos: dict[str, TensorInfo] = {}
    shards = []
    for number in (1, 2):
        path = folder / shard(number)
        infos |= write_tensors(path, {n: t for n, t in tensors.items() if SHARDS[n] == number})
        shards.append(Shard(path.name, path.stat().st_size, {}))
    config = {"tie_word_embeddings": not head, "vocab_size": VOCAB, "text_config": {"tie_word_embeddings": not head}}
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer_config.json", {})
    return Checkpoint(folder, config, infos, tuple(shards), INDEX, {}, ("config.json", "tokenizer_config.json"))


def adapter(folder: Path, targets: Iterable[str], size: float, dtype: str) -> Adapter:
    """LoRA factors of tensors (out, in), by the tensors' names; `qkv` has those of q and v only."""
    shapes = {
        EMBED: (VOCAB, HIDDEN),
        HEAD: (VOCAB, HIDDEN),
        DOWN: (HIDDEN, 2 * HIDDEN),
        "q": (HIDDEN,) * 2,
        "v": (HIDDEN,) * 2,
    }
    tensors: Raw = {}
    for k, name in enumerate(targets):
        rows, cols = shapes[name]
        tensors[f"{name}.A"] = (dtype, from_float(floats((RANK, cols), 100 + k, size), dtype))
        tensors[f"{name}.B"] = (dtype, from_float(floats((rows, RANK), 200 + k, size), dtype))
        tensors[f"{name}.m"] = (dtype, from_float(np.abs(floats((max(rows, cols),), 300 + k)), dtype))
    infos = write_tensors(folder / "adapter_model.safetensors", tensors)
    write_json(folder / "adapter_config.json", {"r": RANK})
    return Adapter(folder, "default", {"r": RANK}, infos, "adapter_model.safetensors", ())


def term(adapter: Adapter, name: str, start: int = 0, method: str = "lora", scale: float = SCALE) -> Term:
    """A term from the factors of `name`, on as many rows as B has."""
    a, b = adapter.tensors[f"{name}.A"], adapter.tensors[f"{name}.B"]
    factors = {"A": View.whole(a), "B": View.whole(b)}
    if method.startswith("dora"):
        n = b.shape[0] if method == "dora" else a.shape[1]
        factors["m"] = View.whole(adapter.tensors[f"{name}.m"]).cut(0, 0, n)
    return Term(method, name, factors, scale, start, start + b.shape[0], RANK)


def operation(info: TensorInfo, terms: Iterable[Term] = (), **changes: object) -> Operation:
    """An operation on a tensor of the base; `changes` set other fields."""
    cols = info.shape[-1] if len(info.shape) > 1 else 1
    source = Source("base", info)
    op = Operation(info.name, "merge", source, tuple(terms), info.dtype, info.shape, cols, 1, info.file, 0, 0)
    return replace(op, **changes)


def planned(
    checkpoint: Checkpoint,
    adapter: Adapter,
    operations: Iterable[Operation],
    config: object = None,
    untied: bool = False,
) -> Plan:
    """The plan of these operations, with the index that belongs to them."""
    laid = lay_out(operations, {s.name: {} for s in checkpoint.shards})
    n_bytes = sum(op.end - op.begin for op in laid.operations)
    index = {"metadata": {"total_size": n_bytes}, "weight_map": {op.tensor: op.file for op in laid.operations}}
    texts = {INDEX: json.dumps(index)} | ({"config.json": json.dumps(config)} if config else {})
    sides = tuple(SideFile(n, "base") for n in checkpoint.side_files if n not in texts)
    groups = ((EMBED, HEAD),) if untied else ()
    return Plan(1, "base", "adapter", Options(), laid.operations, laid.files, texts, sides, groups)


def make(
    tmp_path: Path, dtype: str = "BF16", *, head_of_its_own: bool = False, size: float = 0.1, factors: str = "F32"
) -> Made:
    """q, v and down are merged, the rest is copied. With `head_of_its_own` a tied pair is untied by two updates."""
    checkpoint = base(tmp_path / "base", dtype)
    targets = ["q", "v", DOWN, *([EMBED, HEAD] if head_of_its_own else [])]
    tuned = adapter(tmp_path / "adapter", targets, size, factors)
    terms = {QKV: [term(tuned, "q"), term(tuned, "v", 2 * HIDDEN)], DOWN: [term(tuned, DOWN)]}
    operations, config = [], None
    if head_of_its_own:
        terms[EMBED] = [term(tuned, EMBED)]
        config = {"tie_word_embeddings": False, "vocab_size": VOCAB, "text_config": {"tie_word_embeddings": False}}
        operations.append(operation(checkpoint.tensors[EMBED], [term(tuned, HEAD)], tensor=HEAD, why="untie"))
    operations += [operation(t, terms.get(n, ())) for n, t in checkpoint.tensors.items()]
    return write(
        Made(checkpoint, tuned, planned(checkpoint, tuned, operations, config, head_of_its_own), tmp_path / "out")
    )


def computed(made: Made, wrong: Mapping[str, Wrong] | None = None, twice: bool = False) -> Raw:
    """The tensors of the plan in numpy's float32: `wrong` replaces the formula of a tensor by one of (w, delta)."""
    found: Raw = {}
    for op in made.plan.operations:
        w = source(made, op)
        if op.is_copy and op.tensor not in (wrong or {}):
            found[op.tensor] = (op.dtype, w.reshape(op.shape))
            continue
        w = to_float(np.ascontiguousarray(w), op.source.tensor.dtype)
        new = apply(made, op, w)
        if op.tensor in (wrong or {}):
            with np.errstate(invalid="ignore"):
                new = wrong[op.tensor](w, new - w).astype(w.dtype)
        if twice:  # the update is rounded before it is added
            new = w + to_float(from_float(new - w, op.dtype), op.dtype)
        found[op.tensor] = (op.dtype, from_float(new, op.dtype).reshape(op.shape))
    return found


def source(made: Made, op: Operation) -> np.ndarray:
    """The stored rows that an operation starts from."""
    folder = made.checkpoint.folder if op.source.origin == "base" else made.adapter.folder
    raw = _raw(folder, op.source.tensor).reshape(-1, op.cols)
    return raw[op.source.row : op.source.row + op.rows]


def apply(made: Made, op: Operation, w: np.ndarray) -> np.ndarray:
    """All terms of an operation on all rows of W, in float32."""
    new = w.copy()
    for t in op.terms:
        f = {n: _factor(made, v).astype(w.dtype) for n, v in t.factors.items()} | {
            "rows": np.array(t.rows_changed, np.int64)
        }
        method, rows = METHODS[t.method], new[t.start : t.stop].copy()
        everything = slice(0, t.stop - t.start)
        if method.prepare is not None:
            f = method.prepare(lambda rows=rows, i=everything: [(i, rows.copy())], f, t.scale)
        new[t.start : t.stop] = method.rows(rows, f, t.scale, everything)
    return new


def _raw(folder: Path, info: TensorInfo) -> np.ndarray:
    data = (folder / info.file).read_bytes()[info.begin : info.end]
    return np.frombuffer(data, DTYPES[info.dtype].storage).reshape(info.shape)


def _factor(made: Made, view: View) -> np.ndarray:
    info = made.adapter.tensors[view.tensor]
    whole = to_float(_raw(made.adapter.folder, info), info.dtype).reshape(view.shape)
    part = whole[tuple(i if isinstance(i, int) else slice(*i) for i in view.index)]
    return np.ascontiguousarray(part.T if view.transpose else part)


def write(made: Made, tensors: Raw | None = None) -> Made:
    """Write the planned folder, with other tensors if they are given."""
    tensors = computed(made) if tensors is None else tensors
    for file in made.plan.files:
        here = {op.tensor: tensors[op.tensor] for op in made.plan.operations if op.file == file.name}
        made.folder.mkdir(parents=True, exist_ok=True)
        data = b"".join(raw.tobytes() for _, raw in here.values())
        (made.folder / file.name).write_bytes(file.header.encode("latin-1") + data)
    for name, text in made.plan.texts.items():
        (made.folder / name).write_text(text)
    for side in made.plan.side_files:
        (made.folder / side.name).write_bytes((made.checkpoint.folder / side.name).read_bytes())
    return made


def write_as_another_tool(made: Made, tensors: Raw, config: object = None) -> Made:
    """One file without index, as Transformers saves a small model."""
    for path in made.folder.iterdir():
        path.unlink()
    write_tensors(made.folder / "model.safetensors", tensors)
    write_json(made.folder / "config.json", config or made.checkpoint.config)
    return made


def flip_bit(made: Made, tensor: str, at: int = -1, bit: int = 0) -> None:
    """Flip one bit of one byte of a tensor in the merged folder."""
    op = next(op for op in made.plan.operations if op.tensor == tensor)
    at = op.begin + at if at >= 0 else op.end + at
    path = made.folder / op.file
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
