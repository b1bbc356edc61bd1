"""What training shows to people: the audit, a live display on stderr, and the outcome."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from suture.cli._output import Plain, console, counted, line, rich_text, styled
from suture.errors import printable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from suture.cli._output import Out
    from suture.values.training import Audit, Difference, Movement, Outcome, StageLoss, StepMetrics

SHOWN = 5  # names before the rest is only counted
CURVE_LINES, CURVE_WIDTH = 9, 80
KEPT_POINTS = 4000  # of the curve that is drawn while it grows
SECONDS_BETWEEN_LINES = 10.0  # where stderr is no terminal
STAGES = {"before": "before", "after": "after training", "reloaded": "saved and reloaded", "merged": "merged"}


def audit(out: Out, found: Audit) -> None:
    """What trains, and every way in which that is not what was asked for."""
    rows = [
        (row.group, f"{row.n_tensors:,}", f"{row.n_params:,}", ", ".join(row.dtypes), _rates(row.lrs))
        for row in found.rows
    ]
    _table(out, ("group", "tensors", "parameters", "dtype", "learning rate"), rows)
    share = f"trains {found.n_trainable:,} of {found.n_total:,} values ({found.percent:.2f} %)"
    line(out, styled(share, "bold"))
    if found.targets:
        line(out, "low-rank modules: ", ", ".join(f"{name} ×{n}" for name, n in found.targets.items()))
    if found.probed and found.ok and not found.notes:
        line(out, styled("✓ ", "bold green"), "every tensor gets a gradient")
    for note in (*found.ties, *found.notes):
        line(out, "• ", note)
    for difference in found.differences:
        _difference(out, difference)
    if not found.ok:
        line(out, styled(counted(len(found.differences), "difference"), "bold red"))


def _difference(out: Out, found: Difference) -> None:
    size = f"  ({found.n_params:,} parameters)" if found.n_params else ""
    line(out, styled("✗ ", "bold red"), styled(found.group, "bold"), size)
    for label, text in (("found", found.found), ("do", found.do), ("names", _names(found.names))):
        if text:
            line(out, styled(f"  {label:9}", "dim"), text)


def _names(names: Sequence[str]) -> str:
    more = f" … and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _rates(lrs: Iterable[float]) -> str:
    return ", ".join(f"{lr:.3g}" for lr in lrs) or "–"


def _table(out: Out, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for number, text in enumerate(_aligned(header, rows)):
        line(out, styled(text, "dim" if number == 0 else ""))


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, all others to the right."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for first, *rest in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("   ".join((f"  {first:<{widths[0]}}", *numbers)).rstrip())
    return lines


class Display:
    """Watches a run and shows it on stderr: a live panel on a terminal, plain lines elsewhere.

    Args:
        out: where to show it; stderr if None.
        clock: seconds that never go back, for the time between plain lines.
    """

    def __init__(self, out: Out | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = console(stderr=True) if out is None else out
        self._clock = clock
        self._live: Live | None = None
        self._stage = ""
        self._last: StepMetrics | None = None
        self._eval: float | None = None
        self._told = -math.inf  # when the last plain line was printed
        self._told_step = 0
        self._points: list[tuple[int, float]] = []
        self._evals: list[tuple[int, float]] = []

    def __enter__(self) -> Display:
        out = self._out
        if not isinstance(out, Plain) and out.is_terminal and not out.is_dumb_terminal:
            from rich.live import Live

            # nothing is left of the panel in the end: the outcome tells it all
            self._live = Live(console=out, get_renderable=self._panel, refresh_per_second=2, transient=True)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._last is not None and self._told_step != self._last.step:
            self._tell(self._last)

    def stage(self, name: str) -> None:
        """A part of the run begins."""
        self._stage = name
        line(self._out, styled("→ ", "dim"), name)

    def audit(self, found: Audit) -> None:
        """The audit is done."""
        audit(self._out, found)

    def note(self, text: str) -> None:
        """A choice that was made, or something that was cut or left out."""
        line(self._out, "• ", text)

    def step(self, metrics: StepMetrics) -> None:
        """A step was logged. Without a panel, the first is told, the last, and one every 10 seconds."""
        from suture.training.curve import thinned

        self._last = metrics
        self._points = thinned([*_before(self._points, metrics.step), (metrics.step, metrics.loss)], KEPT_POINTS)
        if metrics.eval_loss is not None:
            self._eval = metrics.eval_loss
            self._evals = [*_before(self._evals, metrics.step), (metrics.step, metrics.eval_loss)]
        due = self._clock() - self._told >= SECONDS_BETWEEN_LINES
        if self._live is None and (due or metrics.eval_loss is not None or metrics.step >= metrics.n_steps):
            self._tell(metrics)

    def saved(self, folder: Path, n_tensors: int) -> None:
        """A checkpoint was written and read back."""
        line(self._out, f"✓ saved {counted(n_tensors, 'tensor')}, read back: ", str(folder))

    def _tell(self, metrics: StepMetrics) -> None:
        self._told, self._told_step = self._clock(), metrics.step
        line(self._out, "   ".join((f"step {metrics.step:,}/{metrics.n_steps:,}", *self._facts(metrics))))

    def _facts(self, m: StepMetrics) -> list[str]:
        evaluated = m.eval_loss if self._live is None else self._eval
        facts = [f"loss {m.loss:.4f}"]
        facts += [f"eval loss {evaluated:.4f}"] if evaluated is not None else []
        facts += [f"gradient {m.grad_norm:.3g}"] if m.grad_norm is not None else []
        facts += [f"new rows {m.new_rows_grad_norm:.3g}"] if m.new_rows_grad_norm is not None else []
        facts += [f"learning rate {_rates(sorted(set(m.lrs.values()), reverse=True))}"] if self._live is None else []
        return [
            *facts,
            f"epoch {m.epoch:.2f}",
            f"{_speed(m.tokens_per_second)} tokens/s",
            f"{duration(m.seconds_left)} left",
        ]

    def _panel(self) -> RenderableType:
        """The whole of the live display."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        body: list[RenderableType] = []
        if (m := self._last) is not None:
            inner = max(self._out.width - 4, 1)
            bar = Table.grid()  # a bar alone does not end its line
            bar.add_row(ProgressBar(total=max(m.n_steps, 1), completed=m.step, width=inner))
            body = [bar]
            texts = [f"step {m.step:,}/{m.n_steps:,}", *self._facts(m), f"{m.n_tokens:,} tokens"]
            body += [_one_line(text) for text in _filled(texts, inner)]
            groups = list(dict.fromkeys((*m.lrs, *m.grad_norms)))
            rows = [(group, _number(m.lrs.get(group)), _number(m.grad_norms.get(group))) for group in groups]
            body += [_one_line(text) for text in _aligned(("group", "learning rate", "gradient norm"), rows)]
            body += [_one_line(text) for text in _curve(self._points, self._evals, inner)]
        title = rich_text(styled(self._stage or "starting", "bold"))
        return Panel(Group(*body), title=title, title_align="left", border_style="dim")


def _before(points: list[tuple[int, float]], step: int) -> list[tuple[int, float]]:
    """All points but those of a step that is told again, as after a resumption."""
    while points and points[-1][0] >= step:
        points = points[:-1]
    return points


def _filled(texts: Iterable[str], width: int) -> list[str]:
    """Short texts side by side, in as few lines as hold them."""
    lines: list[str] = []
    for text in texts:
        if lines and len(lines[-1]) + 3 + len(text) <= width:
            lines[-1] += "   " + text
        else:
            lines.append(text)
    return lines


def _one_line(text: str) -> Text:
    shown = rich_text(styled(text))
    shown.no_wrap, shown.overflow = True, "ellipsis"
    return shown


def _curve(points: Sequence[tuple[int, float]], evals: Sequence[tuple[int, float]], width: int) -> list[str]:
    from suture.training.curve import plot

    return plot(points, width=width, height=CURVE_LINES, second=evals)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "?"


def duration(seconds: float) -> str:
    """A span of time for people, in its two largest units."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def outcome(out: Out, found: Outcome, *, base: str = "BASE") -> None:
    """The answer of a run: where the adapter is, what was measured, what went wrong, and what to do next.

    Args:
        base: the base model's folder or name, for the command that merges.
    """
    _headline(out, found)
    if found.stages:
        _losses(out, found.stages)
    if found.movements:
        _movements(out, found.movements)
    if found.curve:
        for text in _curve(found.curve, (), min(out.width, CURVE_WIDTH)):
            line(out, text)
    for problem in found.problems:
        line(out, styled("✗ ", "bold red"), styled(problem, "red"))
    for note in found.notes:
        line(out, "• ", note)
    _next(out, found, base)


def _headline(out: Out, found: Outcome) -> None:
    steps = f"step {found.step:,} of {found.n_steps:,}"
    if found.adapter is None:
        line(out, styled("stopped ", "bold yellow"), f"at {steps}", f": {found.checkpoint}" if found.checkpoint else "")
    else:
        style = "bold red" if found.problems else "bold green"
        line(out, styled("trained ", style), f"{found.adapter}: {steps}")


def _losses(out: Out, stages: Sequence[StageLoss]) -> None:
    """Losses by stage; what is saved must lose as much as what was trained, so the difference to it is told."""
    trained = next((stage for stage in stages if stage.stage == "after"), None)
    rows = []
    for stage in stages:
        apart = "" if trained is None or stage.stage in ("before", "after") else _apart(stage, trained)
        rows.append((STAGES[stage.stage], f"{stage.train:.6f}", _loss(stage.eval), apart))
    line(out)
    _table(out, ("loss", "train", "eval", "apart from trained"), rows)


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.6f}"


def _apart(stage: StageLoss, trained: StageLoss) -> str:
    """The larger difference of the two losses, with its sign."""
    pairs = [(stage.train, trained.train)]
    if stage.eval is not None and trained.eval is not None:
        pairs.append((stage.eval, trained.eval))
    apart = max((a - b for a, b in pairs), key=lambda d: math.inf if math.isnan(d) else abs(d))
    return f"{apart:+.1e}" if apart else "none"


def _movements(out: Out, movements: Sequence[Movement]) -> None:
    rows = []
    for m in movements:
        moved = f"{100 * m.relative:.3g} %" if m.relative is not None else f"{m.absolute:.3g} from zero"
        still = f"{m.n_still_rows:,} of {m.n_rows:,}" if m.n_rows else "–"
        rows.append((m.group, moved, still))
    line(out)
    _table(out, ("group", "moved by", "rows that never moved"), rows)
    for m in movements:
        if m.still_tensors:
            what = f"{counted(len(m.still_tensors), 'tensor')} of {m.group} never moved: "
            line(out, styled("! ", "bold yellow"), what, _names(m.still_tensors))
    line(out)


def _next(out: Out, found: Outcome, base: str) -> None:
    """The command that goes on from here."""
    if found.adapter is None:
        run = shlex.quote(str(found.run))
        words = f"stopped at step {found.step:,} of {found.n_steps:,}; `suture resume {run}` goes on"
        line(out, styled(words, "bold"))
    elif not found.problems:
        command = f"suture merge {shlex.quote(base)} {shlex.quote(str(found.adapter))} -o OUT"
        line(out, styled("next: ", "dim"), command)
