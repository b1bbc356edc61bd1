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


def test_a_stranger_among_many_is_not_looked_for_in_all_the_others_again_and_again():
    keys = [f"base_model.model.model.layers.{n}.q_proj.lora_A.weight" for n in range(500)]
    asked = []

    def fits(key):
        asked.append(key)
        return key in keys

    assert rewriting.find([*keys, "base_model.model.visual.x.lora_A.weight"], fits) is None
    assert len(asked) < 100 * len(keys)


def test_experts_are_called_as_mixtral_or_as_qwen_calls_them():
    mixtral = "base_model.model.model.layers.0.block_sparse_moe.experts.3.{}.lora_A.weight"
    qwen = "base_model.model.model.layers.0.mlp.experts.3.{}.lora_A.weight"
    for old, new, pairs in (
        (mixtral, qwen, {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}),
        (qwen, mixtral, {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}),
    ):
        wanted = {new.format(name) for name in pairs.values()}
        found = rewriting.find([old.format(name) for name in pairs], wanted.__contains__)
        assert found.names == {old.format(a): new.format(b) for a, b in pairs.items()}


def test_two_names_may_become_one_only_when_asked_for():
    keys = ["base_model.model.q.lora_A.weight", "base_model.model.q.lora_A.default.weight"]
    assert rewriting.find(keys, {keys[0]}.__contains__) is None
    assert rewriting.find(keys, {keys[0]}.__contains__, may_meet=True).names == {keys[1]: keys[0]}
