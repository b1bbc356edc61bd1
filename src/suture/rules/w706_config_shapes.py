"""# W706 config-shapes

## What it finds
Numbers in config.json that the tensors do not confirm: `vocab_size`, `num_hidden_layers`, widths of layers.

## Why it matters
The class is built from the config, and the tensors must fit into it. A wrong width stops the load. A vocabulary that
was resized and is told at one level of the config only works in one program and breaks in another. Too few layers are
the worst: everything loads, and the last layers are left out without an error.

## How it is detected
The class is built from config.json without weights, and each tensor's shape is compared with its parameter's.
`vocab_size` at the levels of the text model is compared with the rows of the input embedding. Layers of the same make
as the others, numbered beyond `num_hidden_layers`, are surplus; layers of another make (for predicting several
tokens) are not. Quantised tensors are packed and do not count.

## How to fix
Put the right number into config.json if the tensors are right. If the tensors are those of another model, take the
config that was saved with them.

## References
- unslothai/unsloth#3444: tokenizer, embedding and config of different sizes
- huggingface/peft#2898: which rows are saved when a vocabulary was resized
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from suture.formats.dtypes import DTYPES
from suture.model_folder import ModelFolder
from suture.rules.base import Rule
from suture.values import Finding, TensorInfo

LEVELS = ((), ("text_config",), ("llm_config",), ("language_config",), ("thinker_config", "text_config"))
DO = "Put the right number into config.json, or take the config that belongs to these weights."
_LAYER = re.compile(r"^(.*?\.)(\d+)\.(.+)$")


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Shapes that do not fit, sizes of the vocabulary, and numbers of layers."""
    if model.arch is None:
        return
    wrong = _misfits(model)
    if wrong:
        first = min(wrong)
        found = f"{len(wrong)} tensors have another shape than config.json says, such as {first}: {wrong[first]}"
        yield RULE.finding(f"config.json: {first}", found, "shapes that follow from the config", DO)
    embedding = model.tensor_of(f"{model.arch.input_embedding}.weight")
    if embedding is not None and embedding.name not in wrong and not model.quantized.schemes:
        yield from _vocabulary(model, embedding)
    for stack, numbers in _stacks(absent_layers(model)).items():
        found = f"the config makes layers of which nothing is in the files: {stack}{_span(numbers)}"
        yield RULE.finding("config.json: num_hidden_layers", found, "the number of layers in the files", DO)
    for stack, numbers in _stacks(surplus_layers(model)).items():
        found = f"the files hold layers that the config leaves out: {stack}{_span(numbers)}"
        yield RULE.finding("config.json: num_hidden_layers", found, "the number of layers in the files", DO)


def _stacks(layers: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """Numbers of layers by the stack that they stand in, sorted."""
    stacks: dict[str, list[int]] = {}
    for stack, n in sorted(layers):
        stacks.setdefault(stack, []).append(n)
    return stacks


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def absent_layers(model: ModelFolder) -> Mapping[tuple[str, int], list[str]]:
    """Layers of the class of which no file holds anything, numbered beyond the last that is there: their parameters."""
    missing = _by_layer(model.missing)
    there = _by_layer(model.arch.params.keys() - set(model.missing) if model.arch else ())
    last: dict[str, int] = {}
    for stack, n in there:
        last[stack] = max(n, last.get(stack, -1))
    return {layer: names for layer, names in missing.items() if layer[1] > last.get(layer[0], layer[1])}


def surplus_layers(model: ModelFolder) -> Mapping[tuple[str, int], list[str]]:
    """Layers in the files that the class leaves out, though they have the same tensors as one that it has."""
    unknown = set(model.arch.unknown if model.arch else ())
    layers = _by_layer(n for n in model.tensors if n not in unknown)
    shapes = {(stack, frozenset(_ends(names))) for (stack, _), names in layers.items()}
    beyond = _by_layer(unknown)
    return {at: names for at, names in beyond.items() if (at[0], frozenset(_ends(names))) in shapes}


def _by_layer(names: Iterable[str]) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for name in sorted(names):
        if match := _LAYER.match(name):
            found.setdefault((match[1], int(match[2])), []).append(name)
    return found


def _ends(names: Iterable[str]) -> list[str]:
    return [match[3] for name in names if (match := _LAYER.match(name))]


def _is_plain(model: ModelFolder, name: str) -> bool:
    module = name.rpartition(".")[0]
    return DTYPES[model.tensors[name].dtype].computable and not {name, module} & model.quantized.owners


def _misfits(model: ModelFolder) -> dict[str, str]:
    """Tensors that do not fit into their parameter, or not together, and how."""
    if model.arch is None:
        return {}
    wrong = {n: f"it {why}" for n, why in model.arch.misfits.items()}
    for part in model.arch.parts:
        is_whole = not part.index and part.rows is None and not part.transpose
        shape, wanted = model.tensors[part.tensor].shape, model.arch.params[part.param].shape
        if is_whole and shape != wanted:
            wrong[part.tensor] = f"it is {list(shape)}, and {list(wanted)} by the config"
    return {name: how for name, how in wrong.items() if _is_plain(model, name)}


def _vocabulary(model: ModelFolder, tensor: TensorInfo) -> Iterable[Finding]:
    said = {path: size for path in LEVELS if isinstance(size := _at(model.config, (*path, "vocab_size")), int)}
    rows = tensor.shape[0] if tensor.shape else 0
    wrong = {path: size for path, size in said.items() if size != rows}
    for path, size in sorted(wrong.items()):
        # Some models tell another number at the top on purpose: what counts for them is the text model's.
        is_spare = path == () and rows in said.values()
        found = f"it says {size:,}, and {tensor.name} has {rows:,} rows"
        where = f"config.json: {'.'.join((*path, 'vocab_size'))}"
        yield RULE.finding(where, found, f"{rows}", DO, severity="info" if is_spare else "warning")


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


RULE = Rule("W706", "config-shapes", "error", model=check_model, modes=("F12", "F42"))
