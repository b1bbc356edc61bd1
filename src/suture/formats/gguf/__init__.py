"""A GGUF file, read as the Hugging Face model that it stands for. No weight is read.

Its tensors become dense ones, decoded by the scheme `gguf` as they are needed: F32, which is what llama.cpp and
Transformers compute from quantised types; F16 or BF16 where the file holds only such numbers. Config and tokenizer are
generated into a private folder, which is the checkpoint's.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from suture.errors import FormatError, InputError
from suture.formats.files import quoted
from suture.formats.gguf.folder import link_name, prepared
from suture.formats.gguf.generated import Source
from suture.formats.gguf.header import read_header
from suture.formats.gguf.weights import Target, dense_tensors
from suture.formats.jsonfile import read_json_object
from suture.formats.listing import side_files
from suture.formats.quantized.gguf import SCHEME
from suture.values import Checkpoint, Quantization, Shard

__all__ = ["read_gguf"]

MAX_PARTS = 1 << 10

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<rest>\.gguf)")
_log = logging.getLogger(__name__)


def read_gguf(path: Path) -> Checkpoint:
    """The model in a GGUF file, or in the parts of one, from its headers; the first time, Transformers reads its keys.

    Args:
        path: the file; one of the parts …-00001-of-00003.gguf stands for all of them.

    Raises:
        InputError: a file cannot be read, or the private folder cannot be written.
        FormatError: a file is malformed, or makes no model that is known.
        MissingExtra: the package gguf is not installed.
    """
    paths = _parts(path)
    source = Source(paths, tuple(read_header(part, link_name(part)) for part in paths))
    _check_parts(source)
    folder, table = prepared(source)
    config = read_json_object(folder / "config.json")
    shapes = {name: tuple(shape) for name, shape in table["shapes"].items()}
    target = Target(source.architecture, config, table["dtype"], table["names"], shapes)
    found = dense_tensors(source.tensors.values(), target, source.where)
    for note in table["notes"]:
        _log.warning("%s: %s", path, note)
    types = Counter(one.packed.settings["type"] for one in found.values())
    return Checkpoint(
        folder=folder,
        config=config,
        tensors={name: one.info for name, one in found.items()},
        shards=tuple(Shard(header.file, header.n_bytes, {}) for header in source.headers),
        index_file=None,
        index_metadata={},
        side_files=side_files(folder),
        packed={name: one.packed for name, one in found.items()},
        quantization=Quantization("gguf", SCHEME.words(dict(types.most_common())), target.dtype, config),
    )


def _parts(path: Path) -> tuple[Path, ...]:
    """The files of a model, the first one first."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    total = int(match["total"])
    if not 0 < total <= MAX_PARTS or not 0 < int(match["number"]) <= total:
        raise FormatError("the number of a part", where=str(path), expected=f"1 to {min(total, MAX_PARTS)}")
    paths = [path.with_name(f"{match['stem']}-{k:05}-of-{total:05}{match['rest']}") for k in range(1, total + 1)]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise InputError(
            f"parts are missing: {', '.join(map(quoted, missing[:3]))}",
            where=str(path),
            expected=f"all {total} in the same folder",
            do="Finish the download or the copy.",
        )
    return tuple(paths)


def _check_parts(source: Source) -> None:
    """The files are those of one model, and no tensor is in two of them."""
    n_parts, n_tensors = len(source.headers), sum(len(header.tensors) for header in source.headers)
    for number, (path, header) in enumerate(zip(source.paths, source.headers, strict=True)):
        said = (header.get("split.no", 0), header.get("split.count", 0) or 1)
        if said != (number, n_parts):
            raise FormatError(
                f"split.no and split.count are {quoted(said)}",
                where=str(path),
                expected=f"{number} and {n_parts}, as the name says",
                do="Give the file the name that it was written with, beside the other parts.",
            )
    stated, n_names = source.headers[0].get("split.tensors.count", n_tensors), len(source.tensors)
    if not stated == n_tensors == n_names:
        raise FormatError(
            f"{n_tensors} tensors of {n_names} names", where=source.where, expected=f"{quoted(stated)} of each"
        )
