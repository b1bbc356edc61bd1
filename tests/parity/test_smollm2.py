"""Merged = unmerged on a real model: SmolLM2-135M-Instruct, tied, 49,152 tokens.

Run it with `-m slow`; `-s` shows the distances, and those of PEFT's own merge.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoTokenizer
from zoo import FAMILIES, load, logits
from zoo_adapters import compare, make_adapter, reload

import suture

pytestmark = pytest.mark.slow

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
N_NEW = 8
TRAINED_IDS = [17, 1000, 49000]  # rows of the vocabulary that the token cases train
TEXTS = (
    "Gravity is the force by which a planet or other body draws objects toward its center. The force of gravity keeps "
    "all of the planets in orbit around the sun.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n"
    "print(fibonacci(10))\n",
    "Whan that Aprille with his shoures soote, the droghte of March hath perced to the roote, and bathed every veyne.",
)

TIED = {"both_ends": ["embed_tokens", "lm_head"], "embedding": ["embed_tokens"], "head": ["lm_head"]}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "attention": ({"target_modules": ATTENTION}, 0),
    "lora on head": ({"target_modules": TIED["head"]}, 0),
    "lora on embedding": ({"target_modules": TIED["embedding"]}, 0),
    "lora on both": ({"target_modules": TIED["both_ends"]}, 0),
    "tied lora on both": ({"target_modules": TIED["both_ends"], "ensure_weight_tying": True}, 0),
    "embedding in full": ({"target_modules": ATTENTION, "modules_to_save": TIED["embedding"]}, 0),
    "both in full": ({"target_modules": ATTENTION, "modules_to_save": TIED["both_ends"]}, 0),
    "tokens": ({"target_modules": ATTENTION, "trainable_token_indices": TRAINED_IDS}, 0),
    "both in full, resized": ({"target_modules": ATTENTION, "modules_to_save": TIED["both_ends"]}, N_NEW),
    "lora on both, resized": ({"target_modules": [*ATTENTION, *TIED["both_ends"]]}, N_NEW),
    "new tokens, resized": (
        {"target_modules": ATTENTION, "trainable_token_indices": list(range(49152, 49152 + N_NEW))},
        N_NEW,
    ),
}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: each holds gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def family_of(folder: Path) -> Any:
    """SmolLM2 as a member of the zoo, fed with natural text and with the tokens that the cases train."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    length = min(map(len, ids))
    return replace(FAMILIES["llama-tied"], name="smollm2", feed=functools.partial(feed, [row[:length] for row in ids]))


def feed(rows: list[list[int]], model: Any, _: torch.Generator) -> dict[str, torch.Tensor]:
    n_tokens = model.get_input_embeddings().weight.shape[0]
    special = [*TRAINED_IDS, *range(n_tokens - N_NEW, n_tokens)]
    mixed = (special + rows[0])[: len(rows[0])]
    ids = torch.tensor([*rows, mixed])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("case", CASES)
def test_merged_is_unmerged(case, smollm2, smollm2_bf16, scratch):
    settings, resize = CASES[case]
    family = family_of(smollm2)
    config = LoraConfig(r=8, lora_alpha=16, **settings)
    made = make_adapter(family, smollm2, config, scratch / "adapter", resize=resize)
    for base, out in ((smollm2, "f32"), (smollm2_bf16, "bf16")):
        suture.merge(base, made.folder, scratch / out, running=suture.Running(durable=False))

    comparison = compare(made.reference, logits(load(family, scratch / "f32"), made.feed))
    theirs = reload(family, smollm2, made.folder, resize).merge_and_unload(safe_merge=False)
    print(f"\n{case}: suture {comparison}")
    print(f"{case}: peft   {compare(made.reference, logits(theirs, made.feed))}")
    print(f"{case}: base   {compare(made.reference, made.bare)}")
    assert comparison.same, comparison
    assert_rounded_once(scratch / "f32", scratch / "bf16")


def assert_rounded_once(full: Path, half: Path) -> None:
    """Every element in bf16 is the float32 element rounded to nearest."""
    with safe_open(full / "model.safetensors", "pt") as f, safe_open(half / "model.safetensors", "pt") as h:
        assert sorted(f.keys()) == sorted(h.keys())
        for name in sorted(f.keys()):
            expected, got = f.get_tensor(name).bfloat16(), h.get_tensor(name)
            assert got.dtype == torch.bfloat16, name
            assert torch.equal(expected.view(torch.int16), got.view(torch.int16)), name
