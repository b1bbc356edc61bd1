"""What training shows: the audit, the display of a run, and its outcome."""

from __future__ import annotations

import io
import itertools
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from suture.cli._training import Display, audit, duration, outcome
from suture.values.training import Audit, Difference, GroupRow, Movement, Outcome, StageLoss, StepMetrics

EVIL = "q_proj\x1b[2J\rx"
ROWS = (
    GroupRow("LoRA", 420, 1_134_559_232, ("F32",), (2e-4, 3.2e-3)),
    GroupRow("input embedding", 1, 28_311_552, ("BF16", "F32"), ()),
)
GOOD = Audit(ROWS, 1_134_559_232, 9_164_820_480, {"q_proj": 30, "k_proj": 30}, (), probed=True)
GROUPS = {"LoRA": 2e-4, "input embedding": 2e-5}
BRAILLE = re.compile("[\u2801-\u28ff]")


def shown(show, *arguments, **options):
    out = recorded()
    show(out, *arguments, **options)
    return out.file.getvalue()


def recorded(*, terminal=False, width=100):
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=terminal,
        highlight=False,
        markup=False,
        _environ={"TERM": "xterm"},
    )


def metrics(step, loss=2.0, **changes):
    settings = {
        "step": step,
        "n_steps": 60,
        "epoch": step / 30,
        "loss": loss,
        "lrs": GROUPS,
        "grad_norm": 1.25,
        "grad_norms": {"LoRA": 0.75, "input embedding": 0.125},
        "new_rows_grad_norm": None,
        "n_tokens": 1000 * step,
        "tokens_per_second": 1234.5,
        "seconds_left": 754.0,
    }
    return StepMetrics(**{**settings, **changes})


def done(**changes):
    settings = {
        "run": Path("my run"),
        "base": "BASE",
        "adapter": Path("my run/adapter"),
        "checkpoint": None,
        "step": 60,
        "n_steps": 60,
        "stages": (
            StageLoss("before", 3.0, 3.5),
            StageLoss("after", 1.25, 1.5),
            StageLoss("reloaded", 1.25, 1.5),
            StageLoss("merged", 1.25 + 2e-7, 1.5 - 4e-7),
        ),
        "movements": (
            Movement("LoRA", None, 0.5, 0, 0, ()),
            Movement("input embedding", 0.0123, 4.0, 49152, 49000, ()),
        ),
        "curve": tuple((step, 3.0 / step) for step in range(1, 61)),
        "problems": (),
        "notes": ("12 examples were cut to 1,024 tokens",),
    }
    return Outcome(**{**settings, **changes})


# -------------------------------------------------------------------------------------------------------------- audit


def test_an_audit_without_differences():
    assert shown(audit, GOOD) == (
        "  group             tensors      parameters       dtype    learning rate\n"
        "  LoRA                  420   1,134,559,232         F32   0.0002, 0.0032\n"
        "  input embedding         1      28,311,552   BF16, F32                –\n"
        "trains 1,134,559,232 of 9,164,820,480 values (12.38 %)\n"
        "low-rank modules: q_proj ×30, k_proj ×30\n"
        "✓ every tensor gets a gradient\n"
    )


def test_what_no_gradient_was_seen_of_is_not_claimed():
    assert "gradient" not in shown(audit, Audit(ROWS, 1, 2, {}, (), probed=False))


def test_differences_are_told_group_by_group():
    names = tuple(f"layer{n}.{EVIL}" for n in range(7))
    wrong = Difference("LoRA", "7 tensors are frozen", "Set requires_grad.", names, 7000)
    few = Difference("head", "not in the optimiser", "", ("lm_head",), 0)
    text = shown(audit, Audit(ROWS, 1, 2, {}, (wrong, few), probed=True))
    assert "✗ LoRA  (7,000 parameters)\n  found    7 tensors are frozen\n  do       Set requires_grad.\n" in text
    assert "layer4" in text
    assert "layer5" not in text
    assert " … and 2 more" in text
    assert "✗ head\n  found    not in the optimiser\n  names    lm_head\n" in text
    assert text.endswith("2 differences\n")
    assert "every tensor gets a gradient" not in text
    assert "q_proj\\x1b[2J\\x0dx" in text
    assert "\x1b" not in text


# ------------------------------------------------------------------------------------------------------------- display


def test_plain_lines_where_there_is_no_terminal():
    out, times = recorded(), itertools.count(0.0, 1.0)
    with Display(out, clock=lambda: next(times)) as display:
        display.stage("loading the base")
        display.audit(GOOD)
        display.note(f"added {EVIL}")
        display.stage("training")
        for step in range(1, 61):
            display.step(metrics(step, 3.0 / step, eval_loss=0.5 if step == 9 else None))
        display.saved(Path("run/checkpoint-60"), 420)
    lines = out.file.getvalue().split("\n")
    assert lines[0] == "→ loading the base"
    assert "trains 1,134,559,232 of 9,164,820,480 values (12.38 %)" in lines
    assert "• added q_proj\\x1b[2J\\x0dx" in lines
    assert lines[-2] == "✓ saved 420 tensors, read back: run/checkpoint-60"
    steps = [int(text.split("/")[0].removeprefix("step ")) for text in lines if text.startswith("step ")]
    assert steps[0] == 1
    assert steps[-1] == 60
    assert 9 in steps
    assert len(steps) < 12
    # each telling asks the clock twice, so ten seconds are at most ten steps
    assert all(later - earlier <= 10 for earlier, later in itertools.pairwise(steps))
    assert next(text for text in lines if text.startswith("step 1/")) == (
        "step 1/60   loss 3.0000   gradient 1.25   learning rate 0.0002, 2e-05   epoch 0.03   1,234 tokens/s   "
        "12 min 34 s left"
    )
    assert "   eval loss 0.5000   " in next(text for text in lines if text.startswith("step 9/"))
    assert all(text.isprintable() for text in lines)
    assert not BRAILLE.search("".join(lines))


def test_the_last_step_is_told_when_a_run_breaks():
    out = recorded()
    with pytest.raises(RuntimeError), Display(out, clock=lambda: 0.0) as display:  # noqa: PT012
        for step in range(1, 6):
            display.step(metrics(step))
        raise RuntimeError
    assert [text[:6] for text in out.file.getvalue().splitlines()] == ["step 1", "step 5"]


def test_a_panel_on_a_terminal():
    out = recorded(terminal=True)
    with Display(out) as display:
        display.stage("training")
        display.note(f"added {EVIL}")
        for step in range(1, 31):
            display.step(metrics(step, 3.0 / step, new_rows_grad_norm=0.5, eval_loss=2.5 if step == 10 else None))
        display._live.refresh()
        drawn = plain(out.file.getvalue())
    for text in ("step 30/60", "loss 0.1000", "eval loss 2.5000", "1,234 tokens/s", "12 min 34 s left", "◆ eval"):
        assert text in drawn
    assert re.search(r"│ +LoRA +0\.0002 +0\.75 +│", drawn)
    assert re.search(r"│ +input embedding +2e-05 +0\.125 +│", drawn)
    assert BRAILLE.search(drawn)
    assert "─ training ─" in drawn
    assert "• added q_proj\\x1b[2J\\x0dx" in drawn
    frame = drawn[drawn.rindex("╭") : drawn.rindex("╯") + 1].split("\n")
    assert {len(text) for text in frame} == {100}
    assert sum("step 30/60" in text for text in frame) == 1
    assert frame[1].count("━") + frame[1].count("╺") == 96
    assert "step 30/60" in plain(out.file.getvalue()).split("╯")[-1]  # after the panel has gone


def test_a_narrow_terminal_cuts_nothing_apart():
    out = recorded(terminal=True, width=24)
    with Display(out) as display:
        display.step(metrics(1))
        display._live.refresh()
        drawn = plain(out.file.getvalue())
    frame = drawn[drawn.rindex("╭") : drawn.rindex("╯") + 1].split("\n")
    assert {len(text) for text in frame} == {24}


def plain(text):
    """Text without the sequences that colour it and move the cursor; names must not have brought any of their own."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.replace("\x1b[2J", "NAME")).replace("\r", "")


def test_a_step_that_is_told_again_counts_once():
    display = Display(recorded())
    for step in (1, 2, 3, 2, 3, 4):
        display.step(metrics(step, float(step), eval_loss=1.0))
    assert display._points == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert [step for step, _ in display._evals] == [1, 2, 3, 4]


def test_nothing_goes_to_stdout(capsys):
    with Display() as display:
        display.stage("audit")
        display.step(metrics(1, math.nan, tokens_per_second=math.nan, seconds_left=math.inf, grad_norm=None))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "→ audit\nstep 1/60   loss nan   learning rate" in captured.err
    assert "? tokens/s   ? left" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 00 s"), (754, "12 min 34 s"), (3600, "1 h 00 min"), (90061, "25 h 01 min"), (-1, "?")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------------------------------- outcome


def test_an_outcome():
    text = shown(outcome, done(), base="org/base")
    assert text.startswith("trained my run/adapter: step 60 of 60\n")
    assert (
        "  loss                    train       eval   apart from trained\n"
        "  before               3.000000   3.500000\n"
        "  after training       1.250000   1.500000\n"
        "  saved and reloaded   1.250000   1.500000                 none\n"
        "  merged               1.250000   1.500000             -4.0e-07\n"
    ) in text
    assert (
        "  group                  moved by   rows that never moved\n"
        "  LoRA              0.5 from zero                       –\n"
        "  input embedding          1.23 %        49,000 of 49,152\n"
    ) in text
    assert "3.00 │" in text
    assert BRAILLE.search(text)
    assert "• 12 examples were cut to 1,024 tokens\n" in text
    assert text.endswith("next: suture merge org/base 'my run/adapter' -o OUT\n")


def test_a_run_that_was_stopped():
    text = shown(outcome, done(adapter=None, checkpoint=Path("my run/checkpoint-7"), step=7, stages=(), movements=()))
    assert text.startswith("stopped at step 7 of 60: my run/checkpoint-7\n")
    assert text.endswith("stopped at step 7 of 60; `suture resume 'my run'` goes on\n")
    assert "merge" not in text


def test_problems_are_red_and_no_merge_is_proposed():
    out = recorded(terminal=True)
    outcome(out, done(problems=(f"after reloading, {EVIL} differs",)))
    text = out.file.getvalue()
    assert "\x1b[31mafter reloading, q_proj\\x1b[2J\\x0dx differs" in text
    assert "suture merge" not in text


def test_tensors_that_never_moved_are_named():
    still = Movement("LoRA", 0.0, 0.0, 0, 0, tuple(f"t{n}" for n in range(6)))
    text = shown(outcome, done(movements=(still,)))
    assert "! 6 tensors of LoRA never moved: t0, t1, t2, t3, t4 … and 1 more\n" in text


def test_losses_that_are_missing_or_not_finite():
    stages = (StageLoss("after", 1.0, None), StageLoss("reloaded", math.nan, None), StageLoss("merged", 1.5, None))
    text = shown(outcome, done(stages=stages))
    rows = [text.split() for text in text.split("\n")[3:6]]
    assert rows == [
        ["after", "training", "1.000000", "–"],
        ["saved", "and", "reloaded", "nan", "–", "+nan"],
        ["merged", "1.500000", "–", "+5.0e-01"],
    ]
