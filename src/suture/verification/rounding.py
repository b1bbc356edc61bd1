"""What rounding may do to a value: units in the last place, overflow, and whether a stored value may be a rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from suture.verification.reading import Floats

Mask = npt.NDArray[np.bool_]

_EXPONENT = np.uint64(0x7FF0_0000_0000_0000)
FLOAT32_UNIT = 2.0**-24  # the largest relative error of one float32 operation
QUANTIZED = "quantised"  # in the place of a dtype: weights whose rounding has no bound that a format gives


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point type: p significant bits, exponents from emin to emax."""

    p: int
    emin: int
    emax: int

    @property
    def unit(self) -> float:
        """The largest relative error of rounding to nearest."""
        return 2.0**-self.p

    @property
    def overflow(self) -> float:
        """From this size on, rounding to nearest gives infinity."""
        return (2.0 - self.unit) * 2.0**self.emax

    def half_ulp(self, size: Floats) -> Floats:
        """Half the distance of neighbours at each `size` ≥ 0: what one rounding to nearest may move a value by."""
        power = (size.view(np.uint64) & _EXPONENT).view(np.float64)
        np.maximum(power, 2.0**self.emin, out=power)
        np.minimum(power, 2.0**self.emax, out=power)
        power *= self.unit
        return power


FORMATS: Mapping[str, Format] = {
    "F64": Format(53, -1022, 1023),
    "F32": Format(24, -126, 127),
    "F16": Format(11, -14, 15),
    "BF16": Format(8, -126, 127),
}


def agrees(stored: Floats, exact: Floats, slack: Floats, fmt: Format) -> Mask:
    """True where `stored` is a rounding of some value within `slack` of `exact`:

        |stored − exact| ≤ ½ ulp(|exact| + slack) + slack

    NaN must meet NaN, an infinity itself; a finite value may be stored as infinity only where it overflows.
    """
    size = np.abs(exact)
    size += slack
    near = np.abs(stored - exact) <= fmt.half_ulp(size) + slack
    if np.isfinite(exact).all() and np.isfinite(stored).all():
        return near
    overflown = np.isinf(stored) & (np.sign(stored) == np.sign(exact)) & (size >= fmt.overflow)
    special = (np.isnan(stored) & np.isnan(exact)) | (stored == exact)
    found: Mask = np.where(np.isfinite(exact), (near & np.isfinite(stored)) | overflown, special)
    return found
