"""What pydantic found wrong with settings, said in the words of the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "path_type": "a path",
    "string_too_short": "text that is not empty",
    "finite_number": "a finite number",
}
_COMPARISONS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def complaints(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line "field: what was found; expected …" for each field, in the order of the errors."""
    lines: dict[str, tuple[str, list[str]]] = {}
    for detail in error.errors(include_url=False):
        field, depth = _field(detail["loc"], model)
        found, expected = _say(detail, model, depth)
        # A field with alternatives has an error for each of them.
        alternatives = lines.setdefault(field, (found, []))[1]
        if expected and expected not in alternatives:
            alternatives.append(expected)
    # Of alternatives, the one that got as far as an item is the one that was meant.
    meant = {f: said for f, said in lines.items() if not any(other.startswith(f"{f}[") for other in lines)}
    return [f"{f}: {found}" + (f"; expected {' or '.join(want)}" if want else "") for f, (found, want) in meant.items()]


def _field(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, int]:
    """Dotted name of a field, and how many steps of the location belong to it.

    The rest of a location says which alternative of a type was tried, and which item of a list is meant.
    """
    name, current, depth = "", model, 0
    for step in location:
        depth += 1
        name += f".{step}" if name else str(step)
        inner = current.model_fields.get(str(step))
        section = inner.annotation if inner else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            break
        current = section
    items = "".join(f"[{step}]" for step in location[depth:] if _is_item(step))
    return name + items, depth


def _is_item(step: int | str) -> bool:
    """Whether a step leads to an item, and is not pydantic's name for an alternative."""
    return isinstance(step, int) or not (step in {"str", "[key]"} or "[" in step)


def _say(detail: ErrorDetails, model: type[BaseModel], depth: int) -> tuple[str, str]:
    """What was found, and what was expected."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"no such setting{_meant(detail['loc'][:depth], model)}", ""
    if kind == "missing":
        return "missing", _wanted(detail["loc"], model)
    if kind == "value_error":
        found, _, expected = str(context["error"]).partition("; expected ")
        return found, expected
    return _show(detail["input"], kind), _expected(kind, context, detail["msg"])


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    """What pydantic expected, in words."""
    if kind in _COMPARISONS:
        word, limit = _COMPARISONS[kind]
        return f"{word} {context[limit]}"
    if kind == "literal_error":
        return str(context["expected"])
    return _KINDS.get(kind, message.lower())


def _show(value: Any, kind: str) -> str:
    """A value as it may stand in a message, and why it may not be what it looks like."""
    text = repr(value) if isinstance(value, str) else str(value)
    shown = (
        {True: "true", False: "false", None: "nothing (null)"}[value]
        if value is None or value is True or value is False
        else text
    )
    hint = (
        " (put it in quotes if it is meant as text)"
        if kind == "string_type" and not isinstance(value, list | dict)
        else ""
    )
    return (shown if len(shown) <= 80 else shown[:77] + "…") + hint


def _wanted(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The description of a missing field."""
    current: Any = model
    for step in location[:-1]:
        current = current.model_fields[str(step)].annotation
    description = current.model_fields[str(location[-1])].description or ""
    return description[:1].lower() + description[1:].rstrip(".")


def _meant(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The existing setting that an unknown one looks like, here or in another section."""
    names = dict(_names(model))
    prefix = ".".join(map(str, location[:-1]))
    here = {short: full for full, short in names.items() if full.rpartition(".")[0] == prefix}
    anywhere = {short: full for full, short in names.items()}
    for known in (here, anywhere):
        for cutoff in (1.0, 0.6) if known is here else (1.0, 0.75):
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=cutoff)
            if close:
                return f"; did you mean {known[close[0]]}?"
    return ""


def _names(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted and short name of every setting."""
    names = []
    for name, field in model.model_fields.items():
        names.append((prefix + name, name))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _names(field.annotation, f"{prefix}{name}.")
    return names
