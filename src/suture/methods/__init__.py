"""Adapter methods, found by folder: one method, one file, and the file's name is the method's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

from suture.methods.base import Method


def _discover() -> Mapping[str, Method]:
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    return MappingProxyType({n: importlib.import_module(f"{__name__}.{n}").METHOD for n in names})


METHODS: Mapping[str, Method] = _discover()
