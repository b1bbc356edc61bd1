import hashlib

import numpy as np
import pytest
from corpus.folders import TENSORS, sharded_model, single_model, write_json

from suture.errors import InputError
from suture.formats import file_sha256, fingerprint, read_checkpoint


def fingerprint_of(folder, tensors):
    return fingerprint(read_checkpoint(single_model(folder, tensors)))


def test_sharding_file_names_order_and_folder_make_no_difference(tmp_path):
    reordered = {f"model-{i:05d}-of-00003.safetensors": [name] for i, name in enumerate(sorted(TENSORS)[::-1])}
    prints = {
        fingerprint(read_checkpoint(folder))
        for folder in (
            single_model(tmp_path / "single"),
            sharded_model(tmp_path / "sharded"),
            sharded_model(tmp_path / "other", reordered, index=False),
        )
    }
    assert len(prints) == 1
    assert len(prints.pop()) == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"model.norm.weight": t["model.norm.weight"] + 1},
        lambda t: t | {"model.norm.weight": t["model.norm.weight"].view(np.int32)},
        lambda t: t | {"model.norm.weight": t["model.norm.weight"].reshape(2, 2)},
        lambda t: t | {"model.extra.weight": t["model.norm.weight"]},
        lambda t: {n: v for n, v in t.items() if n != "model.norm.weight"},
        lambda t: {n.replace("norm", "morm"): v for n, v in t.items()},
    ],
    ids=["value", "dtype", "shape", "added", "removed", "renamed"],
)
def test_any_other_model_has_another_fingerprint(tmp_path, change):
    assert fingerprint_of(tmp_path / "a", TENSORS) != fingerprint_of(tmp_path / "b", change(TENSORS))


def test_large_tensors_are_sampled_where_their_names_say(tmp_path):
    w = np.zeros(100_000, np.float32)
    other = w.copy()
    other[:] = 1
    seed = hashlib.sha256(b"w").digest()
    position = int.from_bytes(seed[:8], "big") % (w.nbytes - 4096 + 1)
    touched = w.copy()
    touched.view(np.uint8)[position] = 1
    prints = [fingerprint_of(tmp_path / str(i), {"w": t}) for i, t in enumerate([w, other, touched])]
    assert len(set(prints)) == 3


def test_it_reads_little_of_a_large_model(tmp_path, monkeypatch):
    from suture.formats import reading

    n_bytes = []
    real = reading.read_exact

    def counted(file, offset, buffer, *, tensor=""):
        n_bytes.append(len(buffer))
        real(file, offset, buffer, tensor=tensor)

    monkeypatch.setattr(reading, "read_exact", counted)
    fingerprint_of(tmp_path, {f"w{i}": np.zeros(10**5, np.float32) for i in range(50)})
    assert sum(n_bytes) <= 50 * 3 * 4096


def test_empty_tensors_count_by_name_and_shape(tmp_path):
    a, b = np.zeros((0, 4), np.float32), np.zeros((4, 0), np.float32)
    assert fingerprint_of(tmp_path / "a", {"e": a}) != fingerprint_of(tmp_path / "b", {"e": b})


def test_a_checkpoint_without_weights_has_none(tmp_path):
    write_json(tmp_path / "config.json", {})
    with pytest.raises(InputError, match="without weights"):
        fingerprint(read_checkpoint(tmp_path, need_weights=False))


@pytest.mark.parametrize("n_bytes", [0, 1, 1 << 20, (1 << 20) + 1])
def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path, n_bytes):
    content = np.random.default_rng(0).bytes(n_bytes)
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_the_sha256_of_no_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        file_sha256(tmp_path / "none")
