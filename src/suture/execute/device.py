"""The formulas of LoRA and DoRA on a device of torch, such as a GPU: an option, for the interface of `fused`.

Products are in float32 (TF32 stays off) and everything is rounded once, but in which order a device sums is its own
affair: other bytes in the last place than on the CPU, within the bound that verification proves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from suture.errors import MissingExtra, UsageError
from suture.formats.dtypes import Array
from suture.methods.base import Factors

TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Device:
    """A device of torch, by its name: "cuda", "cuda:1", "mps", "cpu".

    Raises:
        MissingExtra: torch is not installed. UsageError: there is no such device.
    """

    def __init__(self, name: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("--device needs torch", do="pip install torch, or leave --device out.") from error
        try:
            self._device = torch.device(name)
            torch.zeros(1, device=self._device)
        except (RuntimeError, AssertionError) as error:
            found = f"torch cannot use {name}: {str(error).splitlines()[0]}"
            raise UsageError(found, where="--device", expected="cpu, cuda, cuda:1, mps") from error
        self._torch: Any = torch

    @property
    def name(self) -> str:
        """torch, its version and the device, for the receipt."""
        model = self._torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type
        return f"torch {self._torch.__version__} on {model}"

    def pack(self, f: Factors) -> Factors:
        """The factors with A on the device; B follows in the rows of each block."""
        return {**f, "A": self._torch.from_numpy(f["A"]).to(self._device)}

    def lora(self, w: Array, out: Array, f: Factors, s: float, dtypes: tuple[str, str]) -> None:
        """out = round(w + s · B A): see `fused.Fused.lora`."""
        product = self._torch.from_numpy(f["B"]).to(self._device) @ f["A"]
        self._store(self._load(w, dtypes[0]) + product * s, out, dtypes[1])

    def dora(self, v: Array, out: Array, m: Array, dtype: str) -> None:
        """out = round(m · v / ‖v‖): see `fused.Fused.dora`."""
        rows = self._load(v, "F32")
        length = self._torch.from_numpy(m).to(self._device) / rows.square().sum(dim=1).sqrt()
        self._store(rows * length[:, None], out, dtype)

    def _load(self, w: Array, dtype: str) -> Any:
        """Stored values in float32, on the device."""
        torch = self._torch
        stored = torch.from_numpy(w.view(np.int16) if dtype != "F32" else w).to(self._device)
        return stored.view(getattr(torch, TYPES[dtype])).float()

    def _store(self, x: Any, out: Array, dtype: str) -> None:
        torch = self._torch
        stored = x.to(getattr(torch, TYPES[dtype]))
        view = out.view(np.int16) if dtype != "F32" else out
        torch.from_numpy(view).copy_(stored.view(torch.int16) if dtype != "F32" else stored)
