"""The wheel: with the compiled library where there is a compiler, and whole without one."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAY = "from suture import compiled; print(compiled.why_not() or 'compiled')"


def build(folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel's content, unpacked, and what was said; from a copy, because the build writes beside the sources."""
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "*.clib", "tests", "demo"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    (wheel,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return wheel, done.stdout + done.stderr


def said(folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder / "site")}
    return subprocess.run(
        [sys.executable, "-c", SAY], env=environment, cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_with_a_compiler(tmp_path):
    wheel, _ = build(tmp_path)
    assert wheel.name.startswith("suture-")
    assert not wheel.name.endswith("-any.whl")
    assert said(tmp_path) == "compiled"


@pytest.mark.slow
def test_without_a_compiler(tmp_path):
    wheel, told = build(tmp_path, CC="/nowhere/cc")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "was not compiled" in told
    assert "numpy" in told
    assert (tmp_path / "site" / "suture" / "arch" / "table.json").is_file()
    assert said(tmp_path) == "there was no C compiler when Suture was installed"
