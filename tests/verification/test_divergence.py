"""KL, top-1 and differences against torch's own, in blocks as in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from suture.verification import divergence as module
from suture.verification.divergence import Divergence, divergence


def pair(n: int = 50, classes: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = rng.standard_normal((n, classes)).astype(np.float32) * 4
    return p, p + rng.standard_normal((n, classes)).astype(np.float32) / 10


def test_the_numbers_are_those_of_torch():
    p, q = pair()
    found = divergence(p, q)
    log_p, log_q = (torch.from_numpy(x).double().log_softmax(-1) for x in (p, q))
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    assert found.mean_kl == pytest.approx(float(kl.mean()), rel=1e-12)
    assert found.max_kl == pytest.approx(float(kl.max()), rel=1e-12)
    assert found.max_abs == pytest.approx(float(np.abs(p - q).max()), rel=1e-6)
    assert found.top1 == float((log_p.argmax(-1) == log_q.argmax(-1)).double().mean())
    assert found.n_positions == 50


def test_blocks_add_up(monkeypatch):
    p, q = pair()
    whole = divergence(p, q)
    monkeypatch.setattr(module, "BLOCK_VALUES", 7 * 300)
    parts = divergence(p, q)
    assert parts.sum_kl == pytest.approx(whole.sum_kl, rel=1e-12)
    assert (parts.max_kl, parts.max_abs, parts.n_same_top) == (whole.max_kl, whole.max_abs, whole.n_same_top)


def test_equal_logits_have_no_distance_even_where_classes_are_forbidden():
    p, _ = pair()
    p[:, 3] = -np.inf
    found = divergence(p, p.copy())
    assert (found.sum_kl, found.max_abs, found.top1) == (0.0, 0.0, 1.0)


def test_nan_is_never_hidden():
    p, q = pair()
    q[7, 2] = np.nan
    total = divergence(p[:5], q[:5]) + divergence(p[5:], q[5:]) + divergence(p[:5], q[:5])
    assert np.isnan(total.mean_kl)
    assert np.isnan(total.max_kl)
    assert np.isnan(total.max_abs)


def test_nothing_is_not_agreement():
    assert np.isnan(Divergence().mean_kl)
    assert np.isnan(Divergence().top1)
