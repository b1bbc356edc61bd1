"""The receipt names inputs, kernel, versions and the sha256 of every file, and nothing of the machine or the hour."""

import hashlib
import json
import platform
from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl
from execute.made_plans import contents, make_pair, make_plan

import suture
from suture import compiled, execute
from suture.codec import from_json
from suture.execute.receipt import RECEIPT, kernel_name
from suture.planning.codec import plan_id
from suture.values import Receipt, Verdict


@pytest.fixture
def merged(tmp_path):
    pair = make_pair(tmp_path / "in")
    plan = make_plan(pair)
    staged = execute.run(plan, pair.inputs, tmp_path / "out")
    return plan, staged, execute.publish(staged, Verdict(True, ()))


def test_it_is_beside_the_files_and_can_be_read_back(merged):
    plan, staged, out = merged
    receipt = from_json(Receipt, json.loads((out / RECEIPT).read_text()))
    assert receipt == staged.receipt
    assert receipt.plan_id == plan_id(plan)
    assert (receipt.base, receipt.adapter) == ("base", "adapter")


def test_it_has_the_sha256_of_every_file(merged):
    _, staged, out = merged
    files = contents(out)
    del files[RECEIPT]
    assert staged.receipt.sha256 == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_two_merges_have_the_same_receipt(merged, tmp_path):
    plan, _, out = merged
    pair = make_pair(tmp_path / "again")
    again = execute.publish(execute.run(plan, pair.inputs, tmp_path / "elsewhere"), Verdict(True, ()))
    assert contents(again) == contents(out)


def test_a_model_of_the_hubs_cache_has_its_id_and_revision(tmp_path):
    pair = make_pair(tmp_path / "models--org--some-model" / "snapshots" / "abc")
    (pair.folder / "base").rename(tmp_path / "base")
    snapshot = pair.folder.parent / "0123abc"
    (tmp_path / "base").rename(snapshot)
    inputs = replace(pair.inputs, checkpoint=replace(pair.inputs.checkpoint, folder=snapshot))
    staged = execute.run(make_plan(pair), inputs, tmp_path / "out")
    assert (staged.receipt.base, staged.receipt.adapter) == ("org/some-model@0123abc", "adapter")
    execute.abandon(staged)


def test_the_kernel_is_numpy_and_its_blas(monkeypatch):
    monkeypatch.setattr(compiled, "why_not", lambda: "none")
    name = kernel_name()
    assert name.startswith(f"numpy {np.__version__}, ")
    blas = [lib for lib in threadpoolctl.threadpool_info() if "numpy" in lib["filepath"]]
    for lib in blas:
        assert name.endswith(f"{lib['internal_api']} {lib['version']} {lib['architecture']}")


def test_a_blas_that_cannot_be_asked_is_named_by_numpy(monkeypatch):
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    monkeypatch.setattr(compiled, "why_not", lambda: "none")
    config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert kernel_name() == f"numpy {np.__version__}, {config['name']} {config['version']}"


def test_versions(merged):
    versions = merged[1].receipt.versions
    assert sorted(versions) == ["numpy", "python", "suture", "transformers"]
    assert versions["python"] == platform.python_version()
    assert versions["suture"] == suture.__version__
