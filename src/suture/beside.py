"""What the small files beside an adapter tell: its README, a trainer's settings, the tokenizer's special tokens.

Only settings of one line are read (`name: value`), line by line and not by a YAML reader: such files come from anyone.
They are hints, so what cannot be read is passed over: a README that is a link out of its folder stops nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from suture.formats import other_weights
from suture.formats.attempt import attempt
from suture.formats.files import inside, open_regular, read_exact
from suture.formats.jsonfile import read_json_object
from suture.formats.listing import ADAPTER_CONFIG, CHECKPOINT, MERGE_RECORD, file_names
from suture.formats.model_config import text_levels
from suture.formats.vocabulary import has_template, read_vocabulary, token_text
from suture.values import Adapter, Checkpoint, Json

README = "README.md"
AXOLOTL = "README.md, Axolotl config"
MAX_BYTES = 256 * 1024
MAX_LINE = 2000  # longer ones hold no setting that is looked for
MAX_DIGITS = 19  # of a token's id
NAMES = ("eos_token", "bos_token", "pad_token")

_NAME = re.compile(r"[A-Za-z_][\w-]*")
_NO_SCALAR = ("|", ">", "&", "*", "!", "{", "[")  # how YAML begins what is no text of one line
_SECTION = re.compile("axolotl config", re.IGNORECASE)
_FENCE = re.compile(r"^```ya?ml[ \t]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


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
    base_names: tuple[str, ...] = ()  # the base's folder: where it really lies, and as it was given
    base_adapter: tuple[str, ...] = ()  # files of an adapter right beside the base's weights
    unmerged: tuple[str, ...] = ()  # weight files beside the adapter that belong neither to it nor to a trainer


def look_beside(checkpoint: Checkpoint, adapter: Adapter) -> Beside:
    """Read the small files of both folders.

    Raises:
        InputError, FormatError: a tokenizer's or a generation's config is malformed or cannot be read, or a folder
            cannot be listed.
    """
    tokens = _specials(adapter.folder, adapter.side_files)
    base = checkpoint.folder
    return Beside(
        settings=dict(_settings(adapter)),
        tokens=tokens,
        base_tokens=_specials(base, checkpoint.side_files) if tokens is not None else None,
        base_ids=_base_ids(checkpoint),
        other_adapters=tuple(_others(adapter)),
        receipt=attempt({}, MERGE_RECORD, lambda: read_json_object(base / MERGE_RECORD)) or {},
        base_names=(os.path.realpath(base), str(base)),
        base_adapter=tuple(n for n in file_names(base) if n == ADAPTER_CONFIG or n.startswith("adapter_model.")),
        unmerged=_unmerged(checkpoint, adapter),
    )


def lines_of(text: str) -> dict[str, str]:
    """Settings of one line at the left margin, without quotes and comments.

    A list of one element counts as that element; longer lists, tables and texts of several lines are left out.
    """
    found = {}
    for line in text.split("\n"):
        name, colon, value = line[:MAX_LINE].partition(":")
        is_setting = colon and value[:1] in (" ", "\t") and len(line) <= MAX_LINE and _NAME.fullmatch(name)
        if is_setting and (plain := _plain(value)) is not None:
            found[name] = plain
    return found


def _plain(value: str) -> str | None:
    """The text of a value; None where it is none of one line."""
    value = value.split(" #")[0].strip()
    if value.startswith("[") and value.endswith("]") and "," not in value:
        value = value[1:-1].strip()
    if not value or value.startswith(_NO_SCALAR):
        return None
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _settings(adapter: Adapter) -> Iterator[tuple[str, Json]]:
    """The README's front matter, the Axolotl config in it, and YAML files right beside the adapter."""
    for name in file_names(adapter.folder):
        if name == README:
            text = _text(adapter.folder, name)
            if text.startswith("---\n"):
                yield README, lines_of(text[4:].partition("\n---")[0])
            section = _SECTION.search(text)
            if section and (fence := _FENCE.search(text, section.end())):
                yield AXOLOTL, lines_of(fence[1])
        elif name.endswith((".yaml", ".yml")):
            yield name, lines_of(_text(adapter.folder, name))


def _text(folder: Path, name: str) -> str:
    """The beginning of a file; nothing where it cannot be read."""
    raw = attempt({}, name, lambda: _beginning(inside(folder, name))) or b""
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def _beginning(path: Path) -> bytes:
    with open_regular(path) as file:
        raw = bytearray(min(file.n_bytes, MAX_BYTES))
        read_exact(file, 0, raw)
    return bytes(raw)


def _specials(folder: Path, files: tuple[str, ...]) -> Specials | None:
    if "tokenizer_config.json" not in files:
        return None
    config = read_json_object(folder / "tokenizer_config.json")
    added = config.get("added_tokens_decoder")
    known = dict(_numbered(added)) if isinstance(added, dict) else {}
    names = {name: token for name in NAMES if (token := token_text(config.get(name)))}
    if not known.keys() >= set(names.values()):
        known = {**known, **(read_vocabulary(folder) or {})}
    ids = {name: known[token] for name, token in names.items() if isinstance(known.get(token), int)}
    return Specials(ids, has_template(folder, files))


def _numbered(added: Json) -> Iterator[tuple[str, int]]:
    """Added tokens and their ids, which are the keys."""
    for number, token in added.items():
        text = token_text(token)
        if text and number.isdecimal() and len(number) < MAX_DIGITS:
            yield text, int(number)


def _base_ids(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """What the base's generation stops at, begins with and pads with."""
    sources = [*text_levels(checkpoint.config)]
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
    if adapter.name != "default" and ADAPTER_CONFIG in _listed(root):
        yield "."
    for folder in _folders(root):
        if folder != adapter.folder and not CHECKPOINT.fullmatch(folder.name) and ADAPTER_CONFIG in _listed(folder):
            yield folder.name


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if p.is_dir() and not p.is_symlink() and p.name[0] != ".")
    except OSError:
        return []


def _listed(folder: Path) -> list[str]:
    """The files right in a folder; none where it cannot be listed."""
    return attempt({}, folder.name, lambda: file_names(folder)) or []


def _unmerged(checkpoint: Checkpoint, adapter: Adapter) -> tuple[str, ...]:
    used = {adapter.file}
    if os.path.realpath(adapter.folder) == os.path.realpath(checkpoint.folder):
        used |= {shard.name for shard in checkpoint.shards}
    return other_weights(adapter.folder, used)
