"""How a function becomes a command: each type of parameter, groups, defaults, help."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
from click.testing import CliRunner

from suture.cli._command import Answer, Argument, Option, command
from suture.errors import UsageError


class Shade(StrEnum):
    light = "light"
    dark = "dark"


@dataclass(frozen=True, slots=True)
class Paint:
    """What colours there are."""

    shade: Annotated[Shade, Option("How dark.")] = Shade.light
    second: Annotated[Shade | None, Option("The other one.")] = None
    layers: Annotated[int | None, Option("How many.", "N", min=1)] = None


@dataclass(frozen=True, slots=True)
class Wall:
    """Where."""

    wall: Annotated[Path, Argument("WALL", "The wall.")]


def paint(
    where: Wall,
    tools: Annotated[tuple[str, ...], Argument("TOOL", "What with.")] = (),
    *,
    out: Annotated[Path | None, Option("The picture.", "OUT", short="-o")] = None,
    go_on: Annotated[str | None, Option("From where.", "PLACE", name="--continue")] = None,
    names: Annotated[tuple[str, ...], Option("Who. May be repeated.", "NAME")] = (),
    very_dry: Annotated[bool, Option("Wait.")] = False,
    look: Paint = Paint(),  # noqa: B008, RUF100 - frozen
) -> Answer:
    """Paint a wall.

    More words.
    """
    seen.update(where=where, tools=tools, out=out, go_on=go_on, names=names, very_dry=very_dry, look=look)
    return Answer(["done"], lambda out: None, exit_code=3, other_form="--very-dry" if very_dry else "")


seen: dict[str, object] = {}


def run(*arguments, **environment):
    seen.clear()
    return CliRunner().invoke(command(paint), arguments, env=environment, prog_name="paint", show_default=True)


def test_defaults():
    result = run("w")
    assert (result.exit_code, result.output) == (3, "")
    assert seen == {
        "where": Wall(Path("w")),
        "tools": (),
        "out": None,
        "go_on": None,
        "names": (),
        "very_dry": False,
        "look": Paint(),
    }


def test_every_type():
    call = "w a b -o x/y --continue there --names n --names m --shade dark --second light --layers 2"
    assert run(*call.split()).exit_code == 3
    assert seen == {
        "where": Wall(Path("w")),
        "tools": ("a", "b"),
        "out": Path("x/y"),
        "go_on": "there",
        "names": ("n", "m"),
        "very_dry": False,
        "look": Paint(Shade.dark, Shade.light, 2),
    }
    assert isinstance(seen["look"].shade, Shade)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("", "Usage: paint"),
        ("w --shade grey", "'--shade': 'grey' is not one of 'light', 'dark'."),
        ("w --layers 0", "0 is not in the range x>=1."),
        ("w --layers x", "'x' is not a valid integer range."),
        ("w --very-dry=yes", "does not take a value"),
        ("w --no-very-dry", "No such option"),
        ("w --go-on x", "No such option"),
    ],
)
def test_a_wrong_call_runs_nothing(call, words):
    result = run(*call.split())
    assert (result.exit_code, result.stdout, seen) == (2, "", {})
    assert words in result.stderr


def test_the_answer_as_json():
    assert run("w", "--json").stdout == '[\n  "done"\n]\n'
    twice = run("w", "--json", "--very-dry")
    assert twice.exit_code == UsageError.exit_code
    assert "--json and --very-dry are two forms" in twice.stdout


HELP = """\
Usage: paint [OPTIONS] WALL [TOOL]...

  Paint a wall.

  More words.

Positional arguments:
  WALL       The wall.
  [TOOL]...  What with.

Options:
  -o, --out OUT     The picture.
  --continue PLACE  From where.
  --names NAME      Who. May be repeated.
  --very-dry        Wait.
  --json            Print one JSON document instead of text.
  --debug           Show the traceback of an unexpected error.  [env var:
                    SUTURE_DEBUG]
  --help            Show this message and exit.

What colours there are:
  --shade [light|dark]   How dark.  [default: light]
  --second [light|dark]  The other one.
  --layers N             How many.  [x>=1]
"""


def test_help_is_in_groups():
    assert run("--help").stdout == HELP


def test_help_is_styled_on_a_terminal_only():
    shown = CliRunner().invoke(command(paint), ["--help"], prog_name="paint", show_default=True, color=True).stdout
    assert "\x1b[1mOptions\x1b[0m:" in shown
    assert "\x1b" not in run("--help").stdout


@pytest.mark.parametrize(("value", "traceback"), [("1", True), ("0", False), ("", False)])
def test_debug_by_the_environment(monkeypatch, value, traceback):
    monkeypatch.setitem(globals(), "seen", None)
    result = CliRunner().invoke(command(paint), ["w"], env={"SUTURE_DEBUG": value})
    assert result.exit_code == 70
    assert ("Traceback" in result.stderr) == traceback
