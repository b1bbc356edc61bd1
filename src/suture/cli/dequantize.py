"""suture dequantize BASE -o OUT"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated

from suture.cli import _output, _progress, _show
from suture.cli._command import Answer, Option
from suture.cli._options import BaseArgument, Dtype, OutOption, Running, Sources
from suture.cli.merge import Merged

if TYPE_CHECKING:
    from suture.values import Plan


def dequantize(
    base: BaseArgument,
    out: OutOption,
    sources: Sources,
    running: Running,
    *,
    dtype: Annotated[Dtype | None, Option("Type of all float tensors. Default: of the model.")] = None,
) -> Answer:
    """Write the plain model that a quantised BASE stands for. OUT appears whole and verified, or not at all."""
    reading = sources.reading()
    from suture.dequantizing import dequantize as run

    plans: list[Plan] = []
    start, how = time.monotonic(), running.settings(plans.append)
    _show.slow_kernel(_output.console(stderr=True))
    with _progress.shown() as progress:
        receipt = run(base, out, dtype=dtype and dtype.value.upper(), reading=reading, running=how, progress=progress)
    seconds = time.monotonic() - start
    done = Merged(out, plans[0], receipt, seconds, how.full_verify, verdict=None)
    return Answer({"out": out, "receipt": receipt, "seconds": seconds}, partial(_show.merged, found=done))
