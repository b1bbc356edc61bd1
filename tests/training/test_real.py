"""A real model: SmolLM2-135M learns, stops, resumes and goes on; in float32 and in NF4."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from runs import ENDS, WEIGHTS, Notes, Stop, weights
from topics import write_topics

from suture.training import ledger as ledgers
from suture.training.config import RunConfig
from suture.training.run import resume, train

pytestmark = pytest.mark.slow
ALL_LINEAR = 30 * 7  # modules of the 30 layers


@pytest.fixture
def base(smollm2_bf16: Path) -> Path:
    return smollm2_bf16


def config(base: Path, folder: Path, name: str, **settings: Any) -> RunConfig:
    data = write_topics(folder / f"{name}.jsonl", settings.pop("pairs", 48))
    values = {
        "base": str(base),
        "out": folder / name,
        "data": {"train": str(data), "eval_share": 0.25, "max_length": 96},
        "adapter": {"rank": 16, "alpha": 32},
        "lr": 1e-3,
        "batch_size": 4,
        "device": "cpu",
    }
    return RunConfig.model_validate({name: value for name, value in {**values, **settings}.items() if value})


def test_a_real_model_learns_and_keeps_it(base: Path, tmp_path: Path):
    """The loss on held-out questions falls, and is the same from memory, from the adapter's file and merged."""
    found = train(config(base, tmp_path, "run", pairs=64, epochs=2))
    losses = {stage.stage: stage.eval for stage in found.stages}
    assert losses["after"] is not None
    assert losses["before"] is not None
    assert losses["after"] < losses["before"] - 0.2
    assert losses["reloaded"] == pytest.approx(losses["after"], abs=1e-4)
    assert losses["merged"] == pytest.approx(losses["after"], abs=1e-4)
    assert found.problems == ()


@pytest.mark.parametrize("settings", [{}, ENDS], ids=["lora", "lora-and-ends"])
def test_a_real_run_resumes_bit_for_bit(base: Path, tmp_path: Path, settings: dict[str, Any]):
    common = {"steps": 4, "save_every": 2, "prove": "off", "pairs": 20, **settings}
    straight = train(config(base, tmp_path, "straight", **common))
    halted = train(config(base, tmp_path, "halted", **common), observer=Stop(signal.SIGTERM, 2))
    assert halted.adapter is None
    resumed = resume(tmp_path / "halted")
    assert straight.adapter is not None
    assert resumed.adapter is not None
    assert weights(resumed.adapter) == weights(straight.adapter)


def test_qlora_with_both_ends_goes_on_from_its_own_bytes(base: Path, tmp_path: Path):
    """NF4 on the CPU, r = 32 on all linear layers and both ends in full at a tenth of the rate; then --continue."""
    common = {"steps": 2, "prove": "reload", "pairs": 12, "quantize": "nf4", "batch_size": 2, "lr": 5e-4}
    first = Notes()
    found = train(config(base, tmp_path, "one", adapter={"rank": 32}, **ENDS, **common), observer=first)
    assert found.adapter is not None
    assert found.problems == ()
    again = Notes()
    more = train(
        config(base, tmp_path, "two", adapter=None, **common), continue_from=str(found.adapter), observer=again
    )
    assert more.adapter is not None
    assert first.audits[0].rows == again.audits[0].rows
    groups = {row.group: row for row in again.audits[0].rows}
    assert groups["LoRA"].n_tensors == 2 * ALL_LINEAR
    assert groups["LoRA"].lrs == (5e-4,)
    for end in ("embeddings", "head"):
        assert groups[end].n_params == 49_152 * 576
        assert groups[end].lrs == pytest.approx((5e-5,))
    assert (tmp_path / "two" / "start" / WEIGHTS).read_bytes() == (found.adapter / WEIGHTS).read_bytes()
    ledger = ledgers.read(more.adapter)
    assert ledger is not None
    assert (ledger.base.quantize, ledger.lineage[0].conversions) == ("nf4", ())
