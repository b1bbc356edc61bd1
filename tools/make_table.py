"""Writes src/suture/arch/table.json from the installed Transformers: what its classes are, as functions of the config.

    python tools/make_table.py

Every class is built on the meta device from some hundred configs; what is written is what all of them have in common.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import fitting
import harmless
import probing
from probing import Probe, Sizes, Subject

from suture.arch.formula import evaluate
from suture.arch.table import source_hash
from suture.values import Json, Part

TABLE = Path(__file__).parents[1] / "src" / "suture" / "arch" / "table.json"
N_DRAWS = 400
N_PROBES = 6

SUBJECTS = (
    Subject("BloomForCausalLM"),
    Subject("CohereForCausalLM"),
    Subject("FalconForCausalLM", pinned=("num_ln_in_parallel_attn",)),
    Subject("GPT2LMHeadModel"),
    Subject("GPTNeoXForCausalLM"),
    Subject("Gemma2ForCausalLM"),
    Subject("Gemma3ForCausalLM"),
    Subject("GemmaForCausalLM"),
    Subject("GraniteForCausalLM"),
    Subject("LlamaForCausalLM"),
    Subject("MistralForCausalLM"),
    Subject("MixtralForCausalLM"),
    Subject("Olmo2ForCausalLM"),
    Subject("OlmoeForCausalLM"),
    Subject("Phi3ForCausalLM"),
    Subject("Qwen2ForCausalLM"),
    Subject("Qwen2MoeForCausalLM"),
    Subject("Qwen3ForCausalLM"),
    Subject("Qwen3MoeForCausalLM"),
    Subject("SmolLM3ForCausalLM"),
    Subject("Starcoder2ForCausalLM"),
)


def make() -> dict[str, Any]:
    """The whole table, from two processes."""
    with ProcessPoolExecutor(2) as pool:
        entries = pool.map(_entry, SUBJECTS)
        return whole({s.model: e for s, e in zip(SUBJECTS, entries, strict=True)})


def _entry(subject: Subject) -> dict[str, Any]:
    with quick():
        return entry(subject)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Transformers formats every config for its log, which takes half of the time: not here."""
    from transformers import PreTrainedConfig

    with mock.patch.object(PreTrainedConfig, "__repr__", object.__repr__):
        yield


def whole(classes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The table of these classes, with what most of them say of a field said once."""
    common = _common([e["fields"] for e in classes.values()])
    for e in classes.values():
        # As JSON, because 1 and True and 1.0 are not the same here.
        e["fields"] = {k: v for k, v in e["fields"].items() if json.dumps(common.get(k)) != json.dumps(v)}
    return {"transformers": importlib.metadata.version("transformers"), "fields": common, "classes": classes}


def entry(subject: Subject) -> dict[str, Any]:
    """What the table says of one class."""
    rng = random.Random(subject.model)
    switches = _switches(subject)
    sizes = _sizes(subject, switches)
    combos = list(itertools.product((False, True), repeat=len(switches)))
    taken, refused = _draws(subject, sizes, rng)
    by_combo = {c: _probes(subject, dict(zip(switches, c, strict=True)), taken, rng) for c in combos}
    default = subject.resolved(subject.config())
    flipped = {k: not getattr(default, k) for k in switches}
    every = [p for probes in by_combo.values() for p in probes]
    return {
        "class": subject.model,
        "model_type": subject.config_class.model_type,
        "sources": _sources(subject),
        "layers": subject.layers,
        "prefix": _prefix(subject, every[0], dict.fromkeys(switches, False)),
        "embeddings": _same((p.own.input_embedding, p.own.output_embedding) for p in every),
        "tie_flags": _same(p.own.tie_flags for p in every if p.own.ties),
        "pad_token_id": _pad(subject),
        "sizes": _other_sizes(subject, sizes, taken),
        "aliases": {k: v for k, v in subject.aliases.items() if v in sizes},
        "conditions": [*subject.assumed, *fitting.conditions(sizes, taken, refused)],
        "switches": {k: getattr(default, k) for k in switches},
        "params": _params(by_combo, switches),
        "ties": _ties(by_combo, switches),
        "files": _files(every),
        "fields": harmless.accepted(subject, [*sizes, *switches], [{}, flipped]),
    }


# ---------------------------------------------------------------------------------- which fields decide about the model


def _sizes(subject: Subject, switches: Sequence[str]) -> list[str]:
    """Fields whose number changes shapes, but not which parameters there are; and the numbers of layers and heads."""
    default = subject.resolved(subject.config())
    values = {key: getattr(default, key) for key in subject.fields if key not in subject.pinned}
    values.setdefault("head_dim", values[subject.width] // values[subject.heads])  # many classes read it undeclared
    flipped = {k: not values[k] for k in switches}
    found = {subject.layers: 2, subject.heads: values[subject.heads]}
    for context in ({}, flipped, {}):  # what some follow from is seen only when those are spelled out
        for key, value in sorted(values.items()):
            if key not in found and type(value) is int and value > 0:
                found |= {key: value} if _is_size(subject, key, value, {**context, **found}) else {}
    return sorted(found)


def _is_size(subject: Subject, key: str, value: int, context: Mapping[str, Any]) -> bool:
    before = subject.signature(subject.config(**context))
    for other in (2 * value, 3 * value, value // 2):
        after = subject.signature(subject.config(**context, **{key: other})) if other else None
        if before and after and after != before:
            return [n for n, _ in after[0]] == [n for n, _ in before[0]]
    return False


def _switches(subject: Subject) -> list[str]:
    """Boolean fields that change which parameters there are, their shapes or their ties."""
    default = subject.resolved(subject.config())
    keys = [k for k in subject.fields if isinstance(getattr(default, k), bool)]
    found: list[str] = []
    for _ in range(2):
        contexts = [{}, {k: not getattr(default, k) for k in found}]
        for key in (k for k in keys if k not in (*found, *subject.pinned)):
            for context in contexts:
                before = subject.signature(subject.config(**context))
                after = subject.signature(subject.config(**context, **{key: not getattr(default, key)}))
                if before and after and before != after and key not in found:
                    found.append(key)
    return sorted(found)


def _draws(subject: Subject, sizes: Sequence[str], rng: random.Random) -> tuple[list[Sizes], list[Sizes]]:
    """Random sizes that Transformers takes, and those it refuses."""
    taken: list[Sizes] = []
    refused: list[Sizes] = []
    for _ in range(N_DRAWS):
        drawn = probing.draw(rng, subject, sizes)
        config = subject.config(**drawn)
        fits = subject.resolved(config) is not None and subject.signature(config) is not None
        (taken if fits else refused).append(drawn)
    if len(taken) < N_PROBES:
        raise ValueError(f"{subject.model}: hardly a config is taken")
    return taken, refused


def _probes(subject: Subject, combo: Mapping[str, bool], taken: Sequence[Sizes], rng: random.Random) -> list[Probe]:
    probes: list[Probe] = []
    for sizes in rng.sample(list(taken), len(taken)):
        if len(probes) < N_PROBES and (found := probing.probe(subject, subject.config(**sizes, **combo), sizes)):
            probes.append(found)
    if len(probes) < N_PROBES:
        raise ValueError(f"{subject.model}: too few configs are taken with {combo}")
    return probes


def _other_sizes(subject: Subject, sizes: Sequence[str], taken: Sequence[Sizes]) -> dict[str, dict[str, str]]:
    """For each size, what it is when the config leaves it out or says null; those that follow from others last."""
    found: dict[str, dict[str, str]] = {}
    for key in sizes:
        missing = _resolved(subject, key, [(s, subject.without(key, **s)) for s in taken])
        null = _resolved(subject, key, [(s, {**subject.config(**s), key: None}) for s in taken])
        found[key] = {k: v for k, v in (("missing", missing), ("null", null)) if v}
    plain = {k: v for k, v in found.items() if all(f.isdigit() for f in v.values())}
    return {**plain, **{k: v for k, v in found.items() if k not in plain}}


def _resolved(subject: Subject, key: str, configs: Sequence[tuple[Sizes, Json]]) -> str | None:
    """The formula of what a config object holds for a key that the config leaves open, or what builds the same."""
    if key not in subject.fields:
        usual = f"{subject.width}/{subject.heads}"
        pairs = [
            (subject.signature(c), subject.signature({**c, key: evaluate(usual, s)}))
            for s, c in configs[: 4 * N_PROBES]
        ]
        known = [(one, other) for one, other in pairs if other]
        return usual if known and all(one == other for one, other in known) else None
    pairs = [(sizes, subject.resolved(config)) for sizes, config in configs]
    known = [({k: v for k, v in sizes.items() if k != key}, getattr(o, key)) for sizes, o in pairs if o is not None]
    if not known or any(type(v) is not int for _, v in known):
        return None
    return fitting.formula([v for _, v in known], [sizes for sizes, _ in known])


def _pad(subject: Subject) -> int | None:
    """The padding token of a config that names none: it must be one of the vocabulary."""
    default = subject.resolved(subject.without("pad_token_id")).pad_token_id
    return default if isinstance(default, int) else None


# ------------------------------------------------------------------------------------------------ what the models have

ByCombo = Mapping[fitting.Combo, Sequence[Probe]]


def _params(by_combo: ByCombo, switches: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the table, one for each parameter of a layer, in order of declaration."""
    seen = {c: [(p.sizes, dict(probing.patterns(p.own.params))) for p in probes] for c, probes in by_combo.items()}
    orders = {c: _same(list(found) for _, found in probes) for c, probes in seen.items()}
    rows: list[dict[str, Any]] = []
    for name in fitting.merged(orders.values()):
        groups: dict[str, list[fitting.Combo]] = defaultdict(list)
        for combos in _together(name, seen):
            cases = [(sizes, found[name]) for c in combos for sizes, found in seen[c]]
            groups[json.dumps(_row(name, cases))] += combos
        for row, combos in groups.items():
            for when in fitting.when(combos, list(by_combo), switches):
                rows.append({**json.loads(row), **({"when": when} if when else {})})
    return rows


def _together(name: str, seen: Mapping[fitting.Combo, Sequence[Any]]) -> Iterator[list[fitting.Combo]]:
    """Combinations that may share a row: all of them if one formula fits, else each by itself."""
    combos = [c for c, probes in seen.items() if name in probes[0][1]]
    try:
        _row(name, [(sizes, found[name]) for c in combos for sizes, found in seen[c]])
    except ValueError:
        yield from ([c] for c in combos)
    else:
        yield combos


def _row(name: str, cases: Sequence[tuple[Sizes, Any]]) -> dict[str, Any]:
    kind, transposed = _same((p.kind, p.transposed) for _, p in cases)
    shape = _formulas([p.shape for _, p in cases], [s for s, _ in cases])
    return {"name": name, "kind": kind, "shape": shape, **({"transposed": True} if transposed else {})}


def _formulas(shapes: Sequence[Sequence[int]], sizes: Sequence[Mapping[str, int]]) -> list[str]:
    found = [fitting.formula(dims, sizes) for dims in zip(*shapes, strict=True)]
    if None in found:
        raise ValueError(f"no formula gives {shapes[0]} from {sizes[0]}")
    return [f for f in found if f]


def _ties(by_combo: ByCombo, switches: Sequence[str]) -> list[dict[str, Any]]:
    groups: dict[Any, list[fitting.Combo]] = defaultdict(list)
    for combo, probes in by_combo.items():
        for tie in _same(p.own.ties for p in probes):
            groups[tie].append(combo)
    return [
        {"members": tie.members, "separable": tie.separable, "why": tie.why, "when": when}
        for tie, combos in groups.items()
        for when in fitting.when(combos, list(by_combo), switches)
    ]


def _files(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """How tensors that are not called as their parameter make it up: rows by the pattern of their name."""
    rows: dict[str, list[tuple[Probe, Any]]] = defaultdict(list)
    for p in probes:
        for arch, names in ((p.own, p.own.params), (p.saved, p.tensors)):
            lost = set(names) - {part.tensor for part in arch.parts}
            if lost or arch.opaque or arch.unknown:
                raise ValueError(f"{arch.model_class}: no Part for {sorted(lost)}")
            moved = [q for q in arch.parts if q.tensor in arch.params and q != Part(q.tensor, q.tensor)]
            if moved:
                raise ValueError(f"{arch.model_class}: {moved[0]} is not the tensor as it stands")
        for part in p.saved.parts:
            if part.tensor != part.param:
                rows[_numbered(part.tensor)[0]].append((p, part))
    return [_file(pattern, cases) for pattern, cases in sorted(rows.items())]


def _file(pattern: str, cases: Sequence[tuple[Probe, Any]]) -> dict[str, Any]:
    sizes = [p.sizes for p, _ in cases]
    counts = [
        len({q.tensor for o, q in cases if o is p and probing.starred(q.param)[1] == probing.starred(part.param)[1]})
        for p, part in cases
    ]
    if any(part.rows for _, part in cases):
        raise ValueError(f"{pattern} is cut into several parameters")
    return {
        "tensor": pattern,
        "param": _same(probing.starred(part.param)[0] for _, part in cases),
        "shape": _formulas([p.tensors[part.tensor].shape for p, part in cases], sizes),
        "n": _formulas([[n] for n in counts], sizes)[0],
        "index": [
            _index([(part.index[at], _numbered(part.tensor)[1]) for _, part in cases], sizes)
            for at in range(_same(len(part.index) for _, part in cases))
        ],
        "transpose": _same(part.transpose for _, part in cases),
    }


def _index(entries: Sequence[tuple[Any, int]], sizes: Sequence[Mapping[str, int]]) -> Any:
    if all(found == number for found, number in entries):
        return "#"
    return _formulas([found for found, _ in entries], sizes)


def _numbered(name: str) -> tuple[str, int]:
    """A name with `*` for its first number and `#` for its second, and the second."""
    pattern, _ = probing.starred(name)
    piece, number = probing.starred(pattern)
    return (piece[::-1].replace("*", "#", 1)[::-1], int(number)) if number else (pattern, -1)


def _prefix(subject: Subject, p: Probe, combo: Mapping[str, bool]) -> str:
    """What may be left out of the names of the base model's parameters, or nothing; `p` has the switches of `combo`."""
    from suture import arch

    prefix = subject.model_class.base_model_prefix + "."
    shapes = {n.removeprefix(prefix): q.shape for n, q in p.own.params.items() if n.startswith(prefix)}
    config = subject.config(**p.sizes, **combo)
    parts = arch.build(config, probing.headers(shapes)).parts
    return prefix if {(q.tensor, q.param) for q in parts} == {(n, prefix + n) for n in shapes} else ""


def _sources(subject: Subject) -> dict[str, str]:
    """The files of Transformers' models that the class and its parts are written in."""
    import transformers

    from suture.arch import meta

    model = meta.build(subject.model_class, subject.config()).model
    classes = {cls for m in (*model.modules(), model.config) for cls in type(m).__mro__}
    folder = Path(transformers.__file__).parent
    files = {Path(inspect.getfile(c)) for c in classes if c.__module__.startswith("transformers.models.")}
    return {f.relative_to(folder).as_posix(): source_hash(f) for f in sorted(files)}


def _same(items: Any) -> Any:
    """The one value that all items are; nothing where there are none.

    Raises:
        ValueError: they differ.
    """
    first, *rest = [*items] or [()]
    if any(item != first for item in rest):
        raise ValueError(f"{first} is not the same in all models")
    return first


def _common(fields: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What most classes say of a field that every class has."""
    shared = set.intersection(*(set(f) for f in fields))
    found: dict[str, Any] = {}
    for key in sorted(shared):
        said = [json.dumps(f[key]) for f in fields]
        found[key] = json.loads(max(sorted(set(said)), key=said.count))
    return found


def text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each thing that stands for itself."""
    flat = json.dumps(value)
    if depth == 4 or (depth > 1 and len(flat) < 110) or not isinstance(value, (dict, list)):
        return flat
    pad = "  " * depth
    if isinstance(value, dict):
        rows = [f"{json.dumps(k)}: {text(v, depth + 1)}" for k, v in value.items()]
    else:
        rows = [text(v, depth + 1) for v in value]
    ends = "{}" if isinstance(value, dict) else "[]"
    return ends[0] + "".join(f"\n{pad}  {row}," for row in rows)[:-1] + f"\n{pad}{ends[1]}"


if __name__ == "__main__":
    if len(sys.argv) > 1:  # some classes only, to look at
        SUBJECTS = tuple(s for s in SUBJECTS if s.model in sys.argv[1:])
        sys.stdout.write(text(make()) + "\n")
    else:
        TABLE.write_text(text(make()) + "\n")
