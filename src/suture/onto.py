"""Which weights an adapter is merged onto: those of BASE, what BASE's codes stand for, or what QLoRA made of BASE.

An adapter that was trained on a quantised base has seen dequantised weights, which differ from the original ones by
more than most adapters move them. Neither choice is right for everybody, so it is made here, told and recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from suture.errors import InputError, UsageError
from suture.formats.dtypes import DTYPES
from suture.formats.quantized.as_trained import FORMS, as_dense, words
from suture.values import Arch, Checkpoint, Ledger, Options, Quantization, TensorInfo

LEDGERS = {"nf4": "nf4-nested", "int8": "int8"}  # what a run of `suture train` says, in full


def onto(checkpoint: Checkpoint, arch: Arch, ledger: Ledger | None, options: Options) -> Checkpoint:
    """The weights that `options.onto` asks for: the checkpoint, or one whose layers are quantised as in training.

    Raises:
        InputError: the original is asked for, and BASE is the quantised model.
        UsageError: nothing says how the base was quantised in training.
    """
    if checkpoint.quantization is not None:
        if options.onto == "original":
            raise InputError(
                f"BASE is quantised ({checkpoint.quantization.words})",
                where=str(checkpoint.folder),
                expected="the original in 16 bits, for --onto original",
                do="Give the original as BASE, or leave --onto out to merge onto the dequantised weights.",
            )
        return checkpoint
    if options.onto != "dequantized":
        return checkpoint
    form = options.trained_on or LEDGERS.get((ledger.base.quantize if ledger else None) or "")
    if form is None:
        raise UsageError(
            "nothing beside the adapter says how its base was quantised",
            where="--onto dequantized",
            expected="--trained-on with one of " + ", ".join(FORMS),
            do="Add it as it was in training, or give the quantised model as BASE.",
        )
    weights = tuple(_quantized_layers(checkpoint, arch))
    made = {weight.name: as_dense(weight, form) for weight in weights}
    return replace(
        checkpoint,
        tensors={name: made[name].info if name in made else info for name, info in checkpoint.tensors.items()},
        packed={name: one.packed for name, one in made.items()},
        quantization=Quantization(
            "bitsandbytes", words({"form": form}), _dtype(weights), checkpoint.config, stored=False
        ),
    )


def _quantized_layers(checkpoint: Checkpoint, arch: Arch) -> Iterable[TensorInfo]:
    """The weights that Transformers hands to bitsandbytes: of linear layers, but not the head and what is tied.

    Raises:
        InputError: one is stored in another shape, or in pieces.
    """
    tied = {member for tie in arch.ties for member in tie.members}
    last = list(arch.params)[-1] if arch.params else ""
    head = f"{arch.output_embedding}.weight"
    chosen = {
        name
        for name, param in arch.params.items()
        if param.kind in ("Linear", "Conv1D") and name.endswith(".weight") and name not in {*tied, last, head}
    }
    for part in arch.parts:
        if part.param not in chosen:
            continue
        info = checkpoint.tensors.get(part.tensor)
        if info is None:
            continue
        if part.index or part.rows is not None or part.transpose or arch.params[part.param].kind == "Conv1D":
            raise InputError(
                "this weight is stored in another form than the loader quantises it in",
                where=f"{info.file}: {info.name}",
                do="Load the model quantised with Transformers, save it, and give that as BASE.",
            )
        if DTYPES[info.dtype].computable and info.dtype != "F64":
            yield info


def _dtype(weights: tuple[TensorInfo, ...]) -> str:
    """The type of most of the weights."""
    dtypes = [weight.dtype for weight in weights]
    return max(sorted(set(dtypes)), key=dtypes.count, default="BF16")
