"""Identity of inputs: a cheap fingerprint of a checkpoint, and the sha256 of a stored tensor and of a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from suture.errors import InputError
from suture.formats.files import open_regular, read_exact
from suture.formats.reading import TensorReader
from suture.values import Checkpoint, TensorInfo

BLOCK_BYTES = 4096
N_BLOCKS = 3
_CHUNK_BYTES = 1 << 20


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over each stored tensor's name, dtype, shape and a few blocks of its bytes, in the order of the names.

    It does not depend on sharding, file names or the order in files. The blocks lie where the sha256 of the name says,
    so a changed tensor is found only if a sampled block changed: it tells models apart, it does not prove equality.
    """
    if not checkpoint.tensors:
        raise InputError("a checkpoint without weights has no fingerprint", where=str(checkpoint.folder))
    total = hashlib.sha256()
    block = bytearray(BLOCK_BYTES)
    with TensorReader(checkpoint.folder) as reader:
        for name, info in sorted(checkpoint.stored.items()):
            total.update(json.dumps([name, info.dtype, info.shape]).encode())
            for position in _positions(info):
                view = memoryview(block)[: min(BLOCK_BYTES, info.n_bytes)]
                reader.read_into(info, position, view)
                total.update(view)
    return total.hexdigest()


def _positions(info: TensorInfo) -> list[int]:
    """Where the tensor's sampled blocks begin, in bytes from its own begin."""
    last = info.n_bytes - BLOCK_BYTES
    if last <= 0:
        return [0] if info.n_bytes else []
    seed = hashlib.sha256(info.name.encode()).digest()
    return [int.from_bytes(seed[8 * i : 8 * i + 8], "big") % (last + 1) for i in range(N_BLOCKS)]


def stored_sha256(reader: TensorReader, tensor: TensorInfo) -> str:
    """sha256 of a tensor's bytes in its file, hexadecimal. Raises InputError if they cannot be read."""
    total = hashlib.sha256()
    for block in reader.blocks(tensor):
        total.update(block.data)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal. Raises InputError if it cannot be read."""
    total = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    with open_regular(path) as file:
        for offset in range(0, file.n_bytes, _CHUNK_BYTES):
            view = memoryview(buffer)[: min(_CHUNK_BYTES, file.n_bytes - offset)]
            read_exact(file, offset, view)
            total.update(view)
    return total.hexdigest()
