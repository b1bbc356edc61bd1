"""The compiled library: used where it was built and fits, and why it is not, in words."""

from __future__ import annotations

import pytest

from suture import compiled, noise
from suture.execute import at_random, fused
from suture.execute.receipt import kernel_name
from suture.verification import exact

CACHED = (
    *(compiled.why_not, compiled.library, fused.load, noise._compiled, at_random._functions),
    *(exact._functions, exact._random_functions),
)


@pytest.fixture
def fresh():
    def forget():
        for function in CACHED:
            function.cache_clear()

    forget()
    yield
    forget()


def test_it_was_built_here(fresh):
    """Where these tests run there is a compiler; else half of them would prove nothing."""
    assert compiled.why_not() == ""
    assert kernel_name().startswith(f"fused {compiled.VERSION}, numpy ")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda patch, path: patch.setenv("SUTURE_KERNEL", "numpy"), "SUTURE_KERNEL=numpy asks"),
        (lambda patch, path: patch.setattr(compiled, "LIBRARY", path / "none"), "there was no C compiler"),
        (lambda patch, path: patch.setattr(compiled, "VERSION", 99), "of another version"),
        (lambda patch, path: patch.setattr(compiled, "LIBRARY", broken(path)), "cannot be loaded"),
    ],
)
def test_numpy_is_used_where_it_cannot_be(fresh, monkeypatch, tmp_path, change, why):
    change(monkeypatch, tmp_path)
    assert why in compiled.why_not()
    assert compiled.library() is None
    assert fused.load() is None
    assert noise._compiled() is None
    assert exact._functions() == exact._random_functions() == at_random._functions() == {}
    assert kernel_name().startswith("numpy ")


def broken(folder):
    (folder / "broken.clib").write_bytes(b"no library")
    return folder / "broken.clib"
