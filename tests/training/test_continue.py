"""New runs from an adapter: what it was is inherited, other wishes are said, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from runs import ENDS, WEIGHTS, Notes, make_home
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from suture.errors import ResumeRefused, UsageError
from suture.training import ledger as ledgers
from suture.training.config import RunConfig
from suture.training.run import train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("home"))


def config(home: Path, out: Path, base: str = "tied", **settings: Any) -> RunConfig:
    """Settings that name nothing of the adapter."""
    unnamed = {"adapter", "save", "new_tokens", "new_rows", "ties", "save_every"}
    plain = runs.config(home, out, base).model_dump(exclude=unnamed)
    data = {**plain["data"], "eval_share": 0}
    return RunConfig.model_validate({**plain, "data": data, "steps": 3, **settings})


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with LoRA and both ends of the vocabulary."""
    out = tmp_path_factory.mktemp("trained") / "run"
    adapter = train(config(home, out, adapter={"rank": 4, "alpha": 8}, **ENDS)).adapter
    assert adapter is not None
    return adapter


def test_what_an_adapter_is_is_inherited(home: Path, trained: Path, tmp_path: Path):
    """The same tensors train as before, and start from the bytes of the file."""
    seen = Notes()
    found = train(config(home, tmp_path / "run"), continue_from=str(trained), observer=seen)
    start = tmp_path / "run" / "start"
    assert (start / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    before, after = ledgers.read(trained), ledgers.read(tmp_path / "run" / "adapter")
    assert before is not None
    assert after is not None
    assert found.adapter is not None
    assert [(r.name, r.shape, r.dtype, r.group) for r in after.tensors] == [
        (r.name, r.shape, r.dtype, r.group) for r in before.tensors
    ]
    assert after.sha256 != before.sha256
    (ancestor,) = after.lineage
    assert (ancestor.step, ancestor.conversions) == (3, ())
    assert seen.audits[0].n_trainable == sum(r.n_values for r in before.tensors)
    assert "the optimiser starts fresh" in seen.texts


def test_lineage_grows(home: Path, trained: Path, tmp_path: Path):
    one = train(config(home, tmp_path / "one"), continue_from=str(trained)).adapter
    two = train(config(home, tmp_path / "two"), continue_from=str(one)).adapter
    assert two is not None
    ledger = ledgers.read(two)
    assert ledger is not None
    assert len(ledger.lineage) == 2


def logits(base: Path, adapter: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter": {"rank": 8}}, "rank 4 → 8"),
        ({"adapter": {"alpha": 16}}, "scale"),
        ({"adapter": {"targets": ["q_proj", "v_proj", "k_proj"]}}, None),
    ],
    ids=["rank", "alpha", "targets"],
)
def test_what_is_asked_for_otherwise_is_said(home: Path, tmp_path: Path, settings: dict[str, Any], words: str | None):
    """A conversion is stated, recorded, and leaves what the adapter computes as it was."""
    old = train(
        config(home, tmp_path / "old", adapter={"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]})
    ).adapter
    assert old is not None
    seen = Notes()
    new = train(config(home, tmp_path / "new", **settings), continue_from=str(old), observer=seen).adapter
    assert new is not None
    torch.testing.assert_close(logits(home / "tied", tmp_path / "new" / "start"), logits(home / "tied", old))
    ledger = ledgers.read(new)
    assert ledger is not None
    assert ledger.lineage[-1].conversions
    assert set(ledger.lineage[-1].conversions) <= set(seen.texts)
    assert words is None or any(words in text for text in seen.texts)


def test_ends_that_are_new_are_asked_about(home: Path, tmp_path: Path):
    old = train(config(home, tmp_path / "old", adapter={"targets": ["q_proj"]})).adapter
    with pytest.raises(UsageError, match="one tensor in this base"):
        train(config(home, tmp_path / "new", save=["lm_head"]), continue_from=str(old))


def test_the_folder_of_a_run_stands_for_its_adapter(home: Path, trained: Path, tmp_path: Path):
    train(config(home, tmp_path / "run"), continue_from=str(trained.parent))
    assert (tmp_path / "run" / "start" / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()


def test_a_template_that_trained_is_saved(home: Path, tmp_path: Path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")
    data = {"train": str(home / "pairs.jsonl"), "eval_share": 0, "max_length": 64, "template": str(template)}
    found = train(config(home, tmp_path / "run", data=data))
    assert found.adapter is not None
    assert AutoTokenizer.from_pretrained(found.adapter).chat_template == template.read_text()


def test_wishes_that_no_conversion_can_follow(home: Path, trained: Path, tmp_path: Path):
    for wish, words in (
        ({"ties": "together"}, "ensure_weight_tying=False"),
        ({"adapter": {"method": "dora"}}, "use_dora=False"),
        ({"new_tokens": ["<a>"]}, "cannot be added"),
    ):
        with pytest.raises(UsageError, match=words):
            train(config(home, tmp_path / "run", **wish), continue_from=str(trained))


def test_training_is_never_lost(home: Path, trained: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="training would be lost"):
        train(config(home, tmp_path / "run", save=["lm_head"]), continue_from=str(trained))
    with pytest.raises(UsageError, match="training would be lost"):
        train(config(home, tmp_path / "run", adapter={"targets": ["q_proj"]}), continue_from=str(trained))
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_peft_without_a_ledger(home: Path, tmp_path: Path):
    """Any tool's adapter is checked against its config and the base; its values are the start."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(home / "untied"),
        LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path / "peft")
    train(config(home, tmp_path / "run", "untied"), continue_from=str(tmp_path / "peft"))
    ours, theirs = load_file(tmp_path / "run" / "start" / WEIGHTS), load_file(tmp_path / "peft" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def lost(folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, folder / WEIGHTS)
    return "promised by the adapter's config, but not in the file"


def foreign(folder: Path) -> str:
    tensors = load_file(folder / WEIGHTS)
    more = {k.replace("layers.1", "layers.7"): v.clone() for k, v in tensors.items() if "layers.1" in k}
    save_file({**tensors, **more}, folder / WEIGHTS)
    return "M301"


def other_rank(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    return "of another shape"


@pytest.mark.parametrize("breaks", [lost, foreign, other_rank])
@pytest.mark.parametrize("with_ledger", [True, False])
def test_an_adapter_that_does_not_fit_is_refused(
    home: Path, trained: Path, tmp_path: Path, breaks: Any, with_ledger: bool
):
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    if not with_ledger:
        (folder / ledgers.NAME).unlink()
    words = breaks(folder)
    with pytest.raises(ResumeRefused, match=words):
        train(config(home, tmp_path / "run"), continue_from=str(folder))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("base", ["tied", "untied"])
@pytest.mark.parametrize("rows", ["full", "only"])
def test_new_tokens(home: Path, tmp_path: Path, base: str, rows: str):
    """New rows start where they were told to, train, are saved, reloaded, merged and continued."""
    settings = {
        "new_tokens": {"<sum>": "sum", "<end>": None},
        "new_rows": rows,
        "ties": "together" if base == "tied" else "refuse",
        "prove": "full",
        "data": {"train": str(tokens_file(tmp_path)), "eval_share": 0, "max_length": 64},
    }
    found = train(config(home, tmp_path / "run", base, **settings))
    assert found.problems == ()
    assert found.adapter is not None
    stages = {stage.stage: stage.train for stage in found.stages}
    assert stages["merged"] == pytest.approx(stages["after"], abs=1e-5)
    assert stages["after"] < stages["before"]
    tokenizer = AutoTokenizer.from_pretrained(found.adapter)
    assert tokenizer.convert_tokens_to_ids(["<sum>", "<end>"]) == [98, 99]
    start = load_file(tmp_path / "run" / "start" / WEIGHTS)
    key = "token_adapter.trainable_tokens_delta" if rows == "only" else "embed_tokens.weight"
    (matrix,) = [v for k, v in start.items() if k.endswith(f"embed_tokens.{key}" if rows == "only" else key)]
    old = load_file(home / base / "model.safetensors")["model.embed_tokens.weight"]
    words = old[AutoTokenizer.from_pretrained(home / base)("sum", add_special_tokens=False)["input_ids"]]
    torch.testing.assert_close(matrix[-2:], torch.stack([words.mean(0), old.mean(0)]))
    again = train(
        config(home, tmp_path / "again", base, data=settings["data"], prove="full"), continue_from=str(found.adapter)
    )
    assert again.problems == ()
    assert (tmp_path / "again" / "start" / WEIGHTS).read_bytes() == (found.adapter / WEIGHTS).read_bytes()
    assert again.stages[0].train == pytest.approx(stages["after"], abs=1e-6)


def tokens_file(folder: Path) -> Path:
    path = folder / "tokens.jsonl"
    rows = [{"prompt": f"<sum> {i} {i}", "completion": f" {2 * i}<end>"} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ends_that_train_together_stay_one_tensor(home: Path, tmp_path: Path):
    found = train(config(home, tmp_path / "run", save=["embed_tokens", "lm_head"], ties="together", prove="full"))
    assert found.problems == ()
    assert found.adapter is not None
    tensors = load_file(found.adapter / WEIGHTS)
    ends = [v for k, v in tensors.items() if k.endswith(("embed_tokens.weight", "lm_head.weight"))]
    assert all(torch.equal(ends[0], other) for other in ends)
