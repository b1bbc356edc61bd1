import os

import pytest
from corpus.folders import n_descriptors

from suture.errors import FormatError, InputError
from suture.formats.files import inside, open_regular, quoted, read_exact


@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", "./a.txt", "sub//b.txt"])
def test_files_below_the_folder_are_inside(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "sub/../a", "sub/..", "/a", "//a", "a\0"])
def test_names_that_do_not_stay_are_refused(tmp_path, name):
    with pytest.raises(FormatError, match="does not stay in its folder"):
        inside(tmp_path, name)


def test_links_are_judged_by_where_they_end(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "folder-2").mkdir()
    (folder / "in").symlink_to("real")
    (folder / "up").symlink_to("../folder-2/x")
    (folder / "chain").symlink_to("up")
    assert inside(folder, "in") == folder / "in"
    for name in ("up", "chain"):
        with pytest.raises(FormatError, match="leaves its folder"):
            inside(folder, name)


def test_only_regular_files_are_opened_and_no_descriptor_is_left(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = n_descriptors()
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file"), open_regular(path):
            pass
    assert n_descriptors() == before


def test_a_read_past_the_end_says_where_the_file_ends(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    with open_regular(tmp_path / "f") as file:
        assert file.n_bytes == 5
        with pytest.raises(InputError, match=r"f: 'w': the file ends at byte 5"):
            read_exact(file, 3, bytearray(4), tensor="w")
        for offset in (10**6, 2**63):
            with pytest.raises(InputError, match="f: "):
                read_exact(file, offset, bytearray(1))


def test_quoted_names_are_short_and_printable():
    assert quoted("model.norm.weight") == "'model.norm.weight'"
    assert quoted("\x1b[2J\n") == "'\\x1b[2J\\n'"
    assert len(quoted("x" * 10**6)) < 130
