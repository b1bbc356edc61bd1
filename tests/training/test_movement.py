"""Movement of known size is measured as it is; rows and tensors that stand still are counted bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_live import ENDS
from tiny import TARGETS, make_model, wrapped

from suture.training import movement
from suture.training.live import look
from suture.training.movement import movements

pytestmark = pytest.mark.usefixtures("quiet_torch")

FILE = "adapter_model.safetensors"
EMBED, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"


def saved(folder, **of_lora):
    """An adapter at its start and, to be changed, at its end; its architecture and what trains."""
    model = wrapped(make_model(tie=False), **of_lora)
    for name in ("start", "end"):
        model.save_pretrained(folder / name)
    live = look(model)
    return live.arch, set(live.unique())


def change(folder, **changes):
    tensors = load_file(folder / "end" / FILE)
    for key, new in changes.items():
        tensors[key] = new(tensors[key])
    save_file(tensors, folder / "end" / FILE, metadata={"format": "pt"})


def measured(folder, arch, names):
    return {m.group: m for m in movements(folder / "start", folder / "end", arch, names)}


@pytest.fixture(params=[movement.ROWS, 7])
def blocks(request, monkeypatch):
    monkeypatch.setattr(movement, "ROWS", request.param)


@pytest.mark.usefixtures("blocks")
def test_nothing_moved(tmp_path):
    found = measured(tmp_path, *saved(tmp_path, modules_to_save=ENDS))
    assert found.keys() == {"LoRA", "embeddings", "head"}
    for m in found.values():
        assert (m.relative, m.absolute) == (0.0, 0.0)
    assert (found["head"].n_rows, found["head"].n_still_rows) == (98, 98)
    assert found["head"].still_tensors == (HEAD,)
    assert (len(found["LoRA"].still_tensors), found["LoRA"].n_rows) == (12, 0)


@pytest.mark.usefixtures("blocks")
def test_known_moves(tmp_path):
    arch, names = saved(tmp_path, modules_to_save=ENDS)

    def three_rows(table):
        table[[3, 50, 97]] += 1.0
        return table

    start = load_file(tmp_path / "start" / FILE)
    change(tmp_path, **{EMBED: three_rows, HEAD: lambda table: 1.25 * table})
    found = measured(tmp_path, arch, names)
    assert found["embeddings"].absolute == pytest.approx(math.sqrt(3 * 32), rel=1e-6)
    assert found["embeddings"].relative == pytest.approx(math.sqrt(3 * 32) / float(start[EMBED].norm()), rel=1e-5)
    assert (found["embeddings"].n_rows, found["embeddings"].n_still_rows) == (98, 95)
    assert found["head"].relative == pytest.approx(0.25, rel=1e-6)
    assert (found["head"].n_still_rows, found["head"].still_tensors) == (0, ())
    assert found["LoRA"].relative == 0


def test_factors_that_start_at_zero(tmp_path):
    arch, names = saved(tmp_path)
    zeros = {name for name in names if "lora_B" in name}
    change(tmp_path, **dict.fromkeys(zeros, torch.ones_like))
    only = measured(tmp_path, arch, zeros)["LoRA"]
    assert only.relative is None
    assert only.absolute == pytest.approx(math.sqrt(4 * 2 * (32 + 16 + 32)))
    assert only.still_tensors == ()
    whole = measured(tmp_path, arch, names)["LoRA"]
    assert whole.absolute == only.absolute
    assert set(whole.still_tensors) == names - zeros


def test_only_what_trains_is_compared(tmp_path):
    arch, names = saved(tmp_path, target_modules=[*TARGETS, "embed_tokens"])
    start = load_file(tmp_path / "start" / FILE).keys()
    assert any("base_layer" in key for key in start)  # the base's own matrix, saved beside the factors
    found = measured(tmp_path, arch, names)
    assert found.keys() == {"LoRA"}
    assert len(found["LoRA"].still_tensors) == len(names)


def test_standing_still_is_a_matter_of_bits(tmp_path):
    arch, names = saved(tmp_path, modules_to_save=ENDS)
    for folder in ("start", "end"):
        tensors = load_file(tmp_path / folder / FILE)
        tensors[EMBED][0, 0] = math.nan
        tensors[EMBED][1:3, 0] = 0.0 if folder == "start" else -0.0
        save_file(tensors, tmp_path / folder / FILE, metadata={"format": "pt"})
    assert measured(tmp_path, arch, names)["embeddings"].n_still_rows == 96


def test_rows_of_new_tokens(tmp_path):
    arch, names = saved(tmp_path, trainable_token_indices=[5, 6, 7])
    (key,) = (name for name in names if "token_adapter" in name)
    change(tmp_path, **{key: lambda rows: rows + torch.tensor([[1.0], [0.0], [2.0]])})
    found = measured(tmp_path, arch, names)["tokens"]
    assert (found.n_rows, found.n_still_rows) == (3, 1)
    assert found.absolute == pytest.approx(math.sqrt(5 * 32))


def test_low_precision_is_compared_exactly(tmp_path):
    arch, names = saved(tmp_path, modules_to_save=["lm_head"])
    for folder in ("start", "end"):
        tensors = {key: t.bfloat16() for key, t in load_file(tmp_path / folder / FILE).items()}
        if folder == "end":
            tensors[HEAD][4] *= 2
        save_file(tensors, tmp_path / folder / FILE, metadata={"format": "pt"})
    found = measured(tmp_path, arch, names)["head"]
    assert found.n_still_rows == 97
