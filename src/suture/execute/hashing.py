"""The sha256 of the files of a merge: of those that are written, of links, of the base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from suture.execute.pieces import Piece, header_bytes
from suture.execute.prefix import Hash, NoHash, PrefixHash
from suture.execute.staging import Stage
from suture.formats import file_sha256
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
    begins: dict[str, list[int]] = {}
    for piece in pieces:
        begins.setdefault(piece.file, []).append(piece.begin)
    for file in files:
        yield file, [0, *begins.get(file.name, ()), file.n_bytes]


def _told(hashes: dict[str, Hash], pieces: Sequence[Piece], done: Set[int]) -> dict[str, Hash]:
    for name in hashes:
        hashes[name].finish(0)  # its header
    for piece in pieces:
        if piece.number in done:
            hashes[piece.file].finish(piece.begin)
    return hashes


def hashes_of_read(files: Mapping[str, Path], stage: Stage, workers: int) -> dict[str, str]:
    """The sha256 of weight files that are read and not written, by name: of links, of the base.

    Raises:
        InputError: one cannot be read. Interrupted: the run is to stop.
    """

    def one(path: Path) -> str:
        stage.check()
        return file_sha256(path)

    with ThreadPoolExecutor(workers, "suture-hash") as pool:
        return dict(zip(files, pool.map(one, files.values()), strict=True))
