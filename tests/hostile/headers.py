"""What must hold for any bytes taken for a safetensors file: as the reference reads it, or a refusal with a reason."""

from __future__ import annotations

import re
from pathlib import Path

from corpus.raw import VALID, entry, packed

from suture.errors import FormatError
from suture.formats.safetensors import read_header

SEEDS = (
    VALID,
    packed({}),
    packed({"w": entry("F4", (3, 2), (0, 3)), "s": entry("F8_E8M0", (), (3, 4))}, bytes(4)),
    packed({"__metadata__": {"format": "pt", "é": "\\"}, "é/\n": entry("U8", (0, 7), (0, 0))}),
    packed({f"layers.{i}.w": entry("BF16", (2, 2), (8 * i, 8 * i + 8)) for i in range(4)}, bytes(range(32))),
)
# Where the reference reads a file and Suture does not: what Suture says, and why it is stricter.
STRICTER = {
    "does not begin with '{'": "the format demands it; the reference also takes spaces before it",
    "__metadata__ is not a table of texts": "the format knows no other; `null` is none",
    "its entry has": "the format wants an object with three fields; the reference also takes an array of them",
    "appears twice": "of two metadata entries of a name, readers differ in which one counts",
    "the shape is": "more axes than numpy has, or one longer than any signed index",
    "the shape .* overflows": "beside an axis of length 0: the product of the others is used as a stride",
}


def by_reference(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the safetensors library says a file holds: name → (dtype, shape, bytes); None where it refuses."""
    from safetensors import SafetensorError, deserialize

    try:
        return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in deserialize(path.read_bytes())}
    except SafetensorError:
        return None


def check(data: bytes, folder: Path) -> bool:
    """Whether the file is read; AssertionError where that is wrong. Anything but a FormatError passes through."""
    path = folder / "t.safetensors"
    path.write_bytes(data)
    theirs = by_reference(path)
    try:
        header = read_header(folder, path.name)
    except FormatError as error:
        assert len(str(error)) < 2000
        str(error).encode()  # can be printed
        assert theirs is None or any(re.search(reason, error.found) for reason in STRICTER), error
        return False
    assert theirs is not None, "the reference refuses the file"
    assert {t.name: (t.dtype, t.shape, data[t.begin : t.end]) for t in header.tensors} == theirs
    assert [t.begin for t in header.tensors[1:]] == [t.end for t in header.tensors[:-1]]
    return True
