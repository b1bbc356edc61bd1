"""Bytes of dense tensors that no file holds, decoded row by row as they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np

from suture.formats.dtypes import DTYPES
from suture.formats.quantized import open_rows
from suture.formats.quantized.base import Read, Rows
from suture.values import NOT_STORED, Packed, TensorInfo

KEPT = 2  # opened weights a thread; their scales, or all of their codes, are in memory


class Decoder:
    """Decodes the tensors of one checkpoint. Any number of threads may share it.

    Args:
        packed: what each dense tensor is made of.
        read: reads stored tensors.
    """

    def __init__(self, packed: Mapping[str, Packed], read: Read) -> None:
        self.packed = packed
        self.read = read
        self._opened = threading.local()

    def read_into(self, info: TensorInfo, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with bytes of a dense tensor, from its place on: see `NOT_STORED`.

        Raises:
            InputError: what it is decoded from cannot be read.
        """
        begin = info.begin - NOT_STORED + offset
        width = info.shape[-1] * DTYPES[info.dtype].bits // 8
        first, last = begin // width, -(-(begin + buffer.nbytes) // width)
        data = self._rows(info)(first, last).reshape(-1).view(np.uint8)
        skip = begin - first * width
        np.frombuffer(buffer, np.uint8)[:] = data[skip : skip + buffer.nbytes]

    def _rows(self, info: TensorInfo) -> Rows:
        kept: OrderedDict[str, Rows] | None = getattr(self._opened, "rows", None)
        if kept is None:
            kept = self._opened.rows = OrderedDict()
        if info.name not in kept:
            kept[info.name] = open_rows(info, self.packed[info.name], self.read)
        kept.move_to_end(info.name)
        while len(kept) > KEPT:
            kept.popitem(last=False)
        return kept[info.name]
