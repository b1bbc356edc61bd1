"""Bytes ↔ headers: the only readers of model files. Header stages import no torch and read no weight."""

from suture.formats.adapters.peft import read_adapter
from suture.formats.checkpoint import base_on_disk, read_checkpoint, read_dense
from suture.formats.fingerprint import file_sha256, fingerprint, stored_sha256
from suture.formats.kind import parts_of
from suture.formats.listing import other_weights
from suture.formats.reading import TensorReader

__all__ = [
    "TensorReader",
    "base_on_disk",
    "file_sha256",
    "fingerprint",
    "other_weights",
    "parts_of",
    "read_adapter",
    "read_checkpoint",
    "read_dense",
    "stored_sha256",
]
