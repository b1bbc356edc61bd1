"""`suture fix`: an adapter that its base accepts, written anew. The damaged one is never touched."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from suture.equality import Equality
from suture.errors import Findings, NotVerified
from suture.formats import file_sha256, fingerprint, other_weights, read_adapter
from suture.pipeline import Reading, load_case, make_case, merge, require_outside, verify
from suture.planning import Identity, plan_adapter
from suture.rules import diagnose, ignorable, repairs
from suture.rules.base import Case
from suture.separation import separated
from suture.values import Adapter, Finding, LogitsReport, Operation, Options, Repair, TensorInfo

if TYPE_CHECKING:
    from suture.verification.logits import LogitsSettings

MAX_ROUNDS = 12  # of a repair, then a new look; more than there are rules with a fix


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was wrong with an adapter, what was repaired, and what is left."""

    repairs: tuple[Repair, ...]
    possible: tuple[Repair, ...]  # not made, because they assume what no file proves
    before: tuple[Finding, ...]
    after: tuple[Finding, ...]  # of the repaired adapter, read again from the disk where one was written
    out: Path | None = None  # None where nothing was written
    left_behind: tuple[str, ...] = ()  # files of the damaged adapter's folder that are not in `out`
    logits: LogitsReport | None = None

    @property
    def ok(self) -> bool:
        """True when no error is left."""
        return not any(f.severity == "error" for f in self.after)


@dataclass(frozen=True, slots=True)
class _Mended:
    """A case in which nothing more can be repaired."""

    case: Case
    repairs: tuple[Repair, ...]
    possible: tuple[Repair, ...]
    dropped: Mapping[str, TensorInfo]  # tensors of the file that the case's adapter no longer has
    made: tuple[Operation, ...] = ()


def fix(  # noqa: PLR0913 - keywords of the public interface
    base: str | Path,
    adapter: str | Path,
    out: str | Path | None = None,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    unsafe: bool = False,
    separate: bool = False,
    logits: LogitsSettings | None = None,
) -> Fixed:
    """Repair an adapter: names by one rule for the whole file, the config from the tensors. Values are never changed.

    Args:
        out: folder for the repaired adapter; it appears whole, verified and without an error left, or not at all.
            None: only say what would be repaired.
        unsafe: make repairs too that assume what no file proves; each says what.
        separate: write the ends of a tied pair that the adapter changes in different ways as two full matrices
            (`modules_to_save`), which other tools merge and serve rightly.
        logits: also compare base + repaired adapter, run by PEFT, with the merge of the two.

    Raises:
        InputError: something cannot be read. OutputError: `out` cannot be written.
        NotVerified: the logits differ, or what lies on the disk is not what was planned; `out` does not appear.
        UsageError: `separate` where nothing is tied apart.
    """
    options, reading = options or Options(), reading or Reading()
    case = load_case(base, adapter, options, reading, "values")
    before = diagnose(case)
    mended = _mended(case, unsafe=unsafe)
    if separate:
        mended = _separated(mended)
    if out is not None:
        require_outside(Path(out), case)
    if out is None or not (mended.repairs or mended.made) or (not mended.made and _blocking(_deep(mended.case))):
        after = before if mended.made or not mended.repairs else diagnose(_deep(mended.case))
        return Fixed(mended.repairs, mended.possible, before, after)
    return _written(mended, before, Path(out), logits)


def _mended(case: Case, *, unsafe: bool) -> _Mended:
    """Repair after repair, each followed by a new look, until there is none left that helps."""
    made: list[Repair] = []
    possible: dict[str, Repair] = {}
    dropped: dict[str, TensorInfo] = {}
    for _ in range(MAX_ROUNDS):
        for repair in repairs(case):
            if repair.assumes and not unsafe:
                possible[repair.code] = repair
                continue
            names = _names(case, repair)
            if isinstance(names, str):
                possible[repair.code] = replace(repair, assumes=names)
                continue
            after = _again(case, _renamed(case.adapter, names, repair))
            if not _helps(repair, case, after):
                continue
            possible.pop(repair.code, None)
            gone = {n: t for n, t in case.adapter.tensors.items() if n not in names}
            dropped |= {f"{len(made)}\0{n}": t for n, t in gone.items()}  # another tensor may take the name
            case = after
            made.append(_told(repair, tuple(gone)))
            break
        else:
            break
    return _Mended(case, tuple(made), tuple(possible.values()), dropped)


def _helps(repair: Repair, before: Case, after: Case) -> bool:
    """True when a repair changes something, its rule finds less, and no rule finds an error that it did not find.

    Names come first: as long as they do not fit, most rules see nothing.
    """
    then, now = _errors(before), _errors(after)
    if after.adapter.config == before.adapter.config and after.adapter.tensors.keys() == before.adapter.tensors.keys():
        return False
    return repair.code == "M301" or (now[repair.code] < then[repair.code] and now.keys() <= then.keys())


def _errors(case: Case) -> Counter[str]:
    """How often each rule finds something that is more than an info."""
    return Counter(f.code for f in diagnose(case) if f.severity != "info")


def _names(case: Case, repair: Repair) -> dict[str, str] | str:
    """Name in the file → name afterwards, without tensors that repeat another; or why there is no such naming."""
    names = sorted(case.adapter.tensors.keys() - set(repair.dropped), key=lambda name: (name in repair.renamed, name))
    new = {name: repair.renamed.get(name, name) for name in names}  # those that keep their name come first
    kept: dict[str, str] = {}
    with Equality(case.checkpoint, case.adapter) as equality:
        for name, wanted in new.items():
            first = kept.setdefault(wanted, name)
            if first != name and not equality.same_tensor(first, name):
                return f"which of {first} and {name} is meant: both would be called {wanted}, and they differ"
    return {name: wanted for wanted, name in kept.items()}


def _told(repair: Repair, gone: tuple[str, ...]) -> Repair:
    """The repair as it was made, with the repetitions that it drops."""
    if not gone or repair.dropped:
        return repair
    words = f"drop {len(gone)} tensors that repeat others, byte for byte"
    renamed = {old: new for old, new in repair.renamed.items() if old not in gone}
    return replace(repair, words=(*repair.words, words), renamed=renamed, dropped=gone)


def _renamed(adapter: Adapter, names: Mapping[str, str], repair: Repair) -> Adapter:
    tensors = {new: replace(adapter.tensors[old], name=new) for old, new in names.items()}
    config = {k: v for k, v in {**adapter.config, **repair.config}.items() if v is not None or k not in repair.config}
    return replace(adapter, tensors=tensors, config=config)


def _blocking(case: Case) -> list[Finding]:
    """What is left of names, shapes, config and ties: PEFT may load it in part, or not at all, so it is not written."""
    errors = [f for f in diagnose(case) if f.severity == "error" and not ignorable(f, case.options)]
    return [f for f in errors if f.code[0] in "MT"]


def _require_whole(case: Case) -> None:
    """Refuse an adapter that is left with errors.

    Raises:
        Findings: it is.
    """
    if left := _blocking(case):
        raise Findings(left, do="Nothing was written.")


def _again(case: Case, adapter: Adapter) -> Case:
    return make_case(case.checkpoint, adapter, case.arch, case.options)


def _deep(case: Case) -> Case:
    return make_case(case.checkpoint, case.adapter, case.arch, case.options, "values")


def _separated(mended: _Mended) -> _Mended:
    """The adapter with its two ends of a tied pair in full."""
    apart = separated(mended.case)
    old = mended.case.adapter
    gone = {n: t for n, t in old.tensors.items() if n in apart.repair.dropped}
    names = {n: n for n in old.tensors if n not in gone}
    return replace(
        mended,
        case=replace(mended.case, adapter=_renamed(old, names, apart.repair)),
        repairs=(*mended.repairs, apart.repair),
        dropped={**mended.dropped, **gone},  # their factors are read for the matrices
        made=apart.operations,
    )


def _written(mended: _Mended, before: tuple[Finding, ...], out: Path, logits: LogitsSettings | None) -> Fixed:
    from suture import execute
    from suture.verification import replay_adapter

    case = mended.case
    source = replace(case.adapter, tensors={**mended.dropped, **case.adapter.tensors})
    identity = Identity(fingerprint(case.checkpoint), file_sha256(source.folder / source.file))
    notes = tuple(f"{r.code}: {words}" for r in mended.repairs for words in r.words)
    plan = plan_adapter(case.adapter, mended.made, identity, case.options, notes)
    staged = execute.run(plan, execute.Inputs(case.checkpoint, source), out)
    with execute.giving_up(staged):
        verdict = replay_adapter(plan, case.checkpoint, source, staged.folder)
        _require_whole(_deep(_again(case, read_adapter(staged.folder))))
        report = _proven(case, staged.folder, logits)
    execute.publish(staged, verdict)
    after = diagnose(make_case(case.checkpoint, read_adapter(out), case.arch, case.options, "values"))
    left = other_weights(source.folder, {source.file})
    return Fixed(mended.repairs, mended.possible, before, after, out, left, report)


def _proven(case: Case, folder: Path, settings: LogitsSettings | None) -> LogitsReport | None:
    """The repaired adapter, run by PEFT on its base, against its merge, which is removed again.

    Raises:
        Findings: the repaired adapter cannot be merged.
        NotVerified: the two do not agree.
    """
    if settings is None:
        return None
    merged = folder.parent / "proof"
    try:
        merge(case.checkpoint.folder, folder, merged, options=case.options)
        verdict = verify(case.checkpoint.folder, folder, merged, options=case.options, logits=settings)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    if not verdict.ok:
        raise NotVerified(
            "the repaired adapter, run by PEFT, does not compute what its merge computes",
            verdict=verdict,
            where=str(folder),
            do="Nothing was written. The adapter needs more than a repair of names and config.",
        )
    return verdict.logits
