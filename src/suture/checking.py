"""All that is wrong with a pair, a finished model, a trainer's checkpoint, or a model in memory: `suture.check`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suture.arch import describe
from suture.errors import UsageError
from suture.formats import base_on_disk, hub, parts_of, read_adapter
from suture.formats.kind import checkpoints_below
from suture.measures import Apart, Move, Survival
from suture.model_folder import read_model_folder
from suture.pipeline import Depth, Reading, bind, load_case, make_case
from suture.rules import RULES, diagnose, diagnose_live, diagnose_model, diagnose_run, ordered, repairs
from suture.rules.base import Case
from suture.run_folder import read_run_folder
from suture.values import Finding, Options, Repair

if TYPE_CHECKING:
    import torch

WITHOUT_BASE = "R807"  # what M302 tells where the base is there
Kind = Literal["pair", "model", "run"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rules to tell of: codes (M301), beginnings of codes (M, M3) or names (key-unmatched). None: all."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def codes(self) -> frozenset[str]:
        """The codes of the rules that are left.

        Raises:
            UsageError: something that is no code, no beginning of one, and no name.
        """
        chosen = _codes(self.select, "--select") if self.select else frozenset(RULES)
        return chosen - _codes(self.ignore, "--ignore")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, and what was found, most severe first."""

    kind: Kind
    subject: str  # what was looked at, in words
    folders: tuple[Path, ...]  # that places in the findings are relative to
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...] = ()  # that `suture fix` could make
    layers: tuple[Apart | Survival, ...] = ()  # what quantisation does to each layer, or to its update
    moves: tuple[Move, ...] = ()  # of a pair whose values were read: how far each matrix moves, and what rounding keeps

    def count(self, severity: str) -> int:
        """Number of findings of this severity."""
        return sum(f.severity == severity for f in self.findings)


def check(  # noqa: PLR0913 - keywords of the public interface
    subject: Any,
    adapter: str | Path | None = None,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    deep: bool = False,
    selection: Selection | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    batch: Mapping[str, Any] | None = None,
) -> tuple[Finding, ...]:
    """All that is wrong, most severe first. Changes nothing.

        suture.check(base, adapter)    with merging an adapter into its base
        suture.check(folder)           with a finished model, or with a trainer's checkpoints, whichever lies there
        suture.check(peft_model)       with a model in memory: before it trains, and before it is saved

    Args:
        subject: folder or Hub id of a base (with `adapter`), of a finished model or a run; or a PeftModel.
        adapter: folder or Hub id.
        deep: read values too: NaN, untrained factors, sizes of updates, rounding, copies of another base.
        selection: which rules to tell of; all by default.
        optimizer: of a model in memory: what it holds is checked as well.
        batch: of a model in memory: keyword arguments of a forward pass that gives a loss. Default: random tokens.

    Raises:
        InputError: something named cannot be read at all.
        UsageError: an unknown code in `selection`; a model in memory without a LoRA adapter.
    """
    selection = selection or Selection()
    if not isinstance(subject, (str, Path)):
        return _chosen(_check_live(subject, optimizer, batch), selection)
    return check_files(subject, adapter, options=options, reading=reading, deep=deep, selection=selection).findings


def check_files(
    subject: str | Path,
    adapter: str | Path | None = None,
    *,
    options: Options | None = None,
    reading: Reading | None = None,
    deep: bool = False,
    selection: Selection | None = None,
) -> Checked:
    """`check` for what lies on a disk or on the Hub, with a word on what was looked at."""
    selection, options, reading = selection or Selection(), options or Options(), reading or Reading()
    selection.codes()  # before anything is read
    if adapter is not None:
        found = _check_pair(subject, adapter, options, reading, deep=deep)
    else:
        found = _check_alone(subject, options, reading, deep=deep)
    return replace(found, findings=_chosen(found.findings, selection))


def _check_pair(base: str | Path, adapter: str | Path, options: Options, reading: Reading, *, deep: bool) -> Checked:
    """The pair's rules, and those on the trainer's files where the adapter is a checkpoint itself."""
    case = load_case(base, adapter, options, reading, _depth(deep))
    findings, folder = diagnose(case), case.adapter.folder
    if "run" in parts_of(folder) and not checkpoints_below(folder):
        alone = [f for run in read_run_folder(folder, deep=deep) for f in diagnose_run(run) if f.code != WITHOUT_BASE]
        findings = ordered((*findings, *alone))
    return _of_case(case, f"{folder} on {case.checkpoint.folder}", findings)


def _check_alone(source: str | Path, options: Options, reading: Reading, *, deep: bool) -> Checked:
    folder = hub.locate(source, reading.base_revision, allow_pickle=reading.allow_pickle)
    parts = parts_of(folder)
    if parts == {"adapter"}:
        return _check_adapter(folder, options, reading, deep=deep)
    findings: list[Finding] = []
    told = []
    if "run" in parts:
        found, words = _check_runs(folder, options, deep=deep)
        findings += found
        told.append(words)
    if "model" in parts or not parts:
        findings += diagnose_model(read_model_folder(folder, deep=deep))
        told.append(f"the model in {folder}")
    return Checked("run" if "run" in parts else "model", " and ".join(told), (folder,), ordered(findings))


def _check_runs(folder: Path, options: Options, *, deep: bool) -> tuple[list[Finding], str]:
    """Every checkpoint of a run for itself, and with its base where that lies on this disk; and what that was."""
    runs = read_run_folder(folder, deep=deep)
    named = {run.folder: str(run.adapter.config.get("base_model_name_or_path") or "") for run in runs if run.adapter}
    bases = {name: base for name in sorted(set(named.values())) if (base := base_on_disk(name)) is not None}
    archs = {name: describe(base.config, base.tensors) for name, base in bases.items()}
    findings: list[Finding] = []
    for run in runs:
        name = named.get(run.folder, "")
        alone = diagnose_run(run)
        if run.adapter is not None and name in bases:
            paired = diagnose(make_case(bases[name], run.adapter, archs[name], options, _depth(deep)))
            alone = (*(f for f in alone if f.code != WITHOUT_BASE), *paired)
        findings += [_below(f, run.folder, folder) for f in alone]
    noun = "checkpoint" if len(runs) == 1 else "checkpoints"
    whole = all(named.get(run.folder) in bases for run in runs)
    with_base = "with the base" if whole else "without the base, which is not on this disk"
    return findings, f"{len(runs)} {noun} in {folder}" + (f", {with_base}" if named else "")


def _check_adapter(folder: Path, options: Options, reading: Reading, *, deep: bool) -> Checked:
    """An adapter that was named alone, with the base that its config names, if that lies on this disk."""
    adapter = read_adapter(folder, name=reading.adapter_name, allow_pickle=reading.allow_pickle)
    named = str(adapter.config.get("base_model_name_or_path") or "")
    base = base_on_disk(named)
    if base is None:
        raise UsageError(
            f"this is an adapter, and its base ({named or 'which its config does not name'}) is not on this disk",
            where=str(folder),
            expected="the base model, then the adapter",
            do=f"suture check BASE {folder}",
        )
    case = bind(base, adapter, options, _depth(deep))
    return _of_case(case, f"{folder} on {base.folder}, which its config names", diagnose(case))


def _of_case(case: Case, words: str, findings: tuple[Finding, ...]) -> Checked:
    """What was found in a pair. Of the moves, those that are numbers; what is not has findings of its own."""
    measures, folders = case.measures, (case.adapter.folder, case.checkpoint.folder)
    layers = case.survival or (measures.apart if measures else ())
    moves = tuple(m for m in measures.moves if m.is_finite) if measures else ()
    return Checked("pair", words, folders, findings, repairs(case), layers, moves)


def _depth(deep: bool) -> Depth:
    return "samples" if deep else "headers"


def _check_live(
    model: Any, optimizer: torch.optim.Optimizer | None, batch: Mapping[str, Any] | None
) -> tuple[Finding, ...]:
    from suture.training.examine import examine

    return diagnose_live(examine(model, optimizer, batch=batch))


def _below(finding: Finding, folder: Path, top: Path) -> Finding:
    """A finding in a checkpoint, told from the folder that was named."""
    inner = folder.relative_to(top).as_posix()
    return finding if inner == "." else replace(finding, where=f"{inner}/{finding.where}")


def _chosen(findings: Iterable[Finding], selection: Selection) -> tuple[Finding, ...]:
    codes = selection.codes()
    return tuple(f for f in findings if f.code in codes)


def _codes(asked: Iterable[str], where: str) -> frozenset[str]:
    found: set[str] = set()
    for text in (part.strip() for item in asked for part in item.split(",")):
        codes = {c for c, rule in RULES.items() if c.startswith(text.upper()) or rule.name == text.lower()}
        if not codes or not text:
            names = [*RULES, *(rule.name for rule in RULES.values())]
            close = difflib.get_close_matches(text.upper(), names) or difflib.get_close_matches(text.lower(), names)
            raise UsageError(
                f"there is no rule {text!r}",
                where=where,
                expected="a code (M301), the beginning of one (M3), or a name (key-unmatched)",
                do=f"Did you mean {' or '.join(close)}?" if close else "`suture rules` lists all.",
            )
        found |= codes
    return frozenset(found)


__all__ = ["Checked", "Selection", "check", "check_files"]
