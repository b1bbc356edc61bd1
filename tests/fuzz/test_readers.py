"""Mutated files, some thousand of each kind: a correct result or a named error. `make fuzz` tries millions."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest
from hostile import headers, mutate
from hostile.folders import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suture import patterns, targets

FOUND = Path(__file__).parents[1] / "corpus" / "found"
FEW = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANY = settings(max_examples=8000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
EXTRA_BYTES = 64 << 20  # that reading a small file may take
# Which sound file, the mutations' seed, and how many there are.
choices = st.tuples(st.integers(0, 7), st.integers(0, 2**32), st.sampled_from((1, 1, 1, 2, 3, 6)))
names = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """Hostile patterns are among the mutations; the limit is tried elsewhere."""
    monkeypatch.setattr(patterns, "SECONDS", 0.02)
    yield
    patterns.group.cache_clear()
    targets._lookup.cache_clear()


def header(choice) -> bytes:
    which, seed, n = choice
    return mutate.safetensors(headers.SEEDS[which % len(headers.SEEDS)], random.Random(seed), n)


def document(name: str, choice) -> bytes:
    which, seed, n = choice
    seeds = TARGETS[name].seeds
    return mutate.json_text(seeds[which % len(seeds)], random.Random(seed), n)


@FEW
@given(choice=choices)
def test_headers(choice, tmp_path):
    headers.check(header(choice), tmp_path)


@pytest.mark.slow
@MANY
@given(choice=choices)
def test_very_many_headers(choice, tmp_path):
    headers.check(header(choice), tmp_path)


@names
@settings(FEW, max_examples=60)
@given(choice=choices)
def test_documents(name, choice, tmp_path):
    TARGETS[name].check(document(name, choice), tmp_path / "checkpoint-6")


@pytest.mark.slow
@names
@settings(MANY, max_examples=500)
@given(choice=choices)
def test_very_many_documents(name, choice, tmp_path):
    TARGETS[name].check(document(name, choice), tmp_path / "checkpoint-6")


@names
def test_sound_documents_are_read(name, tmp_path):
    assert all(TARGETS[name].check(seed, tmp_path / "checkpoint-6") for seed in TARGETS[name].seeds)


def test_sound_headers_are_read(tmp_path):
    assert all(headers.check(seed, tmp_path) for seed in headers.SEEDS)


@pytest.mark.parametrize("name", ["header", *TARGETS])
def test_what_fuzzing_found(name, tmp_path):
    files = sorted((FOUND / name).iterdir())
    assert files
    for file in files:
        tracemalloc.start()
        data = file.read_bytes()
        if name == "header":
            headers.check(data, tmp_path)
        else:
            TARGETS[name].check(data, tmp_path / "checkpoint-6")
        assert tracemalloc.get_traced_memory()[1] < EXTRA_BYTES, file
        tracemalloc.stop()


def test_the_mutations_reach_both_sides(tmp_path):
    """Fuzzing that only ever makes rubbish, or never does, finds nothing."""
    read = [headers.check(header((n, n, 1)), tmp_path) for n in range(400)]
    assert 20 < sum(read) < 380


def test_the_corpus_is_small():
    sizes = [file.stat().st_size for file in FOUND.rglob("*") if file.is_file()]
    assert len(sizes) <= 150
    assert sum(sizes) <= 200_000
