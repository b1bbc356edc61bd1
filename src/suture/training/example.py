"""The example file of settings, made from the settings themselves."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from suture.errors import OutputExists
from suture.training.config import RunConfig
from suture.training.folder import put
from suture.training.yamlfile import to_text

_WIDTH = 100
_HEAD = (
    "Settings of a training run. Every setting stands here; those that need not be set are switched off by a # and "
    "show their default."
)


def example() -> str:
    """A commented YAML file with every setting; `load` reads it to the defaults."""
    return "\n".join([*_comment(_HEAD, ""), "", *_section(RunConfig, "")]) + "\n"


def write_example(path: Path) -> None:
    """Write the example to a new file.

    Raises:
        OutputExists: the file is there already.
    """
    if path.exists():
        raise OutputExists("the file is there already", where=str(path), do="Name another one.")
    put(path, example())


def _section(model: type[BaseModel], indent: str) -> list[str]:
    """The lines of all settings of a model, each below its description."""
    lines: list[str] = []
    for name, field in model.model_fields.items():
        required, off = ("Required. ", "") if field.is_required() else ("", "#")
        section = field.annotation if isinstance(field.annotation, type) else None
        if section and issubclass(section, BaseModel):
            inner = [f"{indent}{name}:", *_section(section, indent + "  ")]
            lines += ["", *_comment(field.description or "", indent), *inner, ""]
        else:
            lines += [*_comment(required + (field.description or ""), indent), f"{indent}{off}{name}: {_value(field)}"]
    return lines


def _comment(text: str, indent: str) -> list[str]:
    """A text as comment lines."""
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent) - 2)]


def _value(field: FieldInfo) -> str:
    """The default of a setting, or the example of a required one, as it stands in YAML."""
    value: Any = (field.examples or [None])[0] if field.is_required() else field.get_default(call_default_factory=True)
    # A scalar by itself would be followed by the end mark of a document.
    return to_text([value], flow=True).strip()[1:-1]
