"""What makes a function a command: options in groups, one answer on stdout, errors told the same way everywhere."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from suture.cli import _errors, _output
from suture.cli._output import Show
from suture.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="SUTURE_DEBUG", help="Show the traceback of an unexpected error.")
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say: data for --json, a function that shows it to people, and the exit code."""

    data: Any
    show: Show
    exit_code: int = 0
    other_form: str = ""  # the option that asked for another form than text, which --json would contradict


def command(function: Callable[..., Answer | None]) -> Callable[..., None]:
    """A function typer can run: dataclass parameters become one option a field; --json and --debug are added."""
    parameters = inspect.signature(function, eval_str=True).parameters

    def run(*, json: bool, debug: bool, **values: Any) -> None:
        with _errors.told(json=json, debug=debug):
            answer = function(**_packed(parameters, values))
            if answer is not None and json and answer.other_form:
                raise UsageError(f"--json and {answer.other_form} are two forms", do="Choose one of them.")
            if answer is not None:  # of several processes, one answers
                _output.answer(answer.data, answer.show, json=json)
        if answer is not None and answer.exit_code:
            raise typer.Exit(answer.exit_code)

    run.__doc__, run.__name__ = function.__doc__, function.__name__
    flat = [*_flat(parameters.values()), _named("json", Json, False), _named("debug", Debug, False)]
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run


def _flat(parameters: Iterable[inspect.Parameter]) -> Iterable[inspect.Parameter]:
    """Every parameter, those that are groups taken apart into their fields."""
    for parameter in parameters:
        if not dataclasses.is_dataclass(parameter.annotation):
            yield _named(parameter.name, parameter.annotation, parameter.default)
            continue
        hints = typing.get_type_hints(parameter.annotation, include_extras=True)
        for field in dataclasses.fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            yield _named(field.name, hints[field.name], default)


def _named(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


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
