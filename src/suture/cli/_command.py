"""What makes a function a command of click: options in groups, one answer on stdout, errors told the same way."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import click

from suture.cli import _errors, _output
from suture.cli._output import Show
from suture.errors import UsageError


@dataclass(frozen=True, slots=True)
class Argument:
    """Makes a parameter an argument; its type and default are those of the parameter."""

    metavar: str
    help: str


@dataclass(frozen=True, slots=True)
class Option:
    """Makes a parameter an option: a flag if it is a bool, repeated if it is a tuple, a choice if it is an enum."""

    help: str
    metavar: str | None = None
    name: str = ""  # in the place of the parameter's own
    short: str = ""
    min: int | None = None
    envvar: str | None = None


Json = Annotated[bool, Option("Print one JSON document instead of text.")]
Debug = Annotated[bool, Option("Show the traceback of an unexpected error.", envvar="SUTURE_DEBUG")]

OPTIONS = "Options"  # the heading of those that are in no group
LONGEST = 31  # option with metavar that has its help beside it: --tokenizer [auto|base|adapter]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say: data for --json, a function that shows it to people, and the exit code."""

    data: Any
    show: Show
    exit_code: int = 0
    other_form: str = ""  # the option that asked for another form than text, which --json would contradict


class Formatter(click.HelpFormatter):
    """Help with headings in bold, where it goes to a terminal."""

    def write_heading(self, heading: str) -> None:
        """A heading; click takes the style away where there is no terminal."""
        super().write_heading(click.style(heading, bold=True))


class Context(click.Context):
    """Makes click use our formatter."""

    formatter_class = Formatter


class Command(click.Command):
    """A command whose help lists its options by group."""

    context_class = Context

    def __init__(self, name: str, run: Callable[..., None], parameters: Mapping[click.Parameter, str]) -> None:
        wanted = any(parameter.required for parameter in parameters)
        super().__init__(name, callback=run, params=[*parameters], help=run.__doc__, no_args_is_help=wanted)
        self._headings = parameters

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those of no group first."""
        sections: dict[str, list[tuple[str, str]]] = {OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(self._headings.get(parameter, OPTIONS), []).append(record)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=LONGEST)


def command(function: Callable[..., Answer | None]) -> Command:
    """The command that runs a function: a group becomes an option a field; --json and --debug are added."""
    signature = inspect.signature(function, eval_str=True).parameters

    def run(*, json: bool, debug: bool, **values: Any) -> None:
        with _errors.told(json=json, debug=debug):
            answer = function(**_packed(signature, values))
            if answer is not None and json and answer.other_form:
                raise UsageError(f"--json and {answer.other_form} are two forms", do="Choose one of them.")
            if answer is not None:  # of several processes, one answers
                _output.answer(answer.data, answer.show, json=json)
        if answer is not None and answer.exit_code:
            raise click.exceptions.Exit(answer.exit_code)

    run.__doc__ = function.__doc__
    parameters = {made: heading for parameter in signature.values() for made, heading in _made(parameter)}
    general = {_parameter("json", Json, False): OPTIONS, _parameter("debug", Debug, False): OPTIONS}
    return Command(function.__name__, run, parameters | general)


def _made(parameter: inspect.Parameter) -> Iterator[tuple[click.Parameter, str]]:
    """The click parameters of a parameter and their heading; a group is taken apart into its fields."""
    group = parameter.annotation
    if not dataclasses.is_dataclass(group):
        yield _parameter(parameter.name, group, parameter.default), OPTIONS
        return
    hints = typing.get_type_hints(group, include_extras=True)
    heading = (group.__doc__ or "").rstrip(".")
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield _parameter(field.name, hints[field.name], default), heading


def _parameter(name: str, hint: Any, default: object) -> click.Parameter:
    """The click parameter for a name, an `Annotated` type and a default."""
    kind, declared = typing.get_args(hint)
    many = typing.get_origin(kind) is tuple
    if many or isinstance(kind, types.UnionType):  # tuple[T, ...] or T | None
        kind = typing.get_args(kind)[0]
    required = default is inspect.Parameter.empty
    settings: dict[str, Any] = {"type": _type(kind, declared), "help": declared.help, "required": required}
    if not required and not many:
        settings["default"] = default
    if isinstance(declared, Argument):
        metavar = declared.metavar if required else f"[{declared.metavar}]"
        return click.Argument([name], metavar=metavar + "..." * many, nargs=-1 if many else 1, **settings)
    flags = [flag for flag in (declared.short, declared.name or f"--{name.replace('_', '-')}") if flag]
    more = {"metavar": declared.metavar, "envvar": declared.envvar, "show_envvar": True, "multiple": many}
    return click.Option([name, *flags], is_flag=kind is bool, **more, **settings)


class _Choice(click.Choice[Any]):
    """A choice among the values of an enumeration; click goes by the names of its members, which can hold no dash."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:
        """What is typed for a choice."""
        return str(choice)


def _type(kind: type, declared: Argument | Option) -> click.ParamType[Any] | type:
    """What click makes of a text."""
    if issubclass(kind, StrEnum):
        return _Choice(kind)
    if issubclass(kind, Path):
        return click.Path(path_type=Path)
    if isinstance(declared, Option) and declared.min is not None:
        return click.IntRange(min=declared.min)
    return kind


def _packed(parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the function, its groups put together again."""
    packed = {}
    for name, parameter in parameters.items():
        group = parameter.annotation
        if dataclasses.is_dataclass(group) and isinstance(group, type):
            packed[name] = group(**{field.name: values[field.name] for field in dataclasses.fields(group)})
        else:
            packed[name] = values[name]
    return packed
