"""N512: updates that quantised weights cannot hold."""

from __future__ import annotations

import dataclasses

import pytest
from rule_cases import BOTH, adapter

from suture import pipeline
from suture.measures import Survival
from suture.rules.n512_update_erased import RULE
from suture.values import Options


@pytest.fixture(scope="module")
def case(base, tmp_path_factory):
    """A case that has nothing to do with quantisation."""
    tuned = adapter(tmp_path_factory.mktemp("n512") / "tuned", BOTH)
    return pipeline.load_case(base, tuned, Options(), pipeline.Reading(), "values")


def found(case, *layers):
    """Findings where these (cosine, update beside the weight's norm) were measured."""
    measured = [Survival(f"w{k}", 1.0, update, update, cosine, 0.0) for k, (cosine, update) in enumerate(layers)]
    return list(RULE.pair(dataclasses.replace(case, survival=tuple(measured))))


def test_updates_that_arrive(case):
    assert not found(case, (0.99, 0.05), (0.97, 0.04), (0.95, 0.03))
    assert not found(case)


@pytest.mark.parametrize(
    ("layers", "severity"),
    [
        ([(0.74, 0.1), (0.7, 0.1), (0.8, 0.1)], "warning"),
        ([(0.35, 0.05), (0.3, 0.05), (0.8, 0.1)], "error"),
        ([(0.99, 0.1), (0.98, 0.1), (0.03, 0.05)], "error"),
        ([(float("nan"), 0.1)], "error"),
    ],
)
def test_updates_that_do_not(case, layers, severity):
    [finding] = found(case, *layers)
    assert finding.severity == severity
    assert "--output dense" in finding.do


def test_a_layer_that_was_hardly_trained_may_lose_that(case):
    assert not found(case, (0.99, 0.1), (0.98, 0.1), (0.03, 0.005))


def test_the_weights_are_named(case):
    [finding] = found(case, (0.99, 0.1), (0.98, 0.1), (0.03, 0.05))
    assert "1 below 0.1: w2" in finding.found
    assert "a cosine of 0.98 (0.03 to 0.99)" in finding.found
    assert RULE.may_ignore
