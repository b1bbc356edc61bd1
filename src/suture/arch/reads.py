"""Does a model compute something else when a flag changes? The source of its classes is read, not run."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Set
from typing import Any

# What these do is over when a model is built, or is done only when it is resized.
_NOT_FORWARD = re.compile(r"_*(init_weights|tie_\w+|set_\w+|resize_\w+|get_\w*embeddings|get_expanded\w*)$")


def reads_of(model: Any, attributes: Set[str]) -> str:
    """Why the function of a model depends on one of these config attributes, or "" when it does not.

    A read counts where it stands in a method of a class that the model is made of. In `__init__`, keeping the value
    under the same name does not count; that name is looked for as well.
    """
    used = {cls for kind in {type(m) for m in model.modules()} for cls in kind.__mro__}
    names: dict[str, set[str]] = {}
    for cls in used:
        if cls.__module__.startswith("transformers.models."):
            names.setdefault(cls.__module__, set()).add(cls.__name__)
    for module in sorted(names):
        try:
            source = inspect.getsource(sys.modules[module])
        except OSError:
            return f"the source of {module} cannot be read, so nobody knows whether it depends on the flag"
        for where, attribute in _reads(source, names[module], attributes):
            return f"{where} depends on config.{attribute}"
    return ""


def _reads(source: str, classes: Set[str], attributes: Set[str]) -> Iterator[tuple[str, str]]:
    if not any(a in source for a in attributes):
        return
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not _NOT_FORWARD.match(method.name):
                    yield from ((f"{node.name}.{method.name}", a) for a in _attributes_read(method, attributes))


def _attributes_read(function: ast.FunctionDef, attributes: Set[str]) -> Iterator[str]:
    kept = {id(n.value) for n in ast.walk(function) if isinstance(n, ast.Assign) and _keeps(n)}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in kept:
            name = node.attr
        elif isinstance(node, ast.Call) and _is_getattr(node):
            name = node.args[1].value  # type: ignore[attr-defined]
        else:
            continue
        if name in attributes:
            yield name


def _keeps(node: ast.Assign) -> bool:
    """`self.name = config.name`"""
    value, target = node.value, node.targets[0]
    return isinstance(value, ast.Attribute) and isinstance(target, ast.Attribute) and value.attr == target.attr


def _is_getattr(node: ast.Call) -> bool:
    named = isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) > 1
    return named and isinstance(node.args[1], ast.Constant)
