import json
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from corpus.folders import FACTORS, PEFT_CONFIG, TENSORS, adapter, write_json, write_text

from suture.errors import FormatError, InputError
from suture.formats import TensorReader, fingerprint, other_weights, pickles, read_adapter, read_checkpoint

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pickles"


def tensors_of(arrays):
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def model(folder, state, name="pytorch_model.bin", **options):
    write_json(folder / "config.json", {"model_type": "llama"})
    torch.save(state, folder / name, **options)
    return folder


def read(folder):
    return read_checkpoint(folder, allow_pickle=True)


def values_of(found):
    with TensorReader(found.folder) as reader:
        return {name: reader.array(info) for name, info in found.tensors.items()}


def assert_complete(found, expected):
    values = values_of(found)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])


class Evil:
    """A pickle that would make a file when it is opened."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_model_is_read_whole(tmp_path, zipped):
    folder = model(tmp_path / "m", tensors_of(TENSORS), _use_new_zipfile_serialization=zipped)
    assert_complete(read(folder), TENSORS)


def test_pickled_shards_are_read_whole(tmp_path):
    folder = tmp_path / "m"
    for i, (name, tensor) in enumerate(tensors_of(TENSORS).items(), 1):
        model(folder, {name: tensor}, f"pytorch_model-{i:05d}-of-00003.bin")
    found = read(folder)
    assert_complete(found, TENSORS)
    assert [s.name for s in found.shards] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


def test_a_missing_pickled_shard_is_named(tmp_path):
    folder = model(tmp_path / "m", tensors_of(TENSORS), "pytorch_model-00001-of-00002.bin")
    with pytest.raises(FormatError, match=r"missing: 'pytorch_model-00002-of-00002\.bin"):
        read(folder)


def test_a_pickled_adapter_is_read_whole(tmp_path):
    folder = adapter(tmp_path / "a", weights=False)
    torch.save(tensors_of(FACTORS), folder / "adapter_model.bin")
    write_text(folder, "tokenizer.json", "value_head.bin")
    found = read_adapter(folder, allow_pickle=True)
    assert_complete(found, FACTORS)
    assert (found.config, found.side_files) == (PEFT_CONFIG, ("tokenizer.json",))
    assert other_weights(found.folder) == ("value_head.bin",)


def test_the_copy_has_the_side_files_and_the_source_is_left_alone(tmp_path):
    folder = model(tmp_path / "m", tensors_of(TENSORS))
    write_text(folder, "tokenizer.json", "code/modeling.py")
    before = sorted(folder.rglob("*"))
    found = read(folder)
    assert found.side_files == ("code/modeling.py", "config.json", "tokenizer.json")
    assert (found.folder / "code/modeling.py").read_text() == "this is code/modeling.py"
    assert sorted(folder.rglob("*")) == before


def test_each_pickle_is_converted_once(tmp_path, monkeypatch):
    first = read(model(tmp_path / "m", tensors_of(TENSORS)))
    monkeypatch.setattr(pickles, "_convert", None)
    assert read(tmp_path / "m").folder == first.folder
    assert fingerprint(read(tmp_path / "m")) == fingerprint(first)


def test_a_changed_pickle_is_converted_again(tmp_path):
    first = read(model(tmp_path / "m", tensors_of(TENSORS)))
    changed = TENSORS | {"model.norm.weight": np.zeros(4, np.float32)}
    second = read(model(tmp_path / "m", tensors_of(changed)))
    assert second.folder != first.folder
    assert_complete(second, changed)


def test_the_cache_is_private_and_holds_nothing_unfinished(tmp_path, cache):
    read(model(tmp_path / "m", tensors_of(TENSORS)))
    assert cache.stat().st_mode & 0o077 == 0
    with pytest.raises(FormatError):
        read(model(tmp_path / "bad", {"a": 1}))
    assert len(list(cache.iterdir())) == 1


def test_a_faster_process_is_believed(tmp_path, monkeypatch):
    folder = model(tmp_path / "m", tensors_of(TENSORS))
    real = pickles._convert

    def overtaken(source, target):
        monkeypatch.setattr(pickles, "_convert", real)
        read(folder)
        real(source, target)

    monkeypatch.setattr(pickles, "_convert", overtaken)
    assert_complete(read(folder), TENSORS)


def test_an_unwritable_cache_is_an_input_error(tmp_path, monkeypatch):
    folder = model(tmp_path / "m", tensors_of(TENSORS))
    (tmp_path / "file").touch()
    monkeypatch.setenv("SUTURE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written") as caught:
        read(folder)
    assert "SUTURE_CACHE" in caught.value.do


def test_tensors_that_share_memory_are_written_apart_and_it_is_said(tmp_path, caplog):
    w = torch.arange(12.0).reshape(3, 4)
    folder = model(tmp_path / "m", {"embed": w, "head": w, "top": w[:2], "turned": w.T, "own": w + 1})
    found = read(folder)
    expected = {"embed": w, "head": w, "top": w[:2], "turned": w.T, "own": w + 1}
    assert_complete(found, {name: t.numpy() for name, t in expected.items()})
    copies = json.loads(found.shards[0].metadata[pickles.COPIES])
    assert copies == {"head": "embed", "top": "embed", "turned": "embed"}
    assert "share memory" in caplog.text


def test_bf16_parameters_and_empty_tensors_are_read(tmp_path):
    w = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = read(model(tmp_path / "m", {"w": torch.nn.Parameter(w), "e": torch.zeros(0, 4)}))
    values = values_of(found)
    np.testing.assert_array_equal(values["w"], w.view(torch.int16).numpy().view(np.uint16))
    assert values["e"].shape == (0, 4)


def test_no_code_of_a_pickle_runs(tmp_path):
    for zipped in (True, False):
        state = {"w": torch.zeros(2), "x": Evil(tmp_path / "made")}
        with pytest.raises(FormatError, match="cannot be read as weights"):
            read(model(tmp_path / f"m{zipped}", state, _use_new_zipfile_serialization=zipped))
    folder = model(tmp_path / "plain", {})
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(FormatError, match="cannot be read as weights"):
        read(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({"state_dict": {"w": torch.zeros(2)}}, "'state_dict': a dict"),
        ({3: torch.zeros(2)}, "a key of type int"),
        ({"w": torch.zeros(3, 3).to_sparse()}, "torch.sparse_coo"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, "torch.complex128"),
        ({"w": torch.zeros(1).expand(10**12)}, "larger than its memory"),
        ({f"w{i}": torch.zeros(0) for i in range(2)} | {"n": None}, "'n': a NoneType"),
    ],
)
def test_anything_but_named_plain_tensors_is_refused(tmp_path, state, message):
    with pytest.raises(FormatError, match=message):
        read(model(tmp_path / "m", state))


def test_one_storage_under_very_many_names_is_refused(tmp_path):
    w = torch.zeros(10**5)
    with pytest.raises(FormatError, match="overlap so much"):
        read(model(tmp_path / "m", {f"w{i}": w for i in range(1000)}))


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_pickles_give_a_named_error_or_tensors(tmp_path, zipped):
    path = model(tmp_path / "m", tensors_of(TENSORS), _use_new_zipfile_serialization=zipped) / "pytorch_model.bin"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(good[: rng.integers(len(good))] if rng.random() < 0.2 else good)
        for position in rng.integers(0, max(len(content), 1), 3):
            content[position : position + 1] = rng.bytes(1)
        path.write_bytes(content)
        with suppress(FormatError):  # and no other error
            assert all(isinstance(tensor, torch.Tensor) for tensor in pickles._load(path).values())


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_packed_members_are_refused_before_they_are_unpacked(member, tmp_path):
    """Of data.pkl, half a megabyte would become half a gigabyte; of data/0, packed bytes would be taken for values."""
    folder = model(tmp_path / "m", tensors_of(TENSORS))
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            packed = name.endswith(member)
            archive.writestr(name, data + bytes(packed << 20), zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    with pytest.raises(FormatError, match=f"the archive packs '.*{member}'"):
        read(folder)


def test_values_that_would_take_ages_to_print_are_refused_at_once(tmp_path):
    nested = [0]
    for _ in range(100):
        nested = [nested, nested]
    with pytest.raises(FormatError, match="a list"):
        read(model(tmp_path / "m", {"b": nested, "a": nested}))
