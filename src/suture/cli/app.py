"""The command `suture`. Nothing is imported before it is needed: `suture --help` answers at once."""

from __future__ import annotations

import functools
import importlib
import io
import signal
import sys

import click

from suture.cli._command import Command, Context, command
from suture.errors import Interrupted

COMMANDS = ("inspect", "check", "fix", "rules", "explain", "plan", "merge", "dequantize", "verify", "train", "resume")


@functools.cache
def _loaded(name: str) -> Command:
    return command(getattr(importlib.import_module(f"suture.cli.{name}"), name))


class Suture(click.Group):
    """The commands, each of which is imported when it is asked for."""

    context_class = Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which one uses them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name.

        Raises:
            click.NoSuchCommand: there is none; it says which is near.
        """
        if cmd_name in COMMANDS:
            return _loaded(cmd_name)
        if ctx.resilient_parsing:  # a shell completes a line
            return None
        raise click.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Ctrl-C has one exit code, also while a command is still being imported."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.exceptions.Exit(Interrupted.exit_code) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first paragraph of its help; click would cut it after a line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, (_loaded(name).help or "").partition("\n\n")[0]) for name in COMMANDS])


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from suture import __version__

        click.echo(f"suture {__version__}")
        context.exit()


app = Suture(
    "suture",
    help="Merge LoRA adapters into their base model by streaming files, and prove the merge.",
    no_args_is_help=True,
    params=[
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
        )
    ],
    context_settings={"show_default": True, "max_content_width": 100},
)


def main() -> None:
    """Run the command line. SIGTERM stops a command as Ctrl-C does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="suture")
