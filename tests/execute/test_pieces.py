"""Cutting a plan into pieces: complete, in order, along the plan's blocks, and strict about plans that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from execute.made_plans import Pair, make_pair, make_plan, operation, place

from suture.errors import FormatError
from suture.execute import pieces as module
from suture.execute.pieces import Rows, Span, header_bytes, split
from suture.planning.layout import blocks
from suture.values import SideFile, Source


@pytest.fixture
def pair(tmp_path) -> Pair:
    return make_pair(tmp_path)


@pytest.mark.parametrize("piece_bytes", [1, 5000, 1 << 20])
def test_pieces_cover_every_file_without_gap_or_overlap(pair, monkeypatch, piece_bytes):
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    plan = make_plan(pair)
    pieces = split(plan)
    assert [p.number for p in pieces] == list(range(len(pieces)))
    for file in plan.files:
        at = len(header_bytes(file))
        for piece in (p for p in pieces if p.file == file.name):
            assert piece.begin == at
            for step in piece.steps:
                begin = step.begin if isinstance(step, Span) else step.op.begin + step.start * module.row_bytes(step.op)
                assert begin == at
                at = step.end
            assert piece.end == at
        assert at == file.n_bytes


def test_computed_rows_are_cut_along_the_plans_blocks(pair, monkeypatch):
    monkeypatch.setattr(module, "PIECE_BYTES", 20_000)
    plan = make_plan(pair)
    steps = [s for p in split(plan) for s in p.steps if isinstance(s, Rows) and s.op.tensor == "w0"]
    assert len(steps) > 1
    assert [b for s in steps for b in s.blocks()] == list(blocks(200, 64))


def test_neighbouring_copies_are_one_span(tmp_path):
    pair = Pair(tmp_path)
    pair.add_shard("m.safetensors", {k: ("F32", np.ones(10)) for k in "abcd"})
    (piece,) = split(place([operation(pair.base[k], block_rows=1) for k in "abdc"]))
    assert [(s.source.name, s.source.n_bytes) for s in piece.steps] == [("a", 80), ("d", 40), ("c", 40)]


def test_a_copy_from_a_row_on(tmp_path):
    pair = Pair(tmp_path)
    pair.add_shard("m.safetensors", {"e": ("BF16", np.ones((10, 4)))})
    info = pair.base["e"]
    op = operation(info, source=Source("base", info, row=3), shape=(5, 4))
    (piece,) = split(place([op]))
    assert (piece.steps[0].source.begin, piece.steps[0].source.n_bytes) == (info.begin + 3 * 8, 5 * 8)


def test_empty_tensors_and_files_need_no_piece(tmp_path):
    pair = Pair(tmp_path)
    pair.add_shard("m.safetensors", {"e": ("F32", np.ones((0, 4)))})
    assert split(place([operation(pair.base["e"])])) == ()


def shift(op):
    return replace(op, begin=op.begin + 8, end=op.end + 8)


@pytest.mark.parametrize(
    "change",
    [
        shift,
        lambda op: replace(op, end=op.end - 2),
        lambda op: replace(op, file="elsewhere.safetensors"),
        lambda op: replace(op, source=replace(op.source, row=1)),
        lambda op: replace(op, terms=(), source=replace(op.source, row=1)),
        lambda op: replace(op, shape=(400, 96)),
    ],
)
def test_a_plan_whose_bytes_do_not_fit_is_refused(pair, change):
    plan = make_plan(pair)
    operations = tuple(change(op) if op.tensor == "w0" else op for op in plan.operations)
    with pytest.raises(FormatError, match=r"w0|ids0"):
        split(replace(plan, operations=operations))


def test_a_file_with_bytes_that_belong_to_no_tensor_is_refused(pair):
    plan = make_plan(pair)
    files = (replace(plan.files[0], n_bytes=plan.files[0].n_bytes + 8), *plan.files[1:])
    with pytest.raises(FormatError, match="model-00001"):
        split(replace(plan, files=files))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", ".", "a//b", "a\0b", "./a"])
def test_names_that_leave_the_folder_are_refused(pair, name):
    plan = make_plan(pair)
    for changes in ({"texts": {name: ""}}, {"side_files": (SideFile(name, "base"),)}):
        with pytest.raises(FormatError, match="relative"):
            split(replace(plan, **changes))


def test_a_file_that_would_be_written_twice_is_refused(pair):
    plan = make_plan(pair)
    with pytest.raises(FormatError, match=r"config\.json would be written twice"):
        split(replace(plan, side_files=(SideFile("config.json", "base"),)))


def test_the_receipt_is_not_for_others_to_write(pair):
    plan = make_plan(pair)
    with pytest.raises(FormatError, match=r"suture_receipt\.json would be written twice"):
        split(replace(plan, side_files=(SideFile("suture_receipt.json", "base"),)))
