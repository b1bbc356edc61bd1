"""A few quantised tensors, written as safetensors and read back through a scheme's `find` and `open`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from safetensors.torch import save_file

from suture.formats.dtypes import DTYPES
from suture.formats.quantized.base import Given, Scheme
from suture.formats.reading import TensorReader
from suture.formats.safetensors import read_header


@contextmanager
def stored(folder, tensors: Mapping[str, torch.Tensor], settings=None, dtype="BF16", apart=()) -> Iterator[Given]:
    """The tensors in one file, those of `apart` in a second one."""
    folder.mkdir(exist_ok=True)
    infos = {}
    for file, names in (("a.safetensors", tensors.keys() - set(apart)), ("b.safetensors", set(apart))):
        save_file({name: tensors[name].contiguous() for name in sorted(names)}, folder / file)
        infos |= {info.name: info for info in read_header(folder, file).tensors}
    with TensorReader(folder) as reader:
        yield Given(infos, settings or {}, dtype, reader.read_into)


def decoded(folder, scheme: Scheme, tensors, settings=None, dtype="BF16", apart=()) -> dict[str, torch.Tensor]:
    """All dense tensors, each read in many ranges of rows, by several threads."""
    with stored(folder, tensors, settings, dtype, apart) as given:
        found = scheme.find(given)
        parts = {part.name for one in found.values() for part in one.packed.parts.values()}
        assert parts <= given.tensors.keys()
        return {name: _read(scheme, one, given) for name, one in found.items()}


def bytes_read(folder, scheme: Scheme, tensors, name, start, stop, step=1 << 30) -> int:
    """How much of the files is read for some rows of a dense tensor, in order, so many at a time."""
    n_bytes = []
    with stored(folder, tensors) as given:
        one = scheme.find(given)[name]

        def counted(info, offset, buffer):
            n_bytes.append(buffer.nbytes)
            given.read(info, offset, buffer)

        rows = scheme.open(one.info, one.packed, counted)
        for begin in range(start, stop, step):
            rows(begin, min(begin + step, stop))
    return sum(n_bytes)


def names_of_parts(folder, scheme: Scheme, tensors, settings=None) -> dict[str, set[str]]:
    """Dense tensor → the stored ones that it is made of."""
    with stored(folder, tensors, settings) as given:
        return {n: {p.name for p in one.packed.parts.values()} for n, one in scheme.find(given).items()}


def _read(scheme, one, given) -> torch.Tensor:
    info, dtype = one.info, DTYPES[one.info.dtype]
    n_rows = info.n_values // info.shape[-1]
    assert info.n_bytes == info.n_values * dtype.bits // 8
    rows = scheme.open(info, one.packed, given.read)
    whole = rows(0, n_rows)
    assert (whole.dtype, whole.shape) == (dtype.storage, (n_rows, info.shape[-1]))
    cuts = np.random.default_rng(n_rows).integers(0, n_rows + 1, (24, 2))
    ranges = [(min(a, b), max(a, b)) for a, b in cuts.tolist()] + [(0, 1), (n_rows - 1, n_rows), (n_rows // 2,) * 2]
    with ThreadPoolExecutor(3) as threads:
        for (start, stop), some in zip(ranges, threads.map(lambda r: rows(*r), ranges), strict=True):
            assert some.tobytes() == whole[start:stop].tobytes(), (start, stop)
    return torch.from_numpy(whole.copy()).view(getattr(torch, dtype.torch_name)).reshape(info.shape)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Bit for bit, but any NaN is as good as another one."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    nan = theirs.isnan()
    assert torch.equal(ours.isnan(), nan)
    bits = {2: torch.int16, 4: torch.int32}[ours.element_size()]
    different = (ours.contiguous().view(bits) != theirs.contiguous().view(bits)) & ~nan
    assert not different.any(), f"{int(different.sum())} of {ours.numel()} values differ"


def random_bytes(*shape: int, seed: int = 0) -> torch.Tensor:
    """Every code, at random."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, low: float = 1e-4, high: float = 1e-2, seed: int = 1) -> torch.Tensor:
    """Scales as they are in real models, float32."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
