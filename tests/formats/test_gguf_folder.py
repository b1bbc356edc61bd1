"""The private folders of GGUF files: made once, whole or not at all, by several processes, and not for ever."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("gguf")
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf_cases import make_model, write_gguf

from suture.errors import FormatError, InputError
from suture.formats import TensorReader
from suture.formats.files import inside
from suture.formats.gguf import folder as module
from suture.formats.gguf import read_gguf

pytestmark = pytest.mark.usefixtures("quiet_torch")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def path(tmp_path):
    return write_gguf(tmp_path / "in" / "tiny.gguf", make_model("llama"), "llama", types=(Type.Q8_0,))


def times(monkeypatch):
    """Counts how often files are generated."""
    made = []
    generate = module.generate
    monkeypatch.setattr(module, "generate", lambda *a: made.append(1) or generate(*a))
    return made


def test_files_are_generated_once(path, root, monkeypatch):
    made = times(monkeypatch)
    first, second = read_gguf(path), read_gguf(path)
    assert (len(made), first) == (1, second)
    assert sorted(p.name for p in root.iterdir()) == [first.folder.parent.name]
    assert (first.folder / "tiny.gguf").resolve() == path
    assert root.stat().st_mode & 0o777 == 0o700


def test_another_file_in_its_place_gets_a_folder_of_its_own(path, monkeypatch):
    made, first = times(monkeypatch), read_gguf(path)
    write_gguf(path, make_model("llama"), "llama", types=(Type.Q4_0,))
    second = read_gguf(path)
    assert len(made) == 2
    assert first.folder != second.folder
    assert first.folder.name == second.folder.name == "tiny"


@pytest.mark.parametrize("change", ["touched", "moved", "copied"])
def test_what_changes_about_the_file_makes_another_folder(path, monkeypatch, change):
    made, first = times(monkeypatch), read_gguf(path)
    if change == "touched":
        os.utime(path, ns=(0, 0))
    else:
        other = path.with_name("other.gguf")
        path = path.rename(other) if change == "moved" else other.write_bytes(path.read_bytes()) and other
    assert read_gguf(path).folder != first.folder
    assert len(made) == 2


def test_another_version_makes_another_folder(path, monkeypatch):
    first = read_gguf(path)
    monkeypatch.setattr(module, "_version", lambda package: "9.9")
    assert read_gguf(path).folder != first.folder


def test_links_and_other_endings_lead_to_the_file(path):
    link = path.with_name("link")
    link.symlink_to(path)
    checkpoint = read_gguf(link)
    assert (checkpoint.folder.name, checkpoint.shards[0].name) == ("link", "link.gguf")
    with TensorReader.of(checkpoint) as reader:
        assert np.isfinite(reader.array(checkpoint.tensors["model.norm.weight"])).all()


def test_a_failure_leaves_nothing(path, root, monkeypatch):
    def fail(source, folder, scratch):
        (folder / "config.json").write_text("{}")
        raise FormatError("no")

    monkeypatch.setattr(module, "generate", fail)
    with pytest.raises(FormatError):
        read_gguf(path)
    assert list(root.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(path, root):
    root.parent.mkdir()
    root.write_text("in the way")
    with pytest.raises(InputError, match="cannot be written") as error:
        read_gguf(path)
    assert str(root) in str(error.value)
    assert "SUTURE_CACHE" in str(error.value)


def test_a_damaged_folder_is_made_again(path, monkeypatch):
    made, first = times(monkeypatch), read_gguf(path)
    (first.folder.parent / "tensors.json").write_text("{")
    assert read_gguf(path) == first
    assert len(made) == 2


def test_two_at_once_get_the_same_folder(path, root):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read_gguf, [path] * 4))
    assert all(one == found[0] for one in found)
    assert [p.name for p in root.iterdir()] == [found[0].folder.parent.name]


def test_one_that_was_faster_is_taken(path, root, monkeypatch):
    generate = module.generate

    def slow(source, folder, scratch):
        monkeypatch.setattr(module, "generate", generate)
        read_gguf(path)
        return generate(source, folder, scratch)

    monkeypatch.setattr(module, "generate", slow)
    read_gguf(path)
    assert len(list(root.iterdir())) == 1


def test_folders_that_were_not_used_for_long_go(path, root, monkeypatch):
    monkeypatch.setattr(module, "MAX_FOLDERS", 3)
    root.mkdir(parents=True)
    now = time.time()
    for name, age in {"a": 9, "b": 8, "c": 7, "in use": 0.1, ".left": 9, ".being made": 0.1}.items():
        (root / name / "tiny").mkdir(parents=True)
        os.utime(root / name, (now - age * 24 * 3600,) * 2)
    kept = read_gguf(path).folder.parent.name
    assert {p.name for p in root.iterdir()} == {kept, "in use", ".being made"}


def test_a_folder_that_is_used_stays(path, root):
    folder = read_gguf(path).folder.parent
    os.utime(folder, (0, 0))
    read_gguf(path)
    assert folder.stat().st_mtime > time.time() - 60


def test_only_links_of_gguf_files_in_private_folders_may_leave(path, root, tmp_path):
    folder = read_gguf(path).folder
    assert inside(folder, "tiny.gguf") == folder / "tiny.gguf"
    (folder / "config.txt").symlink_to(path)
    (folder / "deep").mkdir()
    (folder / "deep" / "x.gguf").symlink_to(path)
    other = tmp_path / "model"
    other.mkdir()
    (other / "x.gguf").symlink_to(path)
    for where, name in (
        (folder, "config.txt"),
        (folder, "deep/x.gguf"),
        (folder / "deep", "x.gguf"),
        (other, "x.gguf"),
    ):
        with pytest.raises(FormatError, match="a symlink that leaves its folder"):
            inside(where, name)


def test_the_table_is_json_of_names_shapes_and_notes(path):
    table = json.loads((read_gguf(path).folder.parent / "tensors.json").read_text())
    assert table["names"]["blk.0.attn_q.weight"] == "model.layers.0.self_attn.q_proj.weight"
    assert table["shapes"]["model.norm.weight"] == [256]
    assert table["notes"] == []
