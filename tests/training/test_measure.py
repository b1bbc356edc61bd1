"""The mean loss is the plain one over all counted tokens, whatever the batches, the padding and the processes."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from tiny import VOCAB, make_model, trained, wrapped
from torch.nn import functional

from suture.training.batches import Example, pack
from suture.training.measure import N_TRAIN, Ruler

pytestmark = pytest.mark.usefixtures("quiet_torch")


def examples(n=7, seed=0):
    """Rows of different lengths, a prompt of each not counted; one row counts nothing."""
    rng = np.random.Generator(np.random.PCG64(seed))
    made = []
    for i in range(n):
        ids = rng.integers(3, VOCAB, 5 + 3 * i, dtype=np.int32)
        labels = ids.copy()
        labels[: len(ids) if i == 2 else i] = -100
        made.append(Example(ids, labels))
    return made


def ruler(batch_size=2, train=(), eval=(), autocast=None):
    return Ruler(train, eval, batch_size, 0, autocast)


def plain_loss(model, rows):
    """Cross-entropy of one row at a time, summed and divided in float64."""
    total, n = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.from_numpy(row.input_ids).long()[None]).logits[0, :-1].double()
            labels = torch.from_numpy(row.labels).long()[1:]
            total += float(functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            n += int((labels != -100).sum())
    return total / n


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 50])
def test_it_is_the_plain_loss_for_every_batch_size(batch_size):
    model, rows = trained(wrapped()), examples()
    assert ruler(batch_size).mean_loss(model, rows) == pytest.approx(plain_loss(model, rows), abs=1e-5)


def test_it_is_not_the_mean_of_the_batches_means():
    model, rows = trained(wrapped()), examples()
    means = [ruler(1).mean_loss(model, [row]) for i, row in enumerate(rows) if i != 2]
    assert abs(sum(means) / len(means) - plain_loss(model, rows)) > 1e-3


def test_rows_that_count_nothing_change_nothing():
    model, rows = wrapped(), examples()
    assert ruler(1).mean_loss(model, rows) == pytest.approx(ruler(1).mean_loss(model, [*rows[:2], *rows[3:]]), abs=1e-6)


def test_packing_changes_nothing():
    model, rows = trained(wrapped()), examples()
    for row in rows:
        row.labels[0] = -100  # a first token has nothing before it
    assert ruler(3).mean_loss(model, pack(rows, 40, 0)) == pytest.approx(plain_loss(model, rows), abs=1e-5)


class Process:
    """One of several processes of accelerate; `reduce` sums what all of them brought."""

    device = torch.device("cpu")

    def __init__(self, index, world, sums):
        self.process_index, self.num_processes, self.sums = index, world, sums

    def reduce(self, tensor, reduction):
        assert reduction == "sum"
        self.sums.append(tensor)
        return sum(self.sums)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_the_rows_and_make_as_many_passes_each(world):
    model, rows, sums, passes = trained(wrapped()), examples(), [], []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    for index in range(world):
        before = len(passes)
        last = ruler(2).mean_loss(model, rows, Process(index, world, sums))
        assert len(passes) - before == math.ceil(4 / world)
    handle.remove()
    assert last == pytest.approx(plain_loss(model, rows), abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_no_random_number_is_drawn_and_the_mode_is_as_before(training):
    model = wrapped(lora_dropout=0.5).train(training)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = ruler().mean_loss(model, examples())
    assert (model.training, ruler().mean_loss(model, examples())) == (training, first)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert all(p.grad is None for p in model.parameters())


def test_a_stage_measures_a_fixed_part_of_the_training_set_and_all_of_the_evaluation_set():
    model, rows = wrapped(make_model(layers=1)), examples(3, seed=1) * 12
    measured = ruler(4, train=rows, eval=rows[:5]).stage("after", model)
    assert measured.stage == "after"
    assert measured.train == pytest.approx(plain_loss(model, rows[:N_TRAIN]), abs=1e-5)
    assert measured.eval == pytest.approx(plain_loss(model, rows[:5]), abs=1e-5)
    assert ruler(4, train=rows).stage("before", model).eval is None


def test_autocast_computes_in_its_dtype():
    model, rows = trained(wrapped()), examples()
    low = ruler(autocast=torch.bfloat16).mean_loss(model, rows)
    assert 0 < abs(low - ruler().mean_loss(model, rows)) < 0.05
