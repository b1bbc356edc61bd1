"""Batches: packed rows cost exactly what their examples cost, and a model that mixes them is found out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import zoo
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from suture.training.batches import IGNORED, LEAK_LIMIT, Example, collate, pack, packing_leaks


def example_of(ids: Sequence[int], first: int = 1) -> Example:
    """An example that counts from the token at `first`."""
    values = np.array(ids, dtype=np.int32)
    return Example(values, np.where(np.arange(len(ids)) < first, np.int32(IGNORED), values))


def split(values: NDArray[np.int32], row: Example) -> list[NDArray[np.int32]]:
    """The part of each packed sequence."""
    return np.split(values, row.starts[1:])


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30), st.integers(0, 3))
def test_packing_keeps_examples_whole(lengths, seed):
    examples = [example_of([number] * n) for number, n in enumerate(lengths)]
    rows = pack(examples, 10, seed)
    assert all(len(row.input_ids) <= 10 for row in rows)
    parts = [
        (ids.tolist(), labels.tolist())
        for row in rows
        for ids, labels in zip(split(row.input_ids, row), split(row.labels, row), strict=True)
    ]
    assert sorted(parts) == sorted((e.input_ids.tolist(), e.labels.tolist()) for e in examples)
    assert sum(len(row.input_ids) <= 5 for row in rows) <= 1  # two such rows would have fitted into one
    for row in rows:
        assert row.positions.tolist() == [at for part in split(row.input_ids, row) for at in range(len(part))]


def test_a_batch_is_padded_on_the_right():
    batch = collate([example_of([5, 6, 7]), example_of([8])], pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    packed = collate([*pack([example_of([5, 6]), example_of([7])], 3, 0), example_of([8])], pad_id=9)
    assert packed["position_ids"].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert set(packed) == {"input_ids", "labels", "position_ids", "use_cache"}


def tiny(name: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A tiny model with its default settings, its use of a cache included."""
    chosen = zoo.FAMILIES[name]
    model = chosen.model_class._from_config(chosen.make_config(**changes), attn_implementation=attention)
    zoo.draw(model, chosen, seed=0)
    return model


def loss(model: Any, batch: Mapping[str, Any]) -> float:
    """Mean loss over the tokens that count."""
    with torch.no_grad():
        return float(model(**batch).loss)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {}),
        (
            "gemma3",
            {"tie_word_embeddings": False, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        ("gemma3", {"tie_word_embeddings": False, "sliding_window": 4}),
    ],
)
def test_packed_rows_cost_what_their_examples_cost(name, changes, attention, training):
    model = tiny(name, attention, **changes).train(training)
    rng = np.random.default_rng(0)
    examples = [example_of(rng.integers(3, zoo.VOCAB, n).tolist(), first=2) for n in (12, 9, 7, 11, 8, 3)]
    rows = pack(examples, 24, 0)
    assert len(rows) > 1
    assert len({len(row.input_ids) for row in rows}) > 1  # so that some row is padded
    alone = loss(model, collate(examples, 0))
    batch = collate(rows, 0)
    assert loss(model, batch) == pytest.approx(alone, rel=2e-6)
    running = {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}
    assert abs(loss(model, running) / alone - 1) > 1e-4
    cached = {key: value for key, value in batch.items() if key != "use_cache"}
    assert model.config.get_text_config().use_cache
    assert abs(loss(model, cached) / alone - 1) > 1e-4  # why a packed batch forbids the cache itself


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen2", "gpt2", "mixtral", "qwen3-moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_does_not_leak(name, dtype):
    model = tiny(name).to(dtype).train()
    assert packing_leaks(model, zoo.VOCAB) < LEAK_LIMIT / 2
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["opt", "falcon", "mamba2"])
def test_states_and_other_positions_leak(name, dtype):
    attention = "eager" if name == "mamba2" else "sdpa"
    assert packing_leaks(tiny(name, attention).to(dtype), zoo.VOCAB) > 2 * LEAK_LIMIT


class Running(torch.nn.Module):
    """A model that keeps packed sequences apart but counts positions through the row."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny("gpt2")

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None, **_: Any) -> Any:
        if position_ids is None:
            return self.model(input_ids=input_ids)
        sequence = (position_ids == 0).cumsum(1)
        apart = (sequence[:, :, None] == sequence[:, None, :]).tril()[:, None]
        return self.model(input_ids=input_ids, attention_mask=apart)


def test_positions_that_run_on_leak_even_if_sequences_are_apart():
    assert packing_leaks(Running(), zoo.VOCAB) > 2 * LEAK_LIMIT


class Weak(torch.nn.Module):
    """A model in bfloat16 that leaks little: less than its rounding would show against the sequence alone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny("llama").to(torch.bfloat16)

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        out = self.model(input_ids=input_ids, **inputs)
        leaking = self.model(input_ids=input_ids)
        out.logits = out.logits + 0.1 * (leaking.logits - out.logits)
        return out


def test_a_weak_leak_is_seen_through_the_rounding():
    assert packing_leaks(Weak(), zoo.VOCAB) > LEAK_LIMIT


def test_a_broken_model_does_not_pass_for_a_tight_one():
    model = tiny("llama")
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    assert packing_leaks(model, zoo.VOCAB) == float("inf")


def test_the_trainer_feeds_packed_batches_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    examples = [example_of(rng.integers(3, zoo.VOCAB, n).tolist()) for n in (12, 9, 7, 11, 8, 3)]
    rows = list(pack(examples, 24, 0))
    model = tiny("llama")
    alone = loss(model, collate(examples, 0))
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=len(rows),
        per_device_eval_batch_size=len(rows),
        max_steps=1,
        learning_rate=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model, arguments, data_collator=lambda part: collate(part, 0), train_dataset=rows, eval_dataset=rows
    )
    assert trainer.train().training_loss == pytest.approx(alone, rel=2e-6)
    model.config.use_cache = True  # as in a model that is loaded again
    assert trainer.evaluate()["eval_loss"] == pytest.approx(alone, rel=2e-6)
