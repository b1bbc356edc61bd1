"""A quantised model → the plain model that it stands for: a merge without an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from suture.errors import InputError
from suture.formats import fingerprint
from suture.formats.quantized import METHODS
from suture.pipeline import Progress, Reading, carry_out, read_base, require_outside
from suture.planning import Identity, build_plan, draft_operations
from suture.sides import choose_side_files
from suture.values import Adapter, Arch, Checkpoint, Options, Plan, Receipt, Running, Settled

if TYPE_CHECKING:
    from suture.execute import Inputs

_CLASS = Arch("", "headers", {}, (), (), (), None, None)  # no tensor changes, so no class need be known


def dequantize(
    base: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    reading: Reading | None = None,
    running: Running | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Write the plain model that a quantised one stands for. `out` appears whole and verified, or not at all.

    Args:
        dtype: of all float tensors, such as "F32"; None keeps each tensor's own, which for a weight is what its
            library dequantises to in 16 bits, or else the model's.

    Raises:
        InputError: the base is not quantised, or not by a method that is known.
        OutputError: the output cannot be written, or holds files already.
        NotVerified: the written files are not what the base stands for.
    """
    from suture import execute

    running, reading = running or Running(), reading or Reading()
    execute.check_output(Path(out))
    checkpoint = read_base(base, reading)
    if checkpoint.quantization is None:
        raise _not_quantized(checkpoint)
    inputs = execute.Inputs(checkpoint, Adapter(checkpoint.folder, "", {}, {}, "", ()))
    require_outside(Path(out), inputs)
    todo = _plan(inputs, Options(dtype=dtype))
    if running.announce is not None:
        running.announce(todo)
    return carry_out(todo, inputs, Path(out), running, progress)


def _plan(inputs: Inputs, options: Options) -> Plan:
    """Every packed weight dequantised, all else copied."""
    checkpoint, nothing = inputs.checkpoint, Settled({}, (), (), (), ())
    draft = draft_operations(checkpoint, _CLASS, nothing, options)
    sides = choose_side_files(checkpoint, inputs.adapter, options)
    return build_plan(checkpoint, draft, nothing, Identity(fingerprint(checkpoint), ""), sides, options)


def _not_quantized(checkpoint: Checkpoint) -> InputError:
    said = checkpoint.config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, Mapping) else None
    found = f"the weights are quantised by {method or 'an unknown method'}" if said else "the weights are not quantised"
    do = "Dequantise it with the library that quantised it." if said else "There is nothing to do."
    return InputError(found, where=str(checkpoint.folder), expected=f"one of {', '.join(sorted(METHODS))}", do=do)
