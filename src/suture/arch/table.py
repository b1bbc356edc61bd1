"""What Transformers would say of a model of a known class, looked up in `table.json` instead of built.

The table answers only where it is certain: it knows every key of the config, and the checkpoint holds exactly the
tensors of the class, in the shapes that the config gives them. `tools/make_table.py` writes it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suture.arch.fields import MAX_WHOLE, accepts
from suture.arch.formula import evaluate, holds
from suture.arch.sealed import refuse_absurd
from suture.errors import FormatError
from suture.values import Arch, Json, Param, Part, TensorInfo, Tie

Shape = tuple[int, ...]
Entry = Mapping[str, Any]

# More than any model has: Transformers is asked instead, which has limits of its own.
_MAX_LAYERS = 1000
_MAX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a config says, as far as the table of its class needs it."""

    sizes: Mapping[str, int]
    switches: Mapping[str, bool]
    layers: int

    def meets(self, when: Mapping[str, bool]) -> bool:
        return all(self.switches[key] == value for key, value in when.items())


@dataclass(frozen=True, slots=True)
class _Rule:
    """Tensors of other names, or pieces of a parameter: `#` stands for the piece's number, `*` for the layer's."""

    param: str
    shape: Shape
    index: tuple[int | tuple[int, int] | None, ...]  # None: the number of the piece
    transpose: bool
    n: int  # how many of them make up one parameter

    def part(self, tensor: str, param: str, piece: int) -> Part:
        return Part(tensor, param, tuple([piece if i is None else i for i in self.index]), self.transpose)


def lookup(config: Json, tensors: Mapping[str, TensorInfo]) -> Arch | None:
    """The description of a checkpoint, or None where the table does not hold it for certain.

    Args:
        tensors: of the checkpoint, by name.
    """
    names = config.get("architectures")
    if not (isinstance(names, (list, tuple)) and names and isinstance(names[0], str) and tensors):
        return None
    table = _table()
    entry = table["classes"].get(names[0])
    if entry is None or not _is_installed(table["transformers"], names[0]):
        return None
    return describe({**entry, "fields": {**table["fields"], **entry["fields"]}}, config, tensors)


def describe(entry: Entry, config: Json, tensors: Mapping[str, TensorInfo]) -> Arch | None:
    """The description that an entry of the table gives, or None where config or tensors are not exactly as it says."""
    facts = _facts(entry, config)
    if facts is None:
        return None
    params = _params(entry, facts)
    parts = None if params is None else _parts(entry, facts, params, tensors)
    if params is None or parts is None:
        return None
    ties = [tie for tie in entry["ties"] if facts.meets(tie["when"])]
    filled = {part.param for part in parts}
    stored = {name for tie in ties if tie["members"][0] in filled for name in tie["members"]}
    if params.keys() - filled - stored:
        return None
    return Arch(
        model_class=entry["class"],
        source=f"table of transformers {_table()['transformers']}",
        params=params,
        parts=tuple(sorted(parts, key=lambda p: (p.tensor, p.param))),
        ties=tuple(Tie(tuple(tie["members"]), tie["separable"], tie["why"]) for tie in ties),
        tie_flags=tuple(tuple(path) for path in entry["tie_flags"]) if ties else (),
        input_embedding=entry["embeddings"][0],
        output_embedding=entry["embeddings"][1],
    )


# ------------------------------------------------------------------------------------------------------- the config


def _facts(entry: Entry, config: Json) -> _Facts | None:
    """Sizes and switches of a config, or None where a key or a value is not known."""
    if config.get("model_type") != entry["model_type"] or _is_absurd(config):
        return None
    sizes, switches = _sizes(entry["sizes"], config), {k: config.get(k, v) for k, v in entry["switches"].items()}
    if sizes is None or not all(isinstance(v, bool) for v in switches.values()):
        return None
    layers = sizes[entry["layers"]]
    if layers > _MAX_LAYERS or not all(holds(c, sizes) for c in entry["conditions"]):
        return None
    known = {"architectures", "model_type", *sizes, *switches}
    vocab = sizes["vocab_size"]
    if "pad_token_id" not in config and (entry["pad_token_id"] or 0) >= vocab:
        return None
    for key in config.keys() - known:
        if key in entry["aliases"]:
            fits = config[key] == sizes[entry["aliases"][key]] and type(config[key]) is int
        else:
            fits = accepts(entry["fields"].get(key, [""]), config[key], layers=layers, vocab=vocab)
        if not fits:
            return None
    return _Facts(sizes, switches, layers)


def _is_absurd(config: Json) -> bool:
    try:
        refuse_absurd(config)
    except FormatError:  # the long way raises it again
        return True
    return False


def _sizes(spec: Mapping[str, Mapping[str, str]], config: Json) -> dict[str, int] | None:
    """All sizes; one that is not in the config, or null, follows from others, which stand before it in the table."""
    sizes: dict[str, int] = {}
    for key, other in spec.items():
        value = config.get(key)
        if value is None:
            formula = other.get("null" if key in config else "missing")
            value = None if formula is None else evaluate(formula, sizes)
        if type(value) is not int or not 1 <= value <= MAX_WHOLE:
            return None
        sizes[key] = value
    return sizes


# ------------------------------------------------------------------------------------------- parameters and their parts


def _params(entry: Entry, facts: _Facts) -> dict[str, Param] | None:
    """Every parameter in order of declaration, or None where a shape does not work out."""
    rows = [(r, _shape(r["shape"], facts)) for r in entry["params"] if facts.meets(r.get("when", {}))]
    params: dict[str, Param] = {}
    for block in _blocks(rows):
        for layer in range(facts.layers if "*" in block[0][0]["name"] else 1):
            for row, shape in block:
                if shape is None:
                    return None
                name = row["name"].replace("*", str(layer))
                params[name] = Param(name, shape, row["kind"], row.get("transposed", False))
    return params


def _blocks(
    rows: Sequence[tuple[Mapping[str, Any], Shape | None]],
) -> Iterator[list[tuple[Mapping[str, Any], Shape | None]]]:
    """Rows that repeat together: neighbours of one list of layers."""
    block: list[tuple[Mapping[str, Any], Shape | None]] = []
    for row in rows:
        head, star, _ = row[0]["name"].partition("*")
        if block and (not star or not block[0][0]["name"].startswith(head + "*")):
            yield block
            block = []
        block.append(row)
    if block:
        yield block


def _shape(formulas: Sequence[str], facts: _Facts) -> Shape | None:
    shape = [evaluate(f, facts.sizes) for f in formulas]
    return None if None in shape else tuple(n for n in shape if n is not None)


def _parts(
    entry: Entry, facts: _Facts, params: Mapping[str, Param], tensors: Mapping[str, TensorInfo]
) -> list[Part] | None:
    """One Part for each tensor, or None unless each has its place and its shape and each parameter is whole."""
    prefix = entry["prefix"]
    rules = {row["tensor"]: rule for row in entry["files"] if (rule := _rule(row, facts))}
    parts: list[Part] = []
    pieces: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, tensor in tensors.items():
        target = name if name in params else prefix + name
        if target in params:
            if tensor.shape != params[target].shape:
                return None
            parts.append(Part(name, target))
            pieces[target][""] += 1
            continue
        pattern, layer, piece = _pattern(name)
        rule = rules.get(pattern)
        if rule is None or tensor.shape != rule.shape or piece >= rule.n:
            return None
        param = rule.param.replace("*", layer)
        if param not in params:
            return None
        parts.append(rule.part(name, param, piece))
        pieces[param][pattern] += 1
    return parts if _are_whole(pieces, rules) else None


def _rule(row: Mapping[str, Any], facts: _Facts) -> _Rule | None:
    shape, n = _shape(row["shape"], facts), evaluate(row["n"], facts.sizes)
    index = [None if i == "#" else tuple(evaluate(f, facts.sizes) for f in i) for i in row["index"]]
    if shape is None or n is None or any(None in i for i in index if i is not None):
        return None
    cuts = tuple([None if i is None else (i[0] or 0, i[1] or 0) for i in index])
    return _Rule(row["param"], shape, cuts, row["transpose"], n)


def _pattern(name: str) -> tuple[str, str, int]:
    """A tensor's name with `*` for its first number and `#` for its second, and the two numbers."""
    words = name.split(".")
    numbers: list[str] = []
    for at, word in enumerate(words):
        if len(numbers) < 2 and len(word) < _MAX_DIGITS and word.isdecimal() and str(int(word)) == word:
            words[at] = "*#"[len(numbers)]
            numbers.append(word)
    layer, piece = [*numbers, "", ""][:2]
    return ".".join(words), layer, int(piece or 0)


def _are_whole(pieces: Mapping[str, Mapping[str, int]], rules: Mapping[str, _Rule]) -> bool:
    """Whether each parameter is one tensor, or all the pieces of all the patterns that make it up."""
    made_of: dict[str, dict[str, int]] = defaultdict(dict)
    for pattern, rule in rules.items():
        made_of[rule.param][pattern] = rule.n
    return all(counts == {"": 1} or counts == made_of[_pattern(param)[0]] for param, counts in pieces.items())


# ------------------------------------------------------------------------------------------ the table, Transformers


@functools.cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads(Path(__file__).with_name("table.json").read_bytes())
    return table


@functools.cache
def _is_installed(version: str, model_class: str) -> bool:
    """Whether the installed Transformers has this class as the table knows it: its source files are the same.

    A later release within the major version is as good as the one the table was made from, as long as they are.
    """
    try:
        installed = importlib.metadata.version("transformers")
        spec = importlib.util.find_spec("transformers")
    except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
        return False
    if spec is None or spec.origin is None or not _is_as_new(installed, version):
        return False
    folder, sources = Path(spec.origin).parent, _table()["classes"][model_class]["sources"]
    try:
        return all(source_hash(folder / file) == digest for file, digest in sources.items())
    except OSError:
        return False


def _is_as_new(installed: str, version: str) -> bool:
    (major, *rest), (wanted, *least) = _numbers(installed), _numbers(version)
    return major == wanted and rest >= least


def _numbers(version: str) -> list[int]:
    return [int(n) if n.isdecimal() else -1 for n in version.split(".")[:3]]


def source_hash(file: Path) -> str:
    """The first 16 digits of a source file's sha256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
