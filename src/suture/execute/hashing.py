"""The sha256 of the files of a merge: of those that are written, of links, of the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from suture.execute.inputs import Inputs
from suture.execute.pieces import Piece, header_bytes
from suture.execute.prefix import Hash, NoHash, PrefixHash
from suture.execute.staging import Stage
from suture.formats import file_sha256
from suture.formats.files import open_regular, read_exact
from suture.values import OutputFile


def hashes_of(files: Iterable[OutputFile], stage: Stage, pieces: Sequence[Piece], done: Set[int]) -> dict[str, Hash]:
    """The hash of each weight file, with its header, and told of the pieces that are there."""
    hashes: dict[str, Hash] = {}
    for file, bounds in _bounds(files, pieces):
        hashes[file.name] = PrefixHash(bounds, partial(stage.read, file.name))
        hashes[file.name].feed(0, memoryview(header_bytes(file)))
    return _told(hashes, pieces, done)


def counts_of(files: Iterable[OutputFile], pieces: Sequence[Piece], done: Set[int]) -> dict[str, Hash]:
    """The same without hashing."""
    return _told({file.name: NoHash(bounds) for file, bounds in _bounds(files, pieces)}, pieces, done)


def _bounds(files: Iterable[OutputFile], pieces: Sequence[Piece]) -> Iterator[tuple[OutputFile, list[int]]]:
    """Where the header and each piece of a file begin, and where the file ends."""
    for file in files:
        yield file, [0, *(piece.begin for piece in pieces if piece.file == file.name), file.n_bytes]


def _told(hashes: dict[str, Hash], pieces: Sequence[Piece], done: Set[int]) -> dict[str, Hash]:
    for name in hashes:
        hashes[name].finish(0)  # its header
    for piece in pieces:
        if piece.number in done:
            hashes[piece.file].finish(piece.begin)
    return hashes


def hashes_of_links(links: Mapping[str, Path]) -> dict[str, Hash]:
    """The hashes of files that are not written, but read from where they are."""
    hashes: dict[str, Hash] = {}
    for name, path in links.items():
        hashes[name] = PrefixHash((0, path.stat().st_size), partial(_read, path))
        hashes[name].finish(0)
    return hashes


def _read(path: Path, offset: int, buffer: memoryview) -> None:
    with open_regular(path) as file:
        read_exact(file, offset, buffer)


def hashes_of_base(inputs: Inputs, stage: Stage, workers: int) -> dict[str, str]:
    """The sha256 of each weight file of the base, by name."""

    def one(name: str) -> str:
        stage.check()
        return file_sha256(inputs.checkpoint.folder / name)

    names = sorted(shard.name for shard in inputs.checkpoint.shards)
    with ThreadPoolExecutor(workers, "suture-hash") as pool:
        return dict(zip(names, pool.map(one, names), strict=True))
