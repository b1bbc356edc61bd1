"""N511: trained rows of the vocabulary that are not near those that training began with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from rule_cases import findings, only
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

IDS = [4, 10, 40, 70, 71, 90]
FILE = "adapter_model.safetensors"


def trained(folder: Path, out: Path, n_new: int = 0, steps: int = 12, **settings) -> Path:
    """An adapter that PEFT saved after some steps at a high rate."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if n_new:
        model.resize_token_embeddings(tiny.VOCAB + n_new, mean_resizing=False)
    live = tiny.wrapped(model, **settings)
    optimizer = torch.optim.AdamW([p for p in live.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.tensor([[*IDS, *range(tiny.VOCAB, tiny.VOCAB + n_new)]])
    for _ in range(steps):
        live(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    live.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quiet_torch) -> Path:
    """A base whose ends are two tensors."""
    torch.manual_seed(0)
    return tiny.make_base(tmp_path_factory.mktemp("places") / "base", tie=False)


@pytest.fixture(scope="module")
def in_full(folder, tmp_path_factory) -> Path:
    """Both ends trained in full."""
    return trained(folder, tmp_path_factory.mktemp("full"), modules_to_save=["embed_tokens", "lm_head"])


@pytest.fixture(scope="module")
def listed(folder, tmp_path_factory) -> Path:
    """Six trained tokens."""
    return trained(folder, tmp_path_factory.mktemp("listed"), trainable_token_indices=IDS)


def changed(adapter: Path, out: Path, part: str, change) -> Path:
    """The same adapter with the tensors changed that have this in their name."""
    shutil.copytree(adapter, out)
    tensors = load_file(adapter / FILE)
    names = [name for name in tensors if part in name]
    assert names
    save_file(tensors | {name: change(tensors[name]).contiguous() for name in names}, out / FILE)
    return out


def with_ids(adapter: Path, out: Path, ids: list[int]) -> Path:
    """The same adapter, with other tokens in its config."""
    shutil.copytree(adapter, out)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": ids}))
    return out


def test_what_training_leaves(folder, in_full, listed):
    assert not findings(folder, in_full, "N511")
    assert not findings(folder, listed, "N511")


def foreign(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5)) * x.std()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.zeros_like, "all zero"),
        (lambda x: x.flip(0), "98 of 98 rows are nearer to another row"),
        (lambda x: x.roll(1, 0), "nearer to another row"),
        (foreign, "nearer to another row"),
        (lambda x: x.mean(0, keepdim=True).expand_as(x), "nearer to another row"),
        (lambda x: 0.02 * x, "far shorter than the base's: in the median 0.02"),
    ],
)
def test_a_whole_matrix(folder, in_full, tmp_path, change, words):
    finding = only(folder, changed(in_full, tmp_path / "out", "lm_head", change), "N511")
    assert "lm_head" in finding.where
    assert words in finding.found


def test_a_matrix_that_moved_as_one(folder, in_full, tmp_path):
    """What training does to a head: all rows of unused tokens go the same way."""
    moved = changed(in_full, tmp_path / "out", "lm_head", lambda x: x + 3 * x.std() * torch.ones(x.shape[1]))
    assert not findings(folder, moved, "N511")


def test_a_matrix_that_moved_far(folder, tmp_path):
    """Rows that became twice as long, in a model that knew nothing: most still point to where they began."""
    far = trained(folder, tmp_path, steps=100, modules_to_save=["embed_tokens", "lm_head"])
    assert not findings(folder, far, "N511")


def test_some_rows_elsewhere(folder, in_full, tmp_path):
    """A few tokens may have been made anew."""
    some = changed(in_full, tmp_path / "out", "embed_tokens", lambda x: torch.cat([foreign(x[:20]), x[20:]]))
    assert not findings(folder, some, "N511")


@pytest.mark.parametrize("ids", [IDS[::-1], [i + 1 for i in IDS], [IDS[-1], *IDS[:-1]]])
def test_other_tokens(folder, listed, tmp_path, ids):
    finding = only(folder, with_ids(listed, tmp_path / "out", ids), "N511")
    assert "of 6 rows are much nearer to another row" in finding.found


def test_one_token_shifted(folder, tmp_path):
    one = trained(folder, tmp_path / "one", trainable_token_indices=[40])
    assert not findings(folder, one, "N511")
    assert findings(folder, with_ids(one, tmp_path / "out", [41]), "N511")


def test_differences_in_the_place_of_rows(folder, listed, tmp_path):
    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"][IDS]
    delta = changed(listed, tmp_path / "out", "trainable_tokens_delta", lambda x: 0.1 * (x - rows))
    assert "far shorter than the base's" in only(folder, delta, "N511").found


def test_tokens_of_a_resized_vocabulary(folder, tmp_path):
    """The rows that training began with are in the adapter."""
    new = [*range(tiny.VOCAB, tiny.VOCAB + 6)]
    tuned = trained(folder, tmp_path / "adapter", n_new=6, trainable_token_indices=new)
    assert not findings(folder, tuned, "N511")
    assert findings(folder, with_ids(tuned, tmp_path / "other", new[::-1]), "N511")


def test_tokens_that_began_alike(folder, tmp_path):
    """Reserved tokens, all near the mean: which is nearest to which says nothing."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[IDS] = rows.mean(0) + 1e-4 * torch.randn(len(IDS), rows.shape[1])
    model.save_pretrained(tmp_path / "base")
    tuned = trained(tmp_path / "base", tmp_path / "adapter", trainable_token_indices=IDS)
    assert not findings(tmp_path / "base", tuned, "N511")
    assert not findings(tmp_path / "base", with_ids(tuned, tmp_path / "other", IDS[::-1]), "N511")


def test_values_that_are_not_numbers_disturb_nothing(folder, in_full, tmp_path):
    def broken(x):
        x[3] = float("nan")
        x[5] = float("inf")
        return x

    assert not findings(folder, changed(in_full, tmp_path / "out", "lm_head", broken), "N511")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        broken(model.lm_head.weight)
    model.save_pretrained(tmp_path / "base")
    assert not findings(tmp_path / "base", in_full, "N511")
