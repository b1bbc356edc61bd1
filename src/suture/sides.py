"""Which files stand beside the merged weights, and whose tokenizer: the adapter's, when it extends the base's."""

from __future__ import annotations

from collections.abc import Mapping

from suture.formats.quantized import DESCRIPTIONS
from suture.formats.vocabulary import TEMPLATE_FILES, TOKENIZER_FILES, has_template, read_vocabulary
from suture.values import Adapter, Checkpoint, Options, SideFile, Sides


def choose_side_files(checkpoint: Checkpoint, adapter: Adapter, options: Options) -> Sides:
    """Every file of the base but its weights; the adapter's tokenizer and chat template in the place of the base's.

    Of a quantised base that comes out dense, what describes the quantised weights stays behind too.

    An adapter's tokenizer takes over if it has all tokens of the base's under the same ids; otherwise it is a problem,
    which `options.tokenizer` decides.
    """
    is_quantized = checkpoint.quantization is not None and checkpoint.quantization.stored
    stay = DESCRIPTIONS if is_quantized and options.output == "dense" else ()
    base = {name: "base" for name in checkpoint.side_files if name not in stay}
    brought = [f for f in adapter.side_files if f in TOKENIZER_FILES | TEMPLATE_FILES]
    if options.tokenizer == "base" or not brought:
        return _sides(base)
    ours, theirs = read_vocabulary(checkpoint.folder), read_vocabulary(adapter.folder)
    problem = _contradiction(ours, theirs)
    if problem and options.tokenizer == "auto":
        return _sides(base, problems=(problem,))
    if theirs is not None and theirs != ours:
        base = {f: o for f, o in base.items() if f not in TOKENIZER_FILES}  # no half of the old vocabulary may stay
    if has_template(adapter.folder, tuple(brought)):
        base = {f: o for f, o in base.items() if f not in TEMPLATE_FILES}
    notes = (f"the tokenizer is the adapter's ({', '.join(sorted(brought))})",)
    chosen = theirs if theirs is not None else ours
    return _sides(base | dict.fromkeys(brought, "adapter"), notes, n_tokens=len(chosen) if chosen else None)


def _sides(
    files: Mapping[str, str], notes: tuple[str, ...] = (), problems: tuple[str, ...] = (), n_tokens: int | None = None
) -> Sides:
    chosen = [SideFile(f, "adapter" if origin == "adapter" else "base") for f, origin in sorted(files.items())]
    return Sides(tuple(chosen), notes, problems, n_tokens)


def _contradiction(ours: Mapping[str, int] | None, theirs: Mapping[str, int] | None) -> str:
    """Why the adapter's vocabulary does not extend the base's, or nothing."""
    if ours is None or theirs is None or ours is theirs:
        return ""
    lost = [t for t in ours if t not in theirs]
    moved = [t for t, i in ours.items() if t in theirs and theirs[t] != i]
    if not lost and not moved:
        return ""
    examples = ", ".join(repr(t) for t in (*lost[:2], *moved[:2]))
    return f"{len(lost)} tokens of the base are missing and {len(moved)} have other ids (such as {examples})"
