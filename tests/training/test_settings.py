"""Every setting of a run does what it says, and the run still proves itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import Notes
from tiny import make_base, write_pairs

from suture.training import folder as folders
from suture.training import ledger as ledgers
from suture.training.config import RunConfig
from suture.training.run import resume, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    make_base(folder / "llama", tie=False)
    make_base(folder / "gpt2", kind="gpt2")
    make_base(folder / "moe", kind="moe", tie=False)
    write_pairs(folder / "pairs.jsonl", 40)
    return folder


def config(home: Path, out: Path, **settings: Any) -> RunConfig:
    data = {"train": str(home / "pairs.jsonl"), "eval_share": 0.2, "max_length": 64, **settings.pop("data", {})}
    values = {
        "base": str(home / settings.pop("base", "llama")),
        "out": out,
        "data": data,
        "adapter": {"rank": 4, **settings.pop("adapter", {})},
        "lr": 1e-2,
        "steps": 6,
        "tensorboard": False,
        "device": "cpu",
    }
    return RunConfig.model_validate({**values, **settings})


SETTINGS: dict[str, dict[str, Any]] = {
    "dora": {"adapter": {"method": "dora"}},
    "rslora": {"adapter": {"method": "rslora"}},
    "biases": {"base": "gpt2", "adapter": {"bias": "lora_only"}},
    "patterns": {"adapter": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 4}}},
    "experts": {
        "base": "moe",
        "adapter": {"targets": ["q_proj"], "parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    },
    "lora on the head": {"adapter": {"targets": ["q_proj", "lm_head"]}},
    "packing": {"data": {"packing": True}},
    "all tokens": {"data": {"loss_on": "all"}},
    "checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"accumulate": 3, "batch_size": 2},
    "adafactor": {"optimizer": "adafactor"},
    "sgd": {"optimizer": "sgd", "lr": 0.5},
    "linear": {"schedule": "linear", "warmup": 2},
    "bf16": {"precision": "bf16"},
    "int8": {"quantize": "int8"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_learns_and_proves_itself(home: Path, tmp_path: Path, settings: dict[str, Any]):
    seen = Notes()
    found = train(config(home, tmp_path / "run", **settings), observer=seen)
    assert found.problems == ()
    losses = {stage.stage: stage.train for stage in found.stages}
    assert losses["after"] < losses["before"]
    assert losses["reloaded"] == pytest.approx(losses["after"], abs=2e-2 if "precision" in settings else 1e-5)
    if "quantize" not in settings:  # what is merged is another base: the one that was quantised
        assert losses["merged"] == pytest.approx(losses["after"], abs=2e-2 if "precision" in settings else 1e-5)
    assert not any("the model's own" in text for text in seen.texts)


def rates(home: Path, out: Path, **settings: Any) -> dict[str, tuple[float, ...]]:
    seen = Notes()
    train(config(home, out, steps=1, prove="off", save=["embed_tokens", "lm_head"], **settings), observer=seen)
    return {row.group: row.lrs for row in seen.audits[0].rows}


def test_learning_rates_by_group(home: Path, tmp_path: Path):
    assert rates(home, tmp_path / "a") == {
        "LoRA": (0.01,),
        "embeddings": pytest.approx((0.001,)),
        "head": pytest.approx((0.001,)),
    }
    plus = rates(home, tmp_path / "b", lora_plus_ratio=16, embedding_lr=5e-4)
    assert plus == {"LoRA": pytest.approx((0.01, 0.16)), "embeddings": (5e-4,), "head": (5e-4,)}


def test_early_stopping_keeps_the_best(home: Path, tmp_path: Path):
    """A rate so high that the first evaluations stay the best: the run ends early, with that adapter."""
    seen = Notes()
    settings = {
        "lr": 0.3,
        "schedule": "constant",
        "warmup": 0,
        "steps": 40,
        "eval_every": 2,
        "early_stop": 2,
        "keep": 1,
    }
    found = train(config(home, tmp_path / "run", prove="off", **settings), observer=seen)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 4 < 40
    assert any(f"that of step {best}" in text for text in seen.texts)
    assert found.notes[-2] == f"the adapter is that of step {best}, which had the best evaluation loss"
    assert found.adapter is not None
    ledger = ledgers.read(found.adapter)
    assert ledger is not None
    assert (found.step, ledger.step) == (best, best)
    again = resume(tmp_path / "run")  # it has stopped, and makes no further step
    assert (again.step, again.stages) == (best, found.stages)
    after = next(stage for stage in found.stages if stage.stage == "after")
    assert after.eval == pytest.approx(losses[best], abs=1e-6)


def test_checkpoints_are_kept_and_rotated(home: Path, tmp_path: Path):
    train(config(home, tmp_path / "run", prove="off", save_every=1, keep=3))
    kept = folders.checkpoints(tmp_path / "run")
    assert [path.name for path in kept] == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    assert all(ledgers.read(path) for path in kept)


def test_tensorboard_gets_the_groups(home: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config(home, tmp_path / "run", prove="off", tensorboard=True))
    (file,) = (tmp_path / "run").rglob("events.out.tfevents*")
    events = EventAccumulator(str(file)).Reload()
    assert {"train/loss", "train/grad_norm/LoRA"} <= set(events.Tags()["scalars"])


def test_a_model_that_lets_packed_examples_see_each_other(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from suture.errors import UsageError
    from suture.training import ready

    monkeypatch.setattr(ready, "packing_leaks", lambda *_: 40.0)
    with pytest.raises(UsageError, match="see each other"):
        train(config(home, tmp_path / "run", data={"packing": True}))
