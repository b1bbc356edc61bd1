"""What commands show to people. Names come from files, so all text goes through `errors.printable`."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from suture.cli._output import Plain, counted, line, size, styled

if TYPE_CHECKING:
    from suture.checking import Checked
    from suture.cli._output import Out
    from suture.cli.merge import Merged
    from suture.inspection import AdapterFacts, BaseFacts, Inspection, Trainable
    from suture.pages import ModeRow, Page, RuleRow
    from suture.repairing import Fixed
    from suture.values import Finding, Forecast, KeptUpdates, LogitsReport, Plan, Repair, TensorVerdict, Verdict

COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
WIDTH = 100  # of running text
SHOWN = 5  # findings of one rule, or wrong tensors, before the rest is only counted


def checked(out: Out, found: Checked, base: str, adapter: str | None) -> None:
    """What was looked at, the findings, and what to do next."""
    line(out, styled("checked ", "bold"), found.subject)
    line(out)
    findings(out, found.findings)
    if adapter is None:
        return
    pair = f"{shlex.quote(base)} {shlex.quote(adapter)}"
    if found.repairs:
        unsafe = "" if any(not repair.assumes for repair in found.repairs) else " --unsafe"
        fixed = shlex.quote(f"{adapter.rstrip('/')}-fixed")
        line(out, styled("next: ", "dim"), f"suture fix {pair} -o {fixed}{unsafe}")
    elif not found.count("error"):
        line(out, styled("next: ", "dim"), f"suture merge {pair} -o OUT")


def document(out: Out, data: object) -> None:
    """One JSON document, in a form that is not ours."""
    line(out, styled(json.dumps(data, indent=2)))


def lines(out: Out, texts: Iterable[str]) -> None:
    """Texts as they are, a line each."""
    for text in texts:
        line(out, text)


def rules(out: Out, table: Sequence[RuleRow]) -> None:
    """All rules, a line each, by family."""
    family = ""
    for row in table:
        if row.code[0] != family:
            family = row.code[0]
            line(out)
            line(out, styled(row.family, "bold"))
        marks = " ".join((*(() if not row.deep else ("deep",)), *(() if not row.fix else ("fix",))))
        severity = styled(f"{row.severity:8}", COLOURS[row.severity])
        line(out, f"  {row.code} ", severity, f"{row.name:28}", styled(f"{marks:9}", "dim"), _cut(row.summary))


def _cut(text: str) -> str:
    return textwrap.shorten(text, WIDTH, placeholder=" …")


def modes(out: Out, ways: Sequence[ModeRow]) -> None:
    """Every known way in which adapters go wrong, and what stands against it."""
    for way in ways:
        line(out, styled(f"{way.code} ", "bold"), way.title)
        for label, texts in (("rules", way.rules), ("tests", way.tests)):
            if texts:
                line(out, styled(f"  {label:9}", "dim"), ", ".join(texts))
        if way.reason:
            line(out, styled(f"  {'':9}", "dim"), way.reason)


def findings(out: Out, found: Sequence[Finding], *, ignored: Collection[str] = ()) -> None:
    """Findings by rule, most severe first, each with the reason why it matters, and how many there are."""
    from suture import pages
    from suture.rules import RULES

    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.severity, finding.code), []).append(finding)
    for (severity, code), members in groups.items():
        note = "  (ignored)" if code in ignored and severity == "error" else ""
        number = f"  ({len(members)})" if len(members) > 1 else ""
        line(out, styled(severity, COLOURS[severity]), " ", styled(code, "bold"), f" {members[0].name}{number}{note}")
        for row, text in enumerate(_filled(pages.why(RULES[code]))):
            line(out, styled(f"  {'' if row else 'why':9}", "dim"), text)
        for finding in members[:SHOWN]:
            _finding(out, finding)
        if len(members) > SHOWN:
            line(out, styled(f"  … and {len(members) - SHOWN} more of {code}; --json lists all of them", "dim"))
        line(out)
    errors = [f for f in found if f.severity == "error" and f.code not in ignored]
    warnings = [f for f in found if f.severity == "warning"]
    if errors:
        line(out, styled(f"`suture explain {errors[0].code}` tells more.", "dim"))
    summary = f"{counted(len(errors), 'error')}, {counted(len(warnings), 'warning')}"
    line(out, styled(summary, "bold red" if errors else "bold green"))


def _filled(text: str) -> list[str]:
    """Running text in lines that can be read; names are never broken, so that they can be searched for and copied."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _finding(out: Out, finding: Finding) -> None:
    line(out, styled(f"  {'at':9}", "dim"), finding.where)
    for label, text in (("found", finding.found), ("expected", finding.expected), ("do", finding.do)):
        first, *rest = text.split("\n")
        for number, part in enumerate(_filled(first)):
            line(out, styled(f"  {'' if number else label:9}", "dim"), part)
        for more in rest:  # names, one a line
            line(out, f"  {'':9}  {more.strip()}")


def fixed(out: Out, found: Fixed, base: str) -> None:
    """What was repaired, what could be, and what is left."""
    verb = "repaired" if found.out is not None else "would repair"
    for repair in found.repairs:
        line(out, styled(f"{verb} ", "bold green"), styled(repair.code, "bold"))
        _repair(out, repair)
    for repair in found.possible:
        line(out, styled("not repaired ", "yellow"), styled(repair.code, "bold"))
        _repair(out, repair)
    if not found.repairs and not found.possible:
        line(out, "There is nothing to repair." if found.ok else "There is nothing that can be repaired.")
    line(out)
    if found.left_behind:
        line(out, styled("left behind: ", "yellow"), ", ".join(found.left_behind))
    findings(out, found.after)
    if found.logits is not None:
        _logits(out, found.logits)
    _after_fix(out, found, base)


def _after_fix(out: Out, found: Fixed, base: str) -> None:
    if found.out is not None:
        line(out, styled("written to ", "bold"), str(found.out))
        if found.ok:
            line(out, styled("next: ", "dim"), f"suture merge {shlex.quote(base)} {shlex.quote(str(found.out))} -o OUT")
    else:
        name = ": name a folder with -o" if found.repairs and found.ok else ""
        left = ": what is left would not load" if found.repairs and not found.ok else ""
        line(out, styled(f"Nothing was written{name or left}.", "dim"))


def _repair(out: Out, repair: Repair) -> None:
    for words in repair.words:
        line(out, styled("  what     ", "dim"), words)
    for old, new in sorted(repair.renamed.items())[:2]:
        line(out, styled("           ", "dim"), old)
        line(out, styled("         → ", "dim"), new)
    if len(repair.renamed) > 2:
        line(out, styled(f"           … and {len(repair.renamed) - 2:,} more names", "dim"))
    if repair.dropped:
        line(out, styled("  leaves   ", "dim"), ", ".join(repair.dropped[:3]), " …" if len(repair.dropped) > 3 else "")
    if repair.assumes:
        line(out, styled("  assumes  ", "yellow"), repair.assumes)


def inspection(out: Out, found: Inspection) -> None:
    """A base model and an adapter."""
    _base(out, found.base)
    if found.adapter is not None:
        line(out)
        _adapter(out, found.adapter)


def _base(out: Out, base: BaseFacts) -> None:
    line(out, styled("base ", "bold"), str(base.folder))
    stored = f"{size(base.n_bytes)} in {counted(base.n_files, 'file')}, {counted(base.n_tensors, 'tensor')}"
    rows = [
        ("class", f"{base.model_class} (known from {base.source})"),
        ("parameters", f"{base.n_params:,}" + (", tied ones counted once" if base.ties else "")),
        ("stored", stored if base.n_tensors else "no weights here"),
        ("types", ", ".join(f"{dtype} {n:,}" for dtype, n in base.dtypes.items())),
        ("vocabulary", f"{base.vocabulary_rows:,} rows" if base.vocabulary_rows else ""),
        *(("tied", _tie(tie.members, tie.why)) for tie in base.ties),
        ("unknown", f"{counted(len(base.unknown), 'tensor')} that the class does not have" if base.unknown else ""),
    ]
    _rows(out, rows)


def _tie(members: Iterable[str], why: str) -> str:
    return " = ".join(members) + (f" (cannot be kept apart: {why})" if why else "")


def _adapter(out: Out, adapter: AdapterFacts) -> None:
    line(out, styled("adapter ", "bold"), f"{adapter.folder} ({adapter.name})")
    stored = f"{size(adapter.n_bytes)}, {counted(adapter.n_tensors, 'tensor')}"
    rows = [
        ("method", adapter.method),
        ("trained on", adapter.base_named or ""),
        ("rank", _histogram(adapter.ranks)),
        ("scale", _histogram(adapter.scales)),
        ("modules", ", ".join(f"{name} × {n}" for name, n in adapter.targets.items())),
        ("in full", ", ".join(adapter.saved)),
        ("stored", stored if adapter.n_tensors else "no weights here"),
        ("types", ", ".join(f"{dtype} {n:,}" for dtype, n in adapter.dtypes.items())),
    ]
    _rows(out, rows)
    for label, trainable in (("by config", adapter.expected), ("in the file", adapter.in_file)):
        if trainable is not None:
            _trainable(out, label, trainable)


def _histogram(counts: Mapping[str, int]) -> str:
    """One value as it is; several with the number of modules that have it."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({counted(n, 'module')})" for value, n in counts.items())


def _trainable(out: Out, label: str, found: Trainable) -> None:
    total = f"{found.n_trainable:,} trainable of {found.n_total:,} ({found.percent:.2f} %)"
    line(out, styled(f"  {label:12}", "dim"), styled(total, "bold"))
    for group, n in found.groups.items():
        line(out, f"  {'':12}  {group}: {n:,}")


def plan(out: Out, found: Forecast) -> None:
    """Decisions, operations, bytes, and what a merge needs."""
    from suture.planning.codec import plan_id

    todo = found.plan
    growth(out, todo)
    for note in todo.notes:
        line(out, "• ", note)
    line(out, styled(f"  {'operation':12}{'tensors':>9}{'bytes':>20}", "dim"))
    counts, sizes = Counter(op.why for op in todo.operations), Counter[str]()
    for op in todo.operations:
        sizes[op.why] += op.end - op.begin
    for why, n in sorted(counts.items()):
        line(out, f"  {why:12}{n:>9,}{sizes[why]:>20,}")
    line(out)
    took = "name OUT with -o, and a probe tells" if found.seconds is None else f"about {found.seconds:.0f} s"
    rows = [
        ("reads", size(found.n_bytes_read)),
        ("writes", f"{size(todo.n_bytes_written)} in {counted(len(todo.files), 'weight file')}"),
        ("beside them", _side_files(todo)),
        ("disk", f"{size(found.n_bytes_disk)} free"),
        ("memory", f"at most about {size(found.n_bytes_memory)}, with {counted(found.workers, 'thread')}"),
        ("time", took),
        ("updates", _kept(found.kept)),
        ("kernel", found.kernel),
        ("plan", plan_id(todo)),
    ]
    _rows(out, rows)
    slow_kernel(out)


def _kept(found: KeptUpdates | None) -> str:
    """What each way of rounding keeps of the updates; empty where nothing is written in 16 bits."""
    if found is None:
        return ""
    ways = {"to nearest": found.nearest, "at random": found.stochastic}
    told = [f"{way} {k.share:.0%} kept, cosine {k.cosine:.2f}" for way, k in ways.items()]
    return f"{'; '.join(told)} (rows of {found.n_matrices} matrices)"


def slow_kernel(out: Out) -> None:
    """That the compiled kernel is missing, and why."""
    from suture import compiled

    if why := compiled.why_not():
        line(out, styled("note ", "yellow"), f"numpy computes this merge, at about half the speed: {why}")


def _side_files(todo: Plan) -> str:
    """The other files of the output, and where each comes from."""
    origins = dict.fromkeys(todo.texts, "generated") | {f.name: f.origin for f in todo.side_files}
    return ", ".join(f"{name} ({origin})" for name, origin in sorted(origins.items()))


def growth(out: Out, todo: Plan) -> None:
    """Tied parameters that come apart, and by how much the model grows."""
    added = {op.tensor: op.end - op.begin for op in todo.operations if op.why == "untie"}
    for members in todo.untied:
        n_bytes = sum(added.get(m, 0) for m in members)
        names = " and ".join(members)
        line(out, styled("untied ", "yellow"), f"{names} get a tensor each: the model grows by {size(n_bytes)}")


def merged(out: Out, found: Merged) -> None:
    """What a merge did, or a merge without an adapter."""
    operations = found.plan.operations
    n = Counter(op.why for op in operations)
    again = {op.part_of for op in operations if op.part_of}
    changed = sum((bool(op.terms) or op.source.origin == "adapter") and not op.part_of for op in operations)
    joined = bool(found.receipt.adapter)
    done = [f"{counted(changed + len(again), 'weight' if again else 'tensor')} changed"] if joined else []
    done += [f"{len(again):,} of them quantised again"] if again else []
    done += [f"{n['dequantize']:,} dequantised"] if n["dequantize"] else []
    done += [f"{n['copy']:,} copied"]
    done += [f"{n['cast']:,} cast"] if n["cast"] else []
    done += [f"{n['untie']:,} untied"] if n["untie"] else []
    line(out, styled("merged " if joined else "dequantised ", "bold green"), f"{found.out}: {', '.join(done)}")
    for note in found.receipt.notes:
        line(out, "• ", note)
    how = "every row recomputed" if found.full_verify else "a sample of every tensor recomputed"
    speed = size(found.plan.n_bytes_written / found.seconds) if found.seconds else "?"
    rows = [
        ("verified", f"{how}, before the folder appeared"),
        ("updates", _kept(found.receipt.kept)),
        ("receipt", str(found.out / "suture_receipt.json")),
        ("wrote", f"{size(found.plan.n_bytes_written)} in {found.seconds:.1f} s ({speed}/s, verification included)"),
    ]
    if found.receipt.linked:
        rows.append(("linked", f"{counted(len(found.receipt.linked), 'file')} of BASE: do not change them in place"))
    _rows(out, rows)
    if found.verdict is not None:
        verdict(out, found.verdict)


def verdict(out: Out, found: Verdict) -> None:
    """Checks with ticks and crosses, wrong tensors, logits."""
    for check in found.checks:
        tick = styled("✓", "bold green") if check.ok else styled("✗", "bold red")
        line(out, tick, f" {check.name}: {check.n_checked:,} checked", f"; {check.detail}" if check.detail else "")
    if found.wrong:
        _wrong(out, found.wrong)
    if found.logits is not None:
        _logits(out, found.logits)
    word = styled("verified", "bold green") if found.ok else styled("not verified", "bold red")
    line(out, word)


def _wrong(out: Out, tensors: Sequence[TensorVerdict]) -> None:
    """Wrong tensors: how, how much, and why, as far as it can be told."""
    for t in tensors[: 2 * SHOWN]:
        facts = [t.status, f"{t.n_wrong:,} of {t.n_checked:,} wrong"]
        facts += [f"largest error {t.max_error:.3g}"] if t.max_error else []
        facts += [f"{t.applied:.3f} of the update applied"] if t.applied is not None else []
        line(out, styled("✗", "bold red"), " ", styled(t.tensor, "bold"), ": ", ", ".join(facts))
        if t.detail:
            line(out, "    ", t.detail)
    if len(tensors) > 2 * SHOWN:
        line(out, styled(f"… and {len(tensors) - 2 * SHOWN:,} more; --json lists all of them", "dim"))


def _logits(out: Out, found: LogitsReport) -> None:
    new = found.new_token_mean_kl
    rows = [
        ("logits", f"merged against base + adapter ({found.witness}, {found.dtype}), {found.n_positions:,} positions"),
        ("KL", f"{found.mean_kl:.3g} nats on average, {found.max_kl:.3g} at most"),
        ("top 1", f"{found.top1_agreement:.2%} equal; largest difference of a logit {found.max_abs_diff:.3g}"),
        ("the adapter", f"is {found.kl_to_base:.3g} nats away from the bare base"),
        ("new tokens", "" if new is None else f"{new:.3g} nats on average"),
    ]
    _rows(out, rows)


def page(out: Out, page: str) -> None:
    """A Markdown page: rendered on a terminal, as it is elsewhere."""
    if isinstance(out, Plain) or not out.is_terminal:
        line(out, page.rstrip("\n"))
        return
    from rich.markdown import Markdown

    out.print(Markdown(page))


def index(out: Out, pages: Sequence[Page]) -> None:
    """The list of all pages."""
    for entry in pages:
        line(out, styled(f"{entry.code:18}", "bold"), entry.title)


def _rows(out: Out, rows: Iterable[tuple[str, str]]) -> None:
    """Labelled lines; those without text are left out."""
    for label, text in rows:
        if text:
            line(out, styled(f"  {label:12}", "dim"), text)
