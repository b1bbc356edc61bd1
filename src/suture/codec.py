"""Frozen values ↔ JSON, driven by their type hints. Unknown or missing fields are errors, never guesses."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from suture.errors import FormatError

T = TypeVar("T")


def to_json(value: object) -> Any:
    """A value as plain JSON data: dataclasses become objects, tuples become arrays, paths become strings."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _field_names(type(value))}
    if isinstance(value, collections.abc.Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    return str(value) if isinstance(value, Path) else value


@functools.cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def from_json(cls: type[T], data: Any) -> T:
    """The value of type `cls` that `to_json` turned into `data`.

    Raises:
        FormatError: the data does not have the shape of `cls`.
    """
    try:
        decode: Callable[[Any], T] = _decoder(typing.cast("Any", cls))
        return decode(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"not a {cls.__name__}: {repr(error)[:300]}", do="Make it again with this version."
        ) from error


def canonical(value: object) -> bytes:
    """The one JSON spelling of a value that its hash is taken of."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def digest(value: object) -> str:
    """sha256 of `canonical(value)`, hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


@functools.cache
def _decoder(hint: Any) -> Callable[[Any], Any]:
    """The function that decodes JSON data of one type hint; built once a type, so that decoding stays cheap."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass_decoder(hint)
    if origin in (typing.Union, types.UnionType):
        return _union_decoder(args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            item = _decoder(args[0])
            return lambda data: tuple([item(v) for v in data])
        items = [_decoder(a) for a in args]
        return lambda data: tuple([d(v) for d, v in zip(items, data, strict=True)])
    if origin is collections.abc.Mapping:
        item = _decoder(args[1])
        return lambda data: {k: item(v) for k, v in data.items()}
    if hint is Path:
        return Path
    return lambda data: data


def _union_decoder(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """A union holds at most one compound type here: arrays and objects are that one, all else is itself."""
    compound = [a for a in args if typing.get_origin(a) is tuple or dataclasses.is_dataclass(a)]
    if not compound:
        return lambda data: data
    decode = _decoder(compound[0])
    return lambda data: decode(data) if isinstance(data, (list, dict)) else data


def _dataclass_decoder(cls: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    fields = {f.name: _decoder(hints[f.name]) for f in dataclasses.fields(cls)}

    def decode(data: Any) -> Any:
        if data.keys() != fields.keys():
            raise ValueError(f"fields of {cls.__name__}: {sorted(data.keys() ^ fields.keys())}")
        return cls(**{name: fields[name](value) for name, value in data.items()})

    return decode
