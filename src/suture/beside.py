"""What the small files beside an adapter tell: its README, a trainer's settings, the tokenizer's special tokens.

Only settings of one line are read (`name: value`), by a pattern and not by a YAML reader: such files come from anyone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suture.formats.files import inside, open_regular, read_exact
from suture.formats.jsonfile import read_json_object
from suture.formats.listing import ADAPTER_CONFIG, MERGE_RECORD, file_names
from suture.formats.vocabulary import has_template, read_vocabulary
from suture.values import Adapter, Checkpoint, Json

README = "README.md"
AXOLOTL = "README.md, Axolotl config"
MAX_BYTES = 256 * 1024
NAMES = ("eos_token", "bos_token", "pad_token")

_SETTING = re.compile(r"^([A-Za-z_][\w-]*):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_FENCE = re.compile(r"^```ya?ml[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True, slots=True)
class Specials:
    """Special tokens of a tokenizer, by the names of tokenizer_config.json; those without an id are left out."""

    ids: Mapping[str, int] = field(default_factory=dict)
    has_template: bool = False


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside an adapter, and the same of its base where the two are compared."""

    settings: Mapping[str, Json] = field(default_factory=dict)  # file → its settings of one line, all as text
    tokens: Specials | None = None  # of the adapter's tokenizer; None where it brings none
    base_tokens: Specials | None = None
    base_ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # name → ids, of generation_config or config
    other_adapters: tuple[str, ...] = ()  # folders with an adapter that this one is not
    receipt: Json = field(default_factory=dict)  # of the merge that the base came from; empty where there is none


def look_beside(checkpoint: Checkpoint, adapter: Adapter) -> Beside:
    """Read the small files of both folders.

    Raises:
        InputError, FormatError: a tokenizer's or a generation's config is malformed, or a file cannot be read.
    """
    tokens = _specials(adapter.folder, adapter.side_files)
    return Beside(
        dict(_settings(adapter)),
        tokens,
        _specials(checkpoint.folder, checkpoint.side_files) if tokens is not None else None,
        _base_ids(checkpoint),
        tuple(_others(adapter)),
        read_json_object(receipt) if (receipt := checkpoint.folder / MERGE_RECORD).is_file() else {},
    )


def lines_of(text: str) -> dict[str, str]:
    """Settings of one line at the left margin, without quotes and comments."""
    return {name: _plain(value) for name, value in _SETTING.findall(text)}


def _plain(value: str) -> str:
    value = value.split(" #")[0].strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _settings(adapter: Adapter) -> Iterator[tuple[str, Json]]:
    """The README's front matter, the Axolotl config in it, and YAML files right beside the adapter."""
    for name in file_names(adapter.folder):
        if name == README:
            text = _text(adapter.folder, name)
            if text.startswith("---\n"):
                yield README, lines_of(text[4:].partition("\n---")[0])
            start = text.lower().find("axolotl config")
            if start >= 0 and (fence := _FENCE.search(text, start)):
                yield AXOLOTL, lines_of(fence[1])
        elif name.endswith((".yaml", ".yml")):
            yield name, lines_of(_text(adapter.folder, name))


def _text(folder: Path, name: str) -> str:
    with open_regular(inside(folder, name)) as file:
        raw = bytearray(min(file.n_bytes, MAX_BYTES))
        read_exact(file, 0, raw)
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _specials(folder: Path, files: tuple[str, ...]) -> Specials | None:
    if "tokenizer_config.json" not in files:
        return None
    config = read_json_object(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder")
    known = {_content(t): int(i) for i, t in added.items() if i.isdigit()} if isinstance(added, dict) else {}
    names = {name: token for name in NAMES if (token := _content(config.get(name)))}
    if not known.keys() >= set(names.values()):
        known = {**known, **(read_vocabulary(folder) or {})}
    ids = {name: known[token] for name, token in names.items() if token in known}
    return Specials(ids, has_template(folder, files))


def _content(token: Any) -> str:
    """The text of a token, which is saved as text or as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else ""


def _base_ids(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """What the base's generation stops at, begins with and pads with."""
    sources: list[Json] = [checkpoint.config]
    text = checkpoint.config.get("text_config")
    if isinstance(text, Mapping):
        sources.append(text)
    if "generation_config.json" in checkpoint.side_files:
        sources.insert(0, read_json_object(checkpoint.folder / "generation_config.json"))
    found = {}
    for name in NAMES:
        values = next((s[f"{name}_id"] for s in sources if s.get(f"{name}_id") is not None), None)
        ids = tuple(i for i in (values if isinstance(values, list) else [values]) if isinstance(i, int))
        if ids:
            found[name] = ids
    return found


def _others(adapter: Adapter) -> Iterator[str]:
    """Adapters in subfolders, or beside an adapter that was itself found in one; a trainer's checkpoints are none."""
    root = adapter.folder if adapter.name == "default" else adapter.folder.parent
    if adapter.name != "default" and ADAPTER_CONFIG in file_names(root):
        yield "."
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != "."):
        if folder != adapter.folder and not _CHECKPOINT.fullmatch(folder.name) and ADAPTER_CONFIG in file_names(folder):
            yield folder.name
