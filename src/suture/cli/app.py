"""The command `suture`. Nothing heavy is imported before a command runs: `suture --help` answers at once."""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from suture.cli._command import command
from suture.cli.check import check
from suture.cli.explain import explain
from suture.cli.fix import fix
from suture.cli.inspect import inspect
from suture.cli.merge import merge
from suture.cli.plan import plan
from suture.cli.resume import resume
from suture.cli.rules import rules
from suture.cli.train import train
from suture.cli.verify import verify

HELP = "Merge LoRA adapters into their base model by streaming files, and prove the merge."

app = typer.Typer(help=HELP, no_args_is_help=True, pretty_exceptions_enable=False)

for _function in (inspect, check, fix, rules, explain, plan, merge, verify, train, resume):
    app.command(no_args_is_help=_function not in (explain, rules))(command(_function))


def _version(value: bool) -> None:
    if value:
        from suture import __version__

        typer.echo(f"suture {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line. SIGTERM stops a command as Ctrl-C does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="suture")
