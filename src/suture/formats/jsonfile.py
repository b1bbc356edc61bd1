"""JSON from untrusted files: bounded in size, depth and number of values, and never ambiguous."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from suture.errors import FormatError
from suture.formats.files import quoted, read_whole

MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_JSON_VALUES = 4 * 1024 * 1024  # bounds the memory that parsing takes; a header of 450 000 tensors has as many
MAX_JSON_DEPTH = 64


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is too large, not UTF-8, not JSON, too deep, ambiguous, or not an object.
    """
    value = parse_json_object(read_whole(path, MAX_JSON_BYTES), str(path))
    _check_depth(value, str(path))
    return value


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """The object that `raw` spells; `where` names its place in errors. Raises FormatError."""
    n_values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if n_values > MAX_JSON_VALUES:
        raise FormatError(f"the JSON text holds {n_values} values", where=where, expected=f"at most {MAX_JSON_VALUES}")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_int=_whole if b"-0" in raw else None)
        if b"\\ud" in raw or b"\\uD" in raw:
            # An escape can spell half of a surrogate pair, which could not be printed or hashed later.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise FormatError(f"the JSON text is not UTF-8: {error}", where=where, expected="UTF-8") from error
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise FormatError(f"malformed JSON: {error}", where=where, do="Download or write the file again.") from error
    if not isinstance(value, dict):
        raise FormatError(f"the JSON text is a {type(value).__name__}", where=where, expected="an object")
    return value


def _whole(digits: str) -> int | float:
    """A whole number; minus zero is a float, as it is to the reader of the reference, which takes it for no count."""
    return int(digits) if digits != "-0" else -0.0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) == len(pairs):
        return unique
    seen = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    raise ValueError(f"the key {quoted(key)} appears twice in one object")


def _check_depth(value: dict[str, Any], where: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        children = (v for node in level for v in (node.values() if isinstance(node, dict) else node))
        level = [v for v in children if isinstance(v, (dict, list))]
        if not level:
            return
    raise _too_deep(where)


def _too_deep(where: str) -> FormatError:
    return FormatError("the JSON text is nested too deeply", where=where, expected=f"at most {MAX_JSON_DEPTH} levels")
