"""The whole line on a small model: what changes, what must not, and what is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from zoo import FAMILIES
from zoo_adapters import make_adapter

import suture
from suture.errors import Findings, InputError, NotVerified, OutputExists

EXTRA = "mtp.layers.0.proj.weight"  # a tensor that the model class does not know


@pytest.fixture(scope="module")
def base(base_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama with a stranger among its tensors and files beside them."""
    folder = tmp_path_factory.mktemp("pipeline") / "base"
    shutil.copytree(base_of("llama-tied"), folder)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    save_file({**tensors, EXTRA: np.arange(24, dtype=np.float16).reshape(4, 6)}, shard, metadata={"format": "pt"})
    for index in folder.glob("*.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"][EXTRA] = shard.name
        index.write_text(json.dumps(content))
    (folder / "generation_config.json").write_text('{"temperature": 0.3}')
    (folder / "chat_template.jinja").write_text("base template")
    (folder / "nested").mkdir()
    (folder / "nested" / "note.txt").write_text("kept")
    return folder


def adapter_of(base: Path, folder: Path, *targets: str) -> Path:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets))
    family = FAMILIES["llama-tied"]
    clean = folder.with_name(folder.name + "-base")
    shutil.copytree(base, clean, ignore=shutil.ignore_patterns("*.jinja", "nested"))
    for shard in clean.glob("*.safetensors"):
        save_file({k: v for k, v in load_file(shard).items() if k != EXTRA}, shard, metadata={"format": "pt"})
    for index in clean.glob("*.index.json"):
        content = json.loads(index.read_text())
        del content["weight_map"][EXTRA]
        index.write_text(json.dumps(content))
    make_adapter(family, clean, config, folder)
    return folder


@pytest.fixture(scope="module")
def attention(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_of(base, tmp_path_factory.mktemp("pipeline-attention") / "adapter", "q_proj", "v_proj")


@pytest.fixture(scope="module")
def head(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_of(base, tmp_path_factory.mktemp("pipeline-head") / "adapter", "q_proj", "lm_head")


def weights(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(f.relative_to(folder)): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns)
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def test_what_the_adapter_does_not_name_is_byte_identical(base, attention, tmp_path):
    before = state(base), state(attention)
    suture.merge(base, attention, tmp_path / "out")
    old, new = weights(base), weights(tmp_path / "out")
    assert old.keys() == new.keys()
    changed = {k for k in old if not np.array_equal(old[k], new[k])}
    assert changed == {k for k in old if k.endswith(("q_proj.weight", "v_proj.weight"))}
    assert new[EXTRA].dtype == np.float16
    assert (state(base), state(attention)) == before


def test_files_beside_the_weights_are_kept(base, attention, tmp_path):
    suture.merge(base, attention, tmp_path / "out")
    for name in ("config.json", "generation_config.json", "chat_template.jinja", "nested/note.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    assert not list((tmp_path / "out").glob("adapter_*"))


def test_the_adapters_chat_template_is_carried(base, attention, tmp_path):
    tuned = shutil.copytree(attention, tmp_path / "adapter")
    (tuned / "chat_template.jinja").write_text("tuned template")
    suture.merge(base, tuned, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "tuned template"


def test_the_receipt_names_every_file_by_its_sha256(base, head, tmp_path):
    receipt = suture.merge(base, head, tmp_path / "out")
    found = {name: digest for name, (digest, _) in state(tmp_path / "out").items() if name != "suture_receipt.json"}
    assert dict(receipt.sha256) == found
    assert receipt.adapter_sha256 == hashlib.sha256((head / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "out" / "suture_receipt.json").read_text())["plan_id"] == receipt.plan_id


def test_ties_are_told_before_and_written_after(base, head, tmp_path):
    plan = suture.plan(base, head)
    assert plan.untied == (("model.embed_tokens.weight", "lm_head.weight"),)
    assert any("untied" in note for note in plan.notes)
    suture.merge(base, head, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    old, new = weights(base), weights(tmp_path / "out")
    assert np.array_equal(old["model.embed_tokens.weight"], new["model.embed_tokens.weight"])
    assert not np.array_equal(new["lm_head.weight"], new["model.embed_tokens.weight"])


@pytest.mark.parametrize("policy", ["keep", "refuse"])
def test_a_refused_untying_writes_nothing(base, head, tmp_path, policy):
    with pytest.raises(Findings) as error:
        suture.merge(base, head, tmp_path / "out", options=suture.Options(tied=policy))
    assert [f.code for f in error.value.findings if f.severity == "error"] == ["T401"]
    assert list(tmp_path.iterdir()) == []


def test_another_dtype_is_a_choice(base, attention, tmp_path):
    suture.merge(base, attention, tmp_path / "out", options=suture.Options(dtype="F16"))
    assert {v.dtype for v in weights(tmp_path / "out").values()} == {np.dtype(np.float16)}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "float16"


def test_rounding_is_a_choice(base, head, tmp_path):
    """Tied ends come apart, so that two tensors with one source have bits of their own; the proof knows the seed."""
    options = {s: suture.Options(dtype="BF16", rounding="stochastic", seed=s) for s in (1, 2)}
    receipts = {s: suture.merge(base, head, tmp_path / f"{s}", options=o) for s, o in options.items()}
    near = suture.Options(dtype="BF16")
    receipts[0] = suture.merge(base, head, tmp_path / "0", options=near)
    assert receipts[1].options.seed == 1
    assert len({r.plan_id for r in receipts.values()}) == 3
    assert any("rounded to BF16 at random, with seed 1" in note for note in receipts[1].notes)
    assert not any("random" in note for note in receipts[0].notes)
    plan = suture.plan(base, head, options=options[1])
    assert {op.tensor for op in plan.operations if op.seed == 1} == {op.tensor for op in plan.operations if op.terms}
    found = [weights_in_16_bits(tmp_path / f"{s}") for s in (0, 1, 2)]
    for op in plan.operations:
        same = {raw[op.tensor].tobytes() for raw in found}
        assert len(same) == (3 if op.seed is not None else 1), op.tensor
    for full in (False, True):
        assert suture.verify(base, head, tmp_path / "1", options=options[1], full=full).ok
        assert not suture.verify(base, head, tmp_path / "1", options=options[2], full=full).ok
        assert not suture.verify(base, head, tmp_path / "0", options=options[1], full=full).ok
        told = [c.detail for c in suture.verify(base, head, tmp_path / "1", options=near, full=full).checks]
        assert "it was made with --rounding stochastic --seed 1" in told


def test_32_bits_are_never_random(base, attention, tmp_path):
    """The base is in float32."""
    for name, rounding in (("near", "nearest"), ("random", "stochastic")):
        receipt = suture.merge(base, attention, tmp_path / name, options=suture.Options(rounding=rounding))
    assert receipt.notes == ("stochastic rounding was asked for, but no tensor that changes is written in 16 bits",)
    near, found = weights(tmp_path / "near"), weights(tmp_path / "random")
    assert {k: v.tobytes() for k, v in near.items()} == {k: v.tobytes() for k, v in found.items()}
    assert suture.verify(base, attention, tmp_path / "random").ok


def weights_in_16_bits(folder: Path) -> dict[str, np.ndarray]:
    return {
        k: v.view(torch.int16).numpy() for f in sorted(folder.glob("*.safetensors")) for k, v in load_torch(f).items()
    }


def test_keys_of_another_level_are_refused_with_the_rewriting(base, attention, tmp_path):
    tuned = shutil.copytree(attention, tmp_path / "adapter")
    file = tuned / "adapter_model.safetensors"
    save_file({k.replace("model.model.model.", "model.model."): v for k, v in load_file(file).items()}, file)
    with pytest.raises(Findings) as error:
        suture.merge(base, tuned, tmp_path / "out")
    (finding,) = [f for f in error.value.findings if f.code == "M301"]
    assert "insert model. after base_model.model." in finding.do
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(base, attention, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists):
        suture.merge(base, attention, tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_file_that_is_wrong_after_writing_is_never_published(base, attention, tmp_path, monkeypatch):
    from suture.execute.kernel import Kernel

    right = Kernel.run

    def wrong(self, step):
        for offset, values in right(self, step):
            values.reshape(-1)[0] += 1
            yield offset, values

    monkeypatch.setattr(Kernel, "run", wrong)
    with pytest.raises(NotVerified) as error:
        suture.merge(base, attention, tmp_path / "out")
    assert {w.tensor.rpartition(".")[0].rpartition(".")[2] for w in error.value.verdict.wrong} == {"q_proj", "v_proj"}
    assert list(tmp_path.iterdir()) == []


def test_a_merge_by_hand_that_forgot_a_layer_is_found(base, attention, tmp_path):
    suture.merge(base, attention, tmp_path / "out")
    old = weights(base)
    for shard in (tmp_path / "out").glob("*.safetensors"):
        tensors = load_file(shard)
        name = "model.layers.1.self_attn.v_proj.weight"
        if name in tensors:
            save_file({**tensors, name: old[name]}, shard, metadata={"format": "pt"})
    (tmp_path / "out" / "suture_receipt.json").unlink()
    verdict = suture.verify(base, attention, tmp_path / "out", full=True)
    (wrong,) = verdict.wrong
    assert (verdict.ok, wrong.tensor, wrong.status) == (False, "model.layers.1.self_attn.v_proj.weight", "unchanged")


def test_a_base_that_does_not_exist_is_an_input_error(attention, tmp_path):
    with pytest.raises(InputError):
        suture.merge(tmp_path / "nowhere", attention, tmp_path / "out")
