"""A finished model folder as it is, with nothing assumed to be whole or to agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from suture.arch import describe
from suture.errors import FormatError, InputError, MissingExtra
from suture.formats import TensorReader, file_sha256, hub
from suture.formats.attempt import attempt
from suture.formats.checkpoint import CONFIG, INDEX, PICKLED, SINGLE
from suture.formats.dtypes import DTYPES
from suture.formats.files import inside, read_lines
from suture.formats.jsonfile import MAX_JSON_BYTES, read_json_object
from suture.formats.listing import ADAPTER_CONFIG, MERGE_RECORD, file_sizes, is_private
from suture.formats.model_config import at_every_level
from suture.formats.quantized import DESCRIPTIONS
from suture.formats.quantized.signs import Quantized, find_quantized
from suture.formats.safetensors import read_header
from suture.formats.sameness import count_not_finite, same_bytes
from suture.formats.vocabulary import read_vocabulary
from suture.values import Arch, Json, Part, TensorInfo

TEMPLATE = "chat_template.jinja"
DOCUMENTS = (
    *(INDEX, "generation_config.json", "tokenizer_config.json", "chat_template.json", MERGE_RECORD),
    *(*DESCRIPTIONS, ADAPTER_CONFIG),
)
FLAG = "tie_word_embeddings"
_NO_TEXT = ("vision", "visual", "image", "video", "audio", "speech", "qformer", "perceiver")
_FOLLOWED = ("gives ", "a second tensor for ")  # what `Arch.opaque` says of tensors whose parameter is known
_SHARD = re.compile(r"^model-\d+-of-\d+\.safetensors$")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the files of a model folder say, each for itself."""

    folder: Path
    files: Mapping[str, int]  # every file below the folder → its size in bytes
    config: Json  # of config.json; empty where it cannot be read
    documents: Mapping[str, Json]  # those of DOCUMENTS that are there and can be read
    unreadable: Mapping[str, str]  # file → what is wrong with it
    headers: Mapping[str, tuple[TensorInfo, ...]]  # safetensors file → its tensors; adapters' files are not among them
    weights: tuple[str, ...]  # the files of `headers` that a loader takes
    tensors: Mapping[str, TensorInfo]  # of those; where a name comes twice, the first
    arch: Arch | None  # None where config.json or the weights do not tell
    undescribed: str = ""  # why `arch` is None, where that is not the folder's fault
    missing: tuple[str, ...] = ()  # parameters that no file fills, though the class wants them there
    flags: Mapping[tuple[str, ...], bool] = field(default_factory=dict)  # path → what the config says of ties there
    quantized: Quantized = field(default_factory=lambda: find_quantized({}))
    vocabulary: Mapping[str, int] | None = None  # token → id, of the tokenizer in the folder
    template: str | None = None  # of chat_template.jinja
    same: Mapping[tuple[str, str], bool] = field(
        default_factory=dict
    )  # two tensors of one vocabulary → equal, as far as read
    not_finite: Mapping[str, tuple[int, int]] | None = None  # tensor → NaN, infinite; None when only headers were read
    sha256: Mapping[str, str] | None = None  # of the files that a merge's record names; None as above

    def tensor_of(self, param: str) -> TensorInfo | None:
        """The tensor that is this parameter as a whole, if there is one."""
        for part in self.arch.parts if self.arch else ():
            if part.param == param and _is_whole(part) and part.tensor in self.tensors:
                return self.tensors[part.tensor]
        return None


def read_model_folder(source: str | Path, *, revision: str | None = None, deep: bool = False) -> ModelFolder:
    """Read a finished model as it is: what cannot be read is told in `unreadable`, not raised.

    Args:
        source: a folder, or the id of a Hub repository.
        revision: branch, tag or commit of the Hub repository.
        deep: read all values too: NaN and infinities, both ends of the vocabulary to their last byte, and the hashes of
            a merge's record.

    Raises:
        InputError: the source does not exist or cannot be listed.
        FormatError: there is no model in it.
    """
    folder = hub.locate(source, revision)
    sizes = file_sizes(folder)
    _require_model(folder, sizes)
    bad = {name: "a link to nothing, or no regular file" for name, size in sizes.items() if size is None}
    files = {name: size for name, size in sizes.items() if size is not None}
    config = attempt(bad, CONFIG, partial(_config, folder, sizes)) or {}
    found = {n: attempt(bad, n, partial(_document, folder, n)) for n in DOCUMENTS if n in files}
    documents = {name: data for name, data in found.items() if data is not None}
    headers = _headers(folder, files, bad)
    weights = _weights(headers, documents, bad)
    tensors = {t.name: t for name in reversed(weights) for t in headers[name]}
    arch, undescribed = _describe(config, tensors, bad)
    quantized = find_quantized(tensors)
    with TensorReader(folder) as reader:
        return ModelFolder(
            folder=folder,
            files=files,
            config=config,
            documents=documents,
            unreadable=bad,
            headers=headers,
            weights=weights,
            tensors=tensors,
            arch=arch,
            undescribed=undescribed,
            missing=_missing(config, arch) if arch and not _is_cut(headers, documents, bad) else (),
            flags=_flags(config, tensors, arch) if arch else {},
            quantized=quantized,
            vocabulary=attempt(bad, "tokenizer.json", partial(read_vocabulary, folder)),
            template=attempt(bad, TEMPLATE, partial(_text, folder, TEMPLATE)) if TEMPLATE in files else None,
            same=_compare(arch, tensors, reader, deep=deep) if arch else {},
            not_finite=_values(tensors, reader) if deep else None,
            sha256=_hashes(folder, files, documents) if deep else None,
        )


def _require_model(folder: Path, sizes: Mapping[str, int | None]) -> None:
    where, expected = str(folder), "config.json and model.safetensors, or its shards and index"
    has_weights = any(_is_weights(name) or PICKLED.match(name) for name in sizes)
    if has_weights or (CONFIG in sizes and INDEX in sizes):
        return
    if CONFIG not in sizes and ADAPTER_CONFIG in sizes:
        found = f"{ADAPTER_CONFIG} but no {CONFIG}: this is an adapter"
        raise FormatError(found, where=where, expected="a finished model")
    found = "there are no weights" if CONFIG in sizes else f"there is no {CONFIG}"
    raise FormatError(found, where=where, expected=expected)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name and not name.startswith(".") and not is_private(name)


def _config(folder: Path, sizes: Mapping[str, int | None]) -> dict[str, Any]:
    if CONFIG not in sizes:
        raise FormatError("it is not there")
    return read_json_object(inside(folder, CONFIG))


def _document(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(inside(folder, name))


def _text(folder: Path, name: str) -> str:
    return read_lines(inside(folder, name), MAX_JSON_BYTES)


def _headers(folder: Path, files: Mapping[str, int], bad: dict[str, str]) -> dict[str, tuple[TensorInfo, ...]]:
    names = [name for name in files if _is_weights(name)]
    headers = {name: attempt(bad, name, partial(read_header, folder, name)) for name in names}
    return {name: header.tensors for name, header in headers.items() if header is not None}


def _weights(headers: Mapping[str, Any], documents: Mapping[str, Json], bad: dict[str, str]) -> tuple[str, ...]:
    """The files that Transformers takes: the single one, or those of the index; without either, all shards."""
    listed = documents.get(INDEX, {}).get("weight_map", {} if INDEX not in documents else None)
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        bad[INDEX] = "weight_map is not a table of tensor name → file name"
        listed = {}
    if SINGLE in headers and SINGLE not in listed.values():
        return (SINGLE,)
    if listed:
        return tuple(sorted({file for file in listed.values() if file in headers}))
    return tuple(sorted(name for name in headers if _SHARD.match(name))) or tuple(sorted(headers))


def _describe(config: Json, tensors: Mapping[str, TensorInfo], bad: dict[str, str]) -> tuple[Arch | None, str]:
    if not config or not tensors:
        return None, ""
    try:
        return describe(config, tensors), ""
    except FormatError as error:
        bad[CONFIG] = error.found
        return None, ""
    except MissingExtra as error:
        return None, str(error)


def _is_cut(headers: Mapping[str, Any], documents: Mapping[str, Json], bad: Mapping[str, str]) -> bool:
    """Whether a whole weight file is gone or cannot be read: then what it held is no finding of its own."""
    listed = documents.get(INDEX, {}).get("weight_map")
    files = {str(file) for file in listed.values()} if isinstance(listed, dict) and INDEX not in bad else set()
    return any(_is_weights(name) for name in bad) or (bool(files & headers.keys()) and not files <= headers.keys())


def _missing(config: Json, arch: Arch) -> tuple[str, ...]:
    """Parameters that no tensor fills, nor a tie; those that the class draws itself on purpose do not count."""
    filled = {part.param for part in arch.parts}
    for tie in arch.ties:
        filled |= set(tie.members) if filled & set(tie.members) else set()
    missing = [p for p in arch.params if p not in filled and not any(p in why for why in arch.opaque.values())]
    if any(not why.startswith(_FOLLOWED) for why in arch.opaque.values()):
        missing = [p for p in missing if not _may_be_converted(p, arch)]
    if not missing:
        return ()
    from suture.arch.meta import find_class  # only now: it loads Transformers

    optional = getattr(find_class(config), "_keys_to_ignore_on_load_missing", None) or ()
    return tuple(p for p in missing if not any(re.search(pattern, p) for pattern in optional))


def _may_be_converted(name: str, arch: Arch) -> bool:
    """Whether a parameter may be what a conversion gives that cannot be followed: a matrix inside the model."""
    param = arch.params[name]
    return len(param.shape) > 1 and param.kind != "Embedding" and param.module != arch.output_embedding


def _flags(config: Json, tensors: Mapping[str, TensorInfo], arch: Arch) -> dict[tuple[str, ...], bool]:
    """What config.json says of ties at each level, and the class's default where a level that says "tied" is silent."""
    said = {p: v for p, v in at_every_level(config, FLAG) if isinstance(v, bool) and not _is_spare(p)}
    levels = arch.tie_flags
    if not arch.ties and said.get((FLAG,)) is False and any(isinstance(v, Mapping) for v in config.values()):
        try:
            levels = describe({**config, FLAG: True}, tensors).tie_flags
        except InputError:
            levels = ()
    silent = {p: True for p in levels if p not in said and not _is_spare(p) and (p != (FLAG,) or arch.ties)}
    return {**said, **silent}


def _is_spare(path: tuple[str, ...]) -> bool:
    """Whether a flag is of a tower that reads no text: older versions wrote every default there."""
    return any(word in key for key in path for word in _NO_TEXT)


def _compare(
    arch: Arch, tensors: Mapping[str, TensorInfo], reader: TensorReader, *, deep: bool
) -> dict[tuple[str, str], bool]:
    """Stored tensors of one tie, or of the two ends of the vocabulary: pairs, and whether they are equal."""
    stored: dict[str, TensorInfo] = {}
    for part in arch.parts:
        if _is_whole(part) and part.tensor in tensors:
            stored.setdefault(part.param, tensors[part.tensor])
    groups = [tie.members for tie in arch.ties]
    ends = (f"{arch.input_embedding}.weight", f"{arch.output_embedding}.weight")
    if not any(set(ends) <= set(members) for members in groups):
        groups.append(ends)
    same = {}
    for members in groups:
        found = [stored[m] for m in members if m in stored]
        for other in found[1:]:
            if other.name != found[0].name:
                same[found[0].name, other.name] = same_bytes(reader, found[0], reader, other, sampled=not deep)
    return same


def _is_whole(part: Part) -> bool:
    return not part.index and part.rows is None and not part.transpose


def _values(tensors: Mapping[str, TensorInfo], reader: TensorReader) -> dict[str, tuple[int, int]]:
    return {n: count_not_finite(reader, t) for n, t in sorted(tensors.items()) if DTYPES[t.dtype].computable}


def _hashes(folder: Path, files: Mapping[str, int], documents: Mapping[str, Json]) -> dict[str, str]:
    """sha256 of the files that the record of a merge names, as they are now."""
    named = documents.get(MERGE_RECORD, {}).get("sha256")
    names = [n for n in named if n in files] if isinstance(named, dict) else []
    return {name: file_sha256(inside(folder, name)) for name in names}
