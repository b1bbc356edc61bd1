"""YAML as configuration: a bounded file, no tags, aliases or repeated keys, and text that reads back as written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from suture.errors import InputError, UsageError

MAX_BYTES = 1 << 20

# YAML 1.1 reads 1e-4 as text, `no` as false, 012 as ten and 1:30 as ninety; YAML 1.2 does not, and nobody means it.
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_SCALARS = {
    _NULL: (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _BOOL: (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    _INT: (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    _FLOAT: (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
}


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML declares it so)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases: a small file could otherwise name the same large value without end."""
        if self.check_event(yaml.AliasEvent):
            reader: Any = self  # untyped in the stubs
            mark = reader.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name); write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice: which one counts would be a guess."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} again", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes everything that some version of YAML would not read back as text."""


def _quoted(dumper: Any, text: str) -> Any:
    """Text with the rarer line breaks in quotes, where they are escaped and not taken for a line feed."""
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:
    """The value of a YAML text; yaml.YAMLError with a mark where it is broken."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: plain values only
    except RecursionError:
        raise yaml.YAMLError("values nested too deeply") from None


def to_text(value: Any, *, flow: bool | None = False) -> str:
    """YAML of plain values, in their order; `parse` gives them back."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=flow
    )
    return text


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError where there is no such file, UsageError where it is not a mapping."""
    text = _read_text(path)
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {_explain(error)}", where=_place(path, error), do="correct this line") from None
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise UsageError(
            f"a {_kind(value)} at top level", where=str(path), expected="lines like `base: …`, `out: …`, `data:`"
        )
    return {str(key): item for key, item in value.items()}


def _read_text(path: Path) -> str:
    """The file's text, of bounded size."""
    if path.is_dir():
        raise InputError("a folder", where=str(path), expected="a YAML file", do="name the file inside it")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=str(path), expected="a YAML file with the run's settings") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise InputError("more than 1 MiB", where=str(path), expected="a YAML file with the run's settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8", where=str(path), expected="text in UTF-8") from None


def _place(path: Path, error: yaml.YAMLError) -> str:
    """The file, with line and column where the error has them."""
    mark = getattr(error, "problem_mark", None)
    return str(path) if mark is None else f"{path}, line {mark.line + 1}, column {mark.column + 1}"


def _explain(error: yaml.YAMLError) -> str:
    """The error in one line."""
    words = [getattr(error, name, None) for name in ("context", "problem")]
    return ", ".join(word for word in words if word) or " ".join(str(error).split())


def _kind(value: Any) -> str:
    """What a YAML value is, in words."""
    kinds = {list: "list", dict: "mapping", str: "text", bool: "boolean"}
    return kinds.get(type(value), "number")


def override(values: dict[str, Any], settings: Sequence[str], sections: Sequence[str]) -> list[str]:
    """Set `name=value` or `section.name=value` in place, values parsed as YAML; returns what is wrong, in words.

    Whatever follows the name of a field is one key of the mapping in it, so that
    `adapter.rank_pattern.layers.0.q_proj=8` sets the pattern `layers.0.q_proj`.
    """
    wrong = []
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals or not name or "" in name.split("."):
            wrong.append(f"{setting!r} on the command line; expected name=value, like adapter.rank=32")
            continue
        try:
            value = parse(text)
        except yaml.YAMLError as error:
            wrong.append(f"{name}: {text!r} on the command line is not YAML ({_explain(error)}); expected a value")
            continue
        if not _put(values, _keys(name, sections), value):
            wrong.append(f"{name}: set on the command line inside something that is not a mapping")
    return wrong


def _keys(name: str, sections: Sequence[str]) -> list[str]:
    """The steps from the top to a value."""
    first, _, rest = name.partition(".")
    if not rest:
        return [first]
    if first not in sections:
        return [first, rest]
    return [first, *rest.split(".", 1)]


def _put(values: Any, keys: Sequence[str], value: Any) -> bool:
    """Set a value below mappings that are made as needed; False where something else stands in the way."""
    for key in keys[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            return False
    values[keys[-1]] = value
    return True
