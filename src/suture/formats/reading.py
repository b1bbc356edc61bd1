"""Reading tensors by byte range: one descriptor a file, positioned reads into the caller's buffers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from suture.errors import FormatError
from suture.formats.dtypes import DTYPES, compute_dtype, to_float
from suture.formats.files import Buffer, OpenFile, bytes_of, inside, open_file, quoted, read_exact
from suture.formats.quantized.decoder import Decoder
from suture.values import Checkpoint, Packed, TensorInfo

BLOCK_BYTES = 16 << 20  # of `TensorReader.blocks`


class TensorReader:
    """Reads the tensors of one folder. Use it in a `with` block; any number of threads may share it.

    Args:
        packed: what the dense tensors that no file holds are decoded from.
    """

    def __init__(self, folder: Path, packed: Mapping[str, Packed] | None = None) -> None:
        self._folder = folder
        self.packed = packed or {}
        self._decoder = Decoder(self.packed, self.read_into)
        self._files: dict[str, OpenFile] = {}
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> TensorReader:
        """A reader of the checkpoint's tensors."""
        return cls(checkpoint.folder, checkpoint.packed)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every file. Reading afterwards is an error."""
        with self._lock:
            self._closed = True
            while self._files:
                os.close(self._files.popitem()[1].fd)

    def read_into(self, info: TensorInfo, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` (bytes into the tensor) on.

        Raises:
            InputError: the file cannot give these bytes; names file and tensor.
            ValueError: the range is not inside the tensor, or the buffer is not contiguous.
        """
        n_bytes = buffer.nbytes if isinstance(buffer, (np.ndarray, memoryview)) else len(buffer)
        if not 0 <= offset <= offset + n_bytes <= info.n_bytes:
            raise ValueError(f"bytes {offset}:{offset + n_bytes} of {info.name}, which has {info.n_bytes}")
        if info.is_stored:
            read_exact(self._file(info.file), info.begin + offset, buffer, tensor=info.name)
        else:
            self._decoder.read_into(info, offset, bytes_of(buffer))

    def blocks(self, info: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        """The tensor's bytes in order, a block at a time; a block is overwritten by the next one."""
        buffer = np.empty(min(BLOCK_BYTES, info.n_bytes), np.uint8)
        for begin in range(0, info.n_bytes, BLOCK_BYTES):
            block = buffer[: min(BLOCK_BYTES, info.n_bytes - begin)]
            self.read_into(info, begin, block)
            yield block

    def array(self, info: TensorInfo) -> npt.NDArray[Any]:
        """The tensor as it is stored, in its dtype's storage type (BF16: uint16) and of shape `info.shape`."""
        storage = DTYPES[info.dtype].storage
        if storage is None:
            raise FormatError(f"{info.dtype} packs several values into a byte", where=self._where(info))
        raw = np.empty(info.shape, storage)
        self.read_into(info, 0, raw)
        return raw

    def rows(self, info: TensorInfo, cols: int, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start:stop of the tensor, read as a matrix of `cols` columns: float32, or float64 for F64.

        Raises:
            FormatError: values of this dtype cannot be computed with.
        """
        dtype = DTYPES[info.dtype]
        if not dtype.computable or dtype.storage is None:
            raise FormatError(
                f"{info.dtype} values cannot be computed with",
                where=self._where(info),
                expected=", ".join(d.name for d in DTYPES.values() if d.computable),
                do="Use the unquantised weights of the model.",
            )
        raw = np.empty((stop - start, cols), dtype.storage)
        self.read_into(info, start * cols * dtype.storage.itemsize, raw)
        return raw if raw.dtype == compute_dtype(info.dtype) else to_float(raw, info.dtype)

    def _file(self, name: str) -> OpenFile:
        with self._lock:
            if self._closed:
                raise ValueError("the reader is closed")
            if name not in self._files:
                self._files[name] = open_file(inside(self._folder, name))
            return self._files[name]

    def _where(self, info: TensorInfo) -> str:
        return f"{self._folder / info.file}: {quoted(info.name)}"
