"""What rounding may do to a value: units in the last place, overflow, and whether a stored value may be a rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from suture.noise import Words
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

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return (2.0 - 2.0 * self.unit) * 2.0**self.emax

    def half_ulp(self, size: Floats) -> Floats:
        """Half the distance of neighbours at each `size` ≥ 0: what one rounding to nearest may move a value by."""
        power = (size.view(np.uint64) & _EXPONENT).view(np.float64)
        np.maximum(power, 2.0**self.emin, out=power)
        np.minimum(power, 2.0**self.emax, out=power)
        power *= self.unit
        return power

    def at_random(self, exact: Floats, bits: Words) -> Floats:
        """Each value, rounded up or down by its 32 bits: |x| = (k + f) · ulp goes up where f ≥ 1 − bits / 2³².

        Beyond the largest finite value, where there is nothing above, it is rounded to nearest.
        """
        size = np.abs(exact)
        ulp = 2.0 * self.half_ulp(size)
        steps = size / ulp  # exact: a power of two
        whole = np.floor(steps)
        whole += steps - whole >= 1.0 - bits * 2.0**-32
        beyond = np.where(size >= self.overflow, np.inf, self.largest)
        found: Floats = np.copysign(np.where(size > self.largest, beyond, whole * ulp), exact)
        return found


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


def agrees_at_random(stored: Floats, exact: Floats, slack: Floats, bits: Words, fmt: Format) -> Mask:
    """True where `stored` is what rounding at random, with these bits, makes of some value within `slack` of `exact`.

    R, the rounding with the bits of a value, never falls as x rises, and R(y) = y for every y that can be stored. So it
    gives all such y between R(exact − slack) and R(exact + slack), and no others. NaN must meet NaN.
    """
    low, high = fmt.at_random(exact - slack, bits), fmt.at_random(exact + slack, bits)
    special = (np.isnan(stored) & np.isnan(exact)) | (stored == exact)
    found: Mask = ((low <= stored) & (stored <= high)) | special
    return found


def is_neighbour(stored: Floats, exact: Floats, slack: Floats, fmt: Format) -> Mask:
    """True where `stored` is a value that rounding up or down makes of some value within `slack` of `exact`."""
    towards, away = np.zeros_like(exact, np.uint32), np.full_like(exact, 0xFFFFFFFF, np.uint32)
    low, high = exact - slack, exact + slack
    floor = fmt.at_random(low, np.where(low < 0, away, towards))
    ceiling = fmt.at_random(high, np.where(high < 0, towards, away))
    found: Mask = (floor <= stored) & (stored <= ceiling)
    return found
