"""Training examples as they stand in files: read, numbered, and checked before anything is tokenised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from suture.errors import FormatError, InputError, MissingExtra
from suture.training.config import DataConfig

Format = Literal["chat", "prompt", "text"]
COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt": ("prompt", "completion"),
    "text": ("text",),
}
SHOWN = 5  # bad rows that a message names; the rest is counted


@dataclass(frozen=True, slots=True)
class Row:
    """One example: its number in the file (the line in .jsonl, both from 1) and its values under our names."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """All examples of a source, in their order, all of one format."""

    source: str
    format: Format
    rows: tuple[Row, ...]


def read_table(source: str, config: DataConfig) -> Table:
    """Read and check one source; InputError names the first bad rows and counts the others."""
    found = list(_read(source, config.split))
    if not found:
        raise InputError("no examples", where=source, expected="at least one")
    for number, values in found[:1]:
        if not isinstance(values, dict):
            raise FormatError(f"row {number} is not an object", where=source, expected='like {"messages": […]}')
    columns = {ours: config.fields.get(ours, ours) for names in (*COLUMNS.values(), ("tools",)) for ours in names}  # type: ignore[call-overload]
    kind = _decide(found[0][1], columns, config, source)
    names = (*COLUMNS[kind], *(("tools",) if kind == "chat" else ()))
    rows, wrong = [], []
    for number, values in found:
        try:
            rows.append(Row(number, _check(values, {name: columns[name] for name in names}, kind, config.loss_on)))
        except _BadRow as bad:
            wrong.append(f"row {number}: {bad}")
    if wrong:
        more = [f"… and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise InputError(
            f"{len(wrong)} of {len(found)} rows cannot be used\n  " + "\n  ".join([*wrong[:SHOWN], *more]),
            where=source,
            expected=f"rows of the format {kind}",
            do="correct or remove these rows, or name other columns in data.fields",
        )
    return Table(source, kind, tuple(rows))


# -------------------------------------------------------------------------------------------------------------- reading


def _read(source: str, split: str) -> Iterator[tuple[int, Any]]:
    """Every row with its number."""
    path = Path(source)
    readers = {".jsonl": _read_lines, ".ndjson": _read_lines, ".json": _read_json, ".parquet": _read_parquet}
    reader = readers.get(path.suffix)
    if reader is None or path.is_dir():
        return enumerate(_read_dataset(source, split), 1)
    if not path.is_file():
        raise InputError(
            "no such file", where=source, expected="training examples", do="correct data.train or data.eval"
        )
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=source) from None


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file with one JSON value in each line; empty lines are none."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append((number, _parse(line, f"{path}, line {number}")))
    return iter(rows)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of one JSON list; a file of lines that is only called .json is read as such."""
    data = path.read_bytes()
    if data.lstrip()[:1] != b"[":
        return _read_lines(path)
    return enumerate(_parse(data, str(path)), 1)


def _parse(data: bytes, where: str) -> Any:
    """A JSON value; FormatError says where it is broken."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise FormatError(f"byte {error.start} is not UTF-8", where=where, expected="JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise FormatError(f"not JSON at {place}: {error.msg}", where=where, expected="a JSON object") from None
    except RecursionError:
        raise FormatError("values nested too deeply", where=where, expected="a JSON object") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a Parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtra("pyarrow is not installed", do="pip install 'suture[train]'") from None
    try:
        return enumerate(parquet.read_table(path).to_pylist(), 1)
    except ArrowException as error:
        raise FormatError(f"not Parquet: {error}", where=str(path)) from None


def _read_dataset(source: str, split: str) -> Iterable[Any]:
    """The rows of a folder or a named data set, by the library of that name."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets is not installed", where=source, do="pip install 'suture[train]'") from None
    try:
        if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(source)
            return list(saved[split] if isinstance(saved, dict) else saved)
        return list(datasets.load_dataset(source, split=split))
    except Exception as error:  # noqa: BLE001 (it raises whatever its file systems and builders raise)
        raise InputError(
            f"the data set cannot be read: {' '.join(str(error).split()) or type(error).__name__}",
            where=source,
            expected=f"a .jsonl, .json or .parquet file, a folder of such files, or a data set with the split {split}",
        ) from None


# ------------------------------------------------------------------------------------------------------------- checking


class _BadRow(Exception):
    """What is wrong with one row."""


def _decide(first: Mapping[str, Any], columns: Mapping[str, str], config: DataConfig, source: str) -> Format:
    """The format that the config names, or the one whose columns are in the first row."""
    if config.format != "auto":
        return config.format
    for kind, names in COLUMNS.items():
        if all(first.get(columns[name]) is not None for name in names):
            return kind
    raise InputError(
        f"no known columns; it has {', '.join(map(repr, first)) or 'none'}",
        where=source,
        expected="`messages`, or `prompt` and `completion`, or `text`",
        do="name the columns in data.fields, like {messages: conversations}",
    )


def _check(values: Any, columns: Mapping[str, str], kind: Format, loss_on: str) -> Mapping[str, Any]:
    """The values of a row under our names, or _BadRow."""
    if not isinstance(values, dict):
        raise _BadRow("not an object")
    for ours, column in columns.items():
        if ours != "tools" and values.get(column) is None:
            raise _BadRow(f"no value in the column {column!r}")
    if kind == "chat":
        tools = _tools(values.get(columns["tools"]))
        return {"messages": _messages(values[columns["messages"]], loss_on), "tools": tools}
    texts = {ours: values[column] for ours, column in columns.items()}
    for ours, text in texts.items():
        if not isinstance(text, str):
            raise _BadRow(f"{columns[ours]!r} is not text")
    if not any(texts[name] for name in ("completion", "text") if name in texts):
        raise _BadRow("the text to learn is empty")
    return texts


def _tools(value: Any) -> list[Any] | None:
    """The tools of a conversation; data sets often keep them as JSON in a string."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _BadRow("the tools are not JSON") from None
    if value is not None and not isinstance(value, list):
        raise _BadRow("the tools are not a list")
    return value or None


def _messages(value: Any, loss_on: str) -> list[dict[str, Any]]:
    """The messages of a conversation, each with a role and something said."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _BadRow("the messages are not a list with at least one message")
    messages = [_message(message, number) for number, message in enumerate(value, 1)]
    if loss_on == "answers" and not any(message["role"] == "assistant" for message in messages):
        raise _BadRow("no answer: no message has the role assistant")
    return messages


def _message(value: Any, number: int) -> dict[str, Any]:
    """One message, as it is; Transformers leaves out keys without a value, which tables fill in."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        hint = " (from/value: rename to role/content)" if isinstance(value, dict) and "from" in value else ""
        raise _BadRow(f"message {number} has no role{hint}")
    content = value.get("content")
    if content is None and not value.get("tool_calls"):
        raise _BadRow(f"message {number} ({value['role']}) has no content")
    if not isinstance(content, str | list | None):
        raise _BadRow(f"the content of message {number} is not text")
    return value
