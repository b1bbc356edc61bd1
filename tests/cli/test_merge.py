"""suture merge"""

from __future__ import annotations

import os

import pytest

import suture.verification
from suture import pipeline


def test_a_merge(run, base, adapters, tmp_path):
    out = tmp_path / "out"
    result = run("merge", base, adapters / "head", "-o", out)
    assert result.exit_code == 0
    assert f"merged {out}: 1 tensor changed, 20 copied, 1 untied" in result.stdout
    assert "a sample of every tensor recomputed" in result.stdout
    assert (out / "suture_receipt.json").is_file()
    assert str(out / "suture_receipt.json") in result.stdout
    assert "the model grows by 12.0 KiB" in result.stderr


def test_json(document, base, adapters, tmp_path):
    code, found = document("merge", base, adapters / "qv", "-o", tmp_path / "out", "--verify", "full", "--workers", 1)
    assert code == 0
    assert "model.safetensors" in found["receipt"]["sha256"]
    assert found["verdict"] is None


def test_hashes_are_a_choice(document, base, adapters, tmp_path):
    _, found = document("merge", base, adapters / "qv", "-o", tmp_path / "out", "--hash", "none", "--hash-inputs")
    assert "model.safetensors" not in found["receipt"]["sha256"]
    assert "config.json" in found["receipt"]["sha256"]
    assert "model.safetensors" in found["receipt"]["base_sha256"]


def test_links_are_told(run, base, adapters, tmp_path, resharded):
    out = tmp_path / "out"
    result = run("merge", resharded, adapters / "qv", "-o", out, "--link")
    assert result.exit_code == 0
    linked = [p.name for p in sorted(out.glob("*.safetensors")) if p.samefile(resharded / p.name)]
    assert linked
    assert f"linked      {len(linked)} file" in result.stdout


@pytest.fixture
def resharded(base, tmp_path):
    """The base in files of one tensor or two, as Transformers writes them."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    return tmp_path / "shards"


def test_a_merge_by_torch(document, base, adapters, tmp_path):
    plain, torch = tmp_path / "plain", tmp_path / "torch"
    document("merge", base, adapters / "qv", "-o", plain)
    code, found = document("merge", base, adapters / "qv", "-o", torch, "--compute-device", "cpu")
    assert (code, found["receipt"]["kernel"][:6]) == (0, "torch ")


def test_the_forward_pass_is_compared_when_asked(document, base, adapters, tmp_path):
    code, found = document("merge", base, adapters / "qv", "-o", tmp_path / "out", "--logits", "--device", "cpu")
    assert code == 0
    assert found["verdict"]["logits"]["mean_kl"] < 1e-6


def test_prompts_without_logits(run, base, adapters, tmp_path):
    result = run("merge", base, adapters / "qv", "-o", tmp_path / "out", "--prompt", "hello")
    assert result.exit_code == 2
    assert "Add --logits." in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files(run, base, adapters, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    result = run("merge", base, adapters / "qv", "-o", tmp_path)
    assert result.exit_code == 21
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_a_refusal(run, base, adapters, tmp_path):
    result = run("merge", base, adapters / "lost", "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "M301" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["plan_of", "diagnose"])
def test_ctrl_c_leaves_nothing(run, base, adapters, tmp_path, monkeypatch, moment):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, moment, interrupted)
    result = run("merge", base, adapters / "qv", "-o", tmp_path / "out")
    assert result.exit_code == 130
    assert "Nothing was left behind." in result.stderr
    assert not any(tmp_path.iterdir())


def test_ctrl_c_while_verifying_leaves_nothing(run, base, adapters, tmp_path, monkeypatch):

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(suture.verification, "replay", interrupted)
    assert run("merge", base, adapters / "qv", "-o", tmp_path / "out").exit_code == 130
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["merge", "plan", "verify", "check"])
def test_a_seed_where_nothing_is_random(run, base, adapters, tmp_path, command):
    more = {"merge": ["-o", tmp_path / "out"], "verify": [tmp_path]}.get(command, [])
    found = run(command, base, adapters / "qv", *more, "--seed", 3)
    assert found.exit_code == 2
    assert "--seed is of random bits, and nothing is random" in found.stderr
    assert "Add --rounding stochastic." in found.stderr


def test_options_reach_the_merge(run, base, adapters, tmp_path, monkeypatch):
    seen = {}

    def merge(*_, running, options, reading, **__):
        seen.update(running=running, options=options, reading=reading)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "merge", merge)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    options = ["--tied", "keep", "--dtype", "f16", "--tokenizer", "base", "--ignore", "m305", "--ignore", "N502"]
    options += ["--onto", "dequantized", "--trained-on", "fp4-nested", "--output", "same"]
    options += ["--rounding", "stochastic", "--seed", 3]
    sources = ["--adapter-name", "x", "--revision", "r1", "--adapter-revision", "r2", "--allow-pickle", "--offline"]
    how = ["--workers", 3, "--durability", "fast", "--verify", "full"]
    run("merge", base, adapters / "qv", "-o", tmp_path / "out", *options, *sources, *how)
    assert seen["options"] == pipeline.Options(
        tied="keep",
        dtype="F16",
        onto="dequantized",
        trained_on="fp4-nested",
        output="same",
        tokenizer="base",
        ignore=("M305", "N502"),
        rounding="stochastic",
        seed=3,
    )
    assert seen["reading"] == pipeline.Reading("r1", "r2", "x", allow_pickle=True)
    assert (seen["running"].workers, seen["running"].durable, seen["running"].full_verify) == (3, False, True)

    assert os.environ["HF_HUB_OFFLINE"] == "1"
