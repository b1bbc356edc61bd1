"""Descriptions on disk: right, quick, without torch, and never a reason to fail."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zoo

from arch.loading import headers, read, shapes
from suture import arch
from suture.arch import cache, describe, table
from suture.home import cache_folder
from suture.values import Arch, Param, Part, Tie

LLAMA = {**zoo.FAMILIES["llama"].settings, "model_type": "llama"}
NORM = shapes(**{"model.norm.weight": (32,)})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, and no table: it would answer first."""
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "lookup", lambda config, tensors: None)


def made(n_parts: int = 0) -> Arch:
    params = {n: Param(n, (n_parts + 1, 4, 2), "Experts", transposed=True) for n in ("z", "a")}
    parts = [
        Part("z", "z"),
        Part("t", "a"),
        Part("u", "z", (1, (0, 2)), transpose=True, rows=(3, 4)),
        Part("v", "a", ((0, 1),)),
    ]
    parts += [Part(f"experts.{e}.weight", "z", (e, (0, 4))) for e in range(n_parts)]
    tie = Tie(("z", "a"), separable=False, why="because")
    return Arch(
        "C", "transformers 0", params, tuple(parts), (tie,), (("a", "b"),), "z", None, {"o": "Interleave"}, ("x",)
    )


def test_what_is_kept_comes_back_the_same():
    cache.save("k", made())
    assert cache.load("k") == made()
    assert list(cache.load("k").params) == ["z", "a"]
    assert isinstance(cache.load("k").parts[2].index[1], tuple)


@pytest.mark.parametrize("name", ["llama-tied", "mixtral", "gemma3-image"])
def test_a_hit_is_the_description(name, base_of):
    config, tensors = read(base_of(name))
    assert describe(config, headers(tensors)) == describe(config, headers(tensors), cache=False)
    assert describe(config, headers(tensors)) == describe(config, headers(tensors), cache=False)


def test_a_hit_builds_nothing(monkeypatch):
    first = describe(LLAMA, NORM)
    monkeypatch.setattr(arch, "build", None)
    assert describe(LLAMA, NORM) == first


def test_without_the_cache_nothing_is_written():
    describe(LLAMA, NORM, cache=False)
    assert not cache_folder().exists()


def test_the_key_is_of_all_that_matters(monkeypatch):
    key = cache.key_of(LLAMA, NORM)
    assert cache.key_of(dict(reversed(LLAMA.items())), NORM) == key
    moved = dataclasses.replace(NORM["model.norm.weight"], file="other", begin=8, end=72, dtype="F32")
    assert cache.key_of(LLAMA, {"model.norm.weight": moved}) == key
    assert cache.key_of({**LLAMA, "tie_word_embeddings": True}, NORM) != key
    assert cache.key_of(LLAMA, shapes(**{"model.norm.weight": (64,)})) != key
    assert cache.key_of(LLAMA, shapes(**{"norm.weight": (32,)})) != key
    monkeypatch.setattr("importlib.metadata.version", lambda package: "99.0")
    assert cache.key_of(LLAMA, NORM) != key


def test_where_it_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SUTURE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "suture"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "suture"


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\x00", None], ids=["empty", "other json", "binary", "one byte"])
def test_a_damaged_file_is_replaced_with_a_warning(damage, caplog):
    first = describe(LLAMA, NORM)
    (file,) = cache_folder().rglob("*.json")
    written = file.read_bytes()
    file.write_bytes(written.replace(b"norm", b"form", 1) if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert describe(LLAMA, NORM) == first
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert file.read_bytes() == written


def test_a_file_of_another_shape_is_not_a_description(caplog):
    cache.save("k", made())
    file = cache_folder() / "arch" / "k.json"
    body = json.dumps({**json.loads(file.read_bytes().partition(b"\n")[2]), "parts": [["t", 7]]}).encode()
    file.write_bytes(cache._sha256(body) + b"\n" + body)
    with caplog.at_level(logging.WARNING):
        assert cache.load("k") is None
    assert "not a model description" in caplog.text


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert describe(LLAMA, NORM).model_class == "LlamaForCausalLM"
    assert "cannot be written" in caplog.text


def test_nothing_but_the_file_is_left(monkeypatch, caplog):
    cache.save("k", made())
    monkeypatch.setattr("pathlib.Path.replace", _fail)
    with caplog.at_level(logging.WARNING):
        cache.save("other", made())
    assert [p.name for p in (cache_folder() / "arch").iterdir()] == ["k.json"]


def kept():
    return sorted(p.stem for p in (cache_folder() / "arch").iterdir())


def test_there_are_never_more_files_than_a_limit_and_the_least_used_go(monkeypatch):
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for age, key in enumerate(("newest", "new", "old", "oldest")):
        cache.save(key, made())
        file = cache_folder() / "arch" / f"{key}.json"
        os.utime(file, (10**9 - age, 10**9 - age))
    assert kept() == ["new", "newest", "oldest"]  # what was just written stays
    assert cache.load("oldest") == cache.load("new") == made()
    os.utime(cache_folder() / "arch" / "newest.json", (10**9, 10**9))
    cache.save("more", made())
    assert kept() == ["more", "new", "oldest"]


def test_there_are_never_more_bytes_than_a_limit(monkeypatch):
    cache.save("small", made())
    size = (cache_folder() / "arch" / "small.json").stat().st_size
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * size)
    cache.save("other", made())
    assert kept() == ["other", "small"]
    cache.save("large", made(n_parts=100))
    assert kept() == ["large"]
    cache.save("larger", made(n_parts=200))
    assert cache.load("larger") == made(n_parts=200)


def test_what_another_process_removes_first_is_no_error(monkeypatch, caplog):
    monkeypatch.setattr(cache, "MAX_FILES", 1)
    cache.save("a", made())
    unlink = Path.unlink
    monkeypatch.setattr("pathlib.Path.unlink", lambda self, **options: (unlink(self), unlink(self, **options)))
    with caplog.at_level(logging.WARNING):
        cache.save("b", made())
    assert kept() == ["b"]
    assert not caplog.records


def _fail(*_):
    raise OSError("no")


def test_a_hit_imports_neither_torch_nor_transformers():
    describe(LLAMA, NORM)
    code = (
        "import json, sys\n"
        "from suture.arch import describe\n"
        "from suture.values import TensorInfo\n"
        "tensors = {'model.norm.weight': TensorInfo('model.norm.weight', 'BF16', (32,), 'model.safetensors', 0, 0)}\n"
        f"assert describe(json.loads({json.dumps(LLAMA)!r}), tensors).source.startswith('transformers')\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "[]\n"
