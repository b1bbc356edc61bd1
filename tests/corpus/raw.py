"""Safetensors files spelt out by hand, so that they can be wrong."""

import json
import struct


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **extra):
    """One tensor of a header; eight bytes unless told otherwise."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **extra}


def packed(header, data=b"", length=None):
    """A whole file: `header` is JSON data, text or bytes; `length` lies about the header's size."""
    if isinstance(header, (dict, list)):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


VALID = packed({"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("BF16", (2, 3), (8, 20))}, bytes(range(20)))
