"""The one rewriting that makes all keys of a file fit, or none."""

from __future__ import annotations

import pytest

from suture import rewriting

GOOD = [
    f"base_model.model.model.layers.{i}.self_attn.{p}_proj.lora_{f}.weight"
    for i in range(2)
    for p in "qv"
    for f in "AB"
]


def fits(key: str) -> bool:
    return key in GOOD


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda k: k.replace("model.model.model.", "model.model."), "insert model. after base_model.model."),
        (
            lambda k: k.replace("model.model.model.", "model.model.language_model.model."),
            "write model. for language_model.model.",
        ),
        (
            lambda k: k.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
            "drop the adapter's name",
        ),
        (
            lambda k: k.replace("lora_A", "lora_A.default.default").replace("lora_B", "lora_B.default.default"),
            "adapter's name",
        ),
        (lambda k: k.replace(".layers.", "._orig_mod.layers."), "drop the wrappers' prefixes"),
        (lambda k: "module." + k, "drop the wrappers' prefixes"),
        (lambda k: "base_model.model." + k, "drop the doubled"),
        (lambda k: k.removeprefix("base_model.model."), "put base_model.model. before"),
        (lambda k: "module." + k.removeprefix("base_model.model.model."), "insert model."),
    ],
)
def test_a_spoilt_file_is_mended_by_one_rule(spoil, words):
    found = rewriting.find([spoil(k) for k in GOOD], fits)
    assert found is not None
    assert words in found.words
    assert found.before != found.after
    assert found.after in GOOD


def test_a_file_that_only_fits_in_part_is_not_rewritten():
    spoilt = [k.replace("model.model.model.", "model.model.") for k in GOOD]
    assert rewriting.find([*spoilt, "base_model.model.nowhere.lora_A.weight"], fits) is None


def test_two_keys_must_not_become_one():
    assert rewriting.find([GOOD[0], "base_model.model." + GOOD[0]], fits) is None


def test_the_simplest_rule_is_taken():
    found = rewriting.find(["base_model.model." + k for k in GOOD], lambda key: True)
    assert found is not None
    assert " and " not in found.words
