"""A checkpoint is held against its ledger, and a ledger against the model that goes on; each difference is one line."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_readback import FILE, KEY, sha256_by_hand
from tiny import make_base, make_model, trained, wrapped

from suture.errors import ResumeRefused
from suture.formats import TensorReader, read_adapter, read_checkpoint, reading, stored_sha256
from suture.training import compare
from suture.training import ledger as ledgers
from suture.training.audit import tensor_records
from suture.training.callback import optimizer_order
from suture.training.live import look
from suture.training.readback import read_back
from suture.values import BaseRecord, Ledger

pytestmark = pytest.mark.usefixtures("quiet_torch")


def ledger_of(model, folder, **facts):
    """A saved model's ledger, and its adapter on disk."""
    model.save_pretrained(folder)
    live = look(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for name in ("optimizer.pt", *compare.RESUMABLE):
        (folder / name).write_bytes(name.encode())
    values = {
        "version": ledgers.VERSION,
        "base": BaseRecord("base", "b" * 64),
        "tensors": tensor_records(live, optimizer),
        "sha256": read_back(folder, live).sha256,
        "optimizer": optimizer_order(live, optimizer),
        "adapter_config": read_adapter(folder).config,
        "config": None,
        "data_sha256": "d" * 64,
        "tokenizer_sha256": None,
        "versions": ledgers.versions(),
        "lineage": (),
        "step": 4,
        "epoch": 0.5,
        "n_tokens": 10,
        "metrics": {"loss": 1.0},
        "files": ledgers.hash_files(folder),
    }
    return Ledger(**{**values, **facts}), read_adapter(folder)


@pytest.fixture
def saved(tmp_path):
    model = trained(wrapped(modules_to_save=["input_layernorm"]))
    ledger, _ = ledger_of(model, tmp_path)
    return tmp_path, ledger, look(model)


def found(differences):
    return [(d.group, d.found, d.n_params) for d in differences]


def rewrite(folder, change):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def test_an_untouched_checkpoint_has_no_differences(saved):
    folder, ledger, live = saved
    assert compare.against_ledger(read_adapter(folder), ledger, live.arch) == []
    assert compare.against_files(folder, ledger) == []
    assert compare.against_model(ledger, ledger.tensors, live.arch) == []
    assert compare.against_memory(ledger, live) == []
    assert compare.against_order(ledger, ledger.optimizer) == []


@pytest.mark.parametrize(
    ("change", "words", "n"),
    [
        (lambda t: t.pop(KEY), "LoRA of 1 module (1 tensor) is missing from the file", 128),
        (lambda t: t.update(x=torch.ones(3)), "is in the file, though the ledger does not know it", 3),
        (lambda t: t.update({KEY: torch.empty(0)}), "is of another shape than the ledger says", 128),
        (lambda t: t[KEY].mul_(2), "is of other bytes than the ledger says", 128),
    ],
)
def test_each_change_of_the_file(saved, change, words, n):
    folder, ledger, live = saved
    rewrite(folder, change)
    (difference,) = compare.against_ledger(read_adapter(folder), ledger, live.arch)
    assert words in difference.found
    assert difference.n_params == n


def test_a_change_of_the_config(saved):
    folder, ledger, live = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 64, "inference_mode": False}))
    differences = compare.against_ledger(read_adapter(folder), ledger, live.arch)
    assert found(differences) == [("config", "adapter_config.json: lora_alpha is 64, but was 8 when it was saved", 0)]


def test_other_files_that_are_missing_or_changed(saved):
    folder, ledger, _ = saved
    (folder / "optimizer.pt").unlink()
    (folder / "scheduler.pt").write_bytes(b"other")
    assert found(compare.against_files(folder, ledger)) == [
        ("files", "optimizer.pt is missing", 0),
        ("files", "scheduler.pt has other bytes than the ledger says", 0),
    ]


def test_weights_are_compared_tensor_by_tensor_and_not_as_a_file(saved):
    folder, ledger, _ = saved
    rewrite(folder, lambda t: t[KEY].mul_(2))
    assert compare.against_files(folder, ledger) == []


def test_base_data_and_tokenizer_of_a_run(saved):
    _, ledger, _ = saved
    same = {"base": "b" * 64, "data": "d" * 64, "tokenizer": "t" * 64}  # the ledger does not know its tokenizer
    assert compare.against_run(ledger, same) == []
    other = compare.against_run(ledger, {**same, "data": "0" * 64})
    assert [(d.group, "not the one" in d.found) for d in other] == [("data", True)]


def test_another_model_than_before(saved):
    _, ledger, live = saved
    records = list(ledger.tensors)
    changed = replace(records[0], lr=0.25)
    grown = replace(records[1], shape=(1, 2, 3))
    new = replace(records[2], name="base_model.model.lm_head.weight", group="head")
    now = [changed, grown, new, *records[3:]]
    differences = compare.against_model(ledger, now, live.arch)
    assert [d.found.split(": ")[0] for d in differences] == [
        "LoRA of 1 module (1 tensor) is no longer trained",
        "lm_head is newly trained",
        "LoRA of 1 module (1 tensor) is trained at other shapes than before ((4, 64) → (1, 2, 3))",
        "input_layernorm is trained at other learning rates than before (0.5 → 0.25)",
    ]


def test_values_and_config_in_memory(saved):
    _, ledger, live = saved
    trained(live.model, seed=9)
    live.model.peft_config["default"].use_rslora = True
    differences = compare.against_memory(ledger, look(live.model))
    assert [(d.group, d.n_params) for d in differences] == [("config", 0), ("LoRA", 1664), ("norms and others", 64)]


def test_the_order_of_the_optimiser(saved):
    _, ledger, _ = saved
    order = list(ledger.optimizer)
    order[0], order[1] = order[1], order[0]
    assert "2 parameters stand at other positions" in compare.against_order(ledger, order)[0].found
    assert "1 parameters are in only one" in compare.against_order(ledger, ledger.optimizer[1:])[0].found
    assert compare.against_order(ledger, ()) == []  # no optimiser was seen


def test_rows_that_no_file_would_hold(tmp_path):
    base = read_checkpoint(make_base(tmp_path / "base"))
    assert compare.against_rows(look(wrapped()), base, []) == []
    model = make_model()
    model.resize_token_embeddings(104, mean_resizing=False)
    live = look(wrapped(model))
    assert compare.against_rows(live, base, [(104, 32)]) == []
    for shapes in ([], [(98, 32)], [(104,)]):
        assert "104 rows, its base on the disk 98" in compare.against_rows(live, base, shapes)[0].found


def test_groups_and_their_words():
    arch = look(wrapped(make_model(tie=False))).arch
    keys = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.lora_A.weight"]
    sizes = {f"base_model.model.{key}": 10**6 for key in keys}
    assert found(compare.grouped(arch, sizes, "{what} gone: {n}", "")) == [
        ("embeddings", "embed_tokens and lm_head are gone: 2,000,000 parameters", 2 * 10**6),
        ("LoRA", "LoRA of 1 module (1 tensor) is gone: 1,000,000 parameters", 10**6),
    ]
    assert compare.described("norms and others", [f"x.{i}.norm.weight" for i in range(5)]) == "norm (5 modules) are"
    many = [f"x.norm_{i}.weight" for i in range(5)]
    assert compare.described("norms and others", many) == "norms and others of 5 modules (5 tensors) is"


def test_a_tensors_hash_is_that_of_its_bytes(saved, monkeypatch):
    folder, _, _ = saved
    monkeypatch.setattr(reading, "BLOCK_BYTES", 96)
    adapter = read_adapter(folder)
    with TensorReader(folder) as reader:
        assert {n: stored_sha256(reader, t) for n, t in adapter.tensors.items()} == sha256_by_hand(folder)


def test_the_error_lists_all_differences(saved):
    folder, ledger, live = saved
    rewrite(folder, lambda t: (t.pop(KEY), t.update(x=torch.ones(3))))
    error = ResumeRefused(compare.against_ledger(read_adapter(folder), ledger, live.arch), where=str(folder))
    assert "2 differences" in str(error)
