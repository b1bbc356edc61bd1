"""A trainer's checkpoints are read as they are: healthy ones are clean, and a broken one does not stop the reading."""

from __future__ import annotations

import pytest
from datasets import Dataset
from run_cases import ARGS, STATE, WEIGHTS, copied, found, train
from runs import config, make_home
from tiny import make_base, make_model, make_tokenizer, wrapped
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

import suture
from suture.errors import InputError
from suture.run_folder import read_run_folder
from suture.training.run import Silent
from suture.training.run import train as train_by_suture

pytestmark = [
    pytest.mark.usefixtures("quiet_torch"),
    # TRL's config asks Transformers for a field by its old name
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def plain_run(home, tmp_path_factory):
    return train(home / "tied", tmp_path_factory.mktemp("plain") / "run", max_steps=5)


def test_checkpoints_of_a_trainer_are_clean(plain_run):
    runs = read_run_folder(plain_run, deep=True)
    assert [(r.number, r.previous, r.state["global_step"]) for r in runs] == [(2, None, 2), (4, 2, 4), (5, 4, 5)]
    assert all(r.adapter and not r.ledger and not r.unreadable for r in runs)
    assert [r.still for r in runs] == [None, (), ()]
    assert not found(plain_run, deep=True)
    assert not found(plain_run / "checkpoint-4", deep=True)


def test_checkpoints_of_trl_are_clean(home, tmp_path):
    model = wrapped(AutoModelForCausalLM.from_pretrained(home / "tied"))
    pairs = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(8)]
    args = SFTConfig(str(tmp_path / "out"), **ARGS, max_length=32, dataset_num_proc=None)
    made = SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=make_tokenizer(),
        callbacks=[suture.ProofCallback()],
    )
    made.train()
    made.save_model()
    runs = read_run_folder(tmp_path / "out", deep=True)
    assert [r.number for r in runs] == [2, 4, 6, None]
    assert all(r.ledger for r in runs[:3])
    assert not found(tmp_path / "out", deep=True)


def test_a_run_of_suture_is_clean(home, tmp_path):
    train_by_suture(config(home, tmp_path / "run"), observer=Silent())
    runs = read_run_folder(tmp_path / "run", deep=True)
    assert [r.number for r in runs][-1] is None
    assert len(runs) > 2
    assert all(r.ledger for r in runs)
    assert not found(tmp_path / "run", deep=True)


def test_a_checkpoint_of_a_whole_model_has_no_adapter(plain_run, tmp_path):
    folder = copied(plain_run / "checkpoint-2", tmp_path / "checkpoint-2")
    for path in folder.glob("adapter_*"):
        path.unlink()
    make_model().save_pretrained(folder)
    (run,) = read_run_folder(folder, deep=True)
    assert (run.adapter, run.unreadable) == (None, {})
    assert not found(folder, deep=True)


def test_an_adapter_of_another_name_lies_in_its_subfolder(plain_run, tmp_path):
    folder = copied(plain_run / "checkpoint-2", tmp_path / "checkpoint-2")
    (folder / "mine").mkdir()
    for path in folder.glob("adapter_*"):
        path.rename(folder / "mine" / path.name)
    (run,) = read_run_folder(folder)
    assert (run.adapter.name, run.weights) == ("mine", f"mine/{WEIGHTS}")


def test_nothing_in_a_broken_checkpoint_stops_the_reading(plain_run, tmp_path):
    folder = copied(plain_run / "checkpoint-2", tmp_path / "checkpoint-2")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    (folder / STATE).write_text("{")
    (folder / "suture_ledger.json").write_text("{}")
    (folder / "rng_state.pth").unlink()
    (folder / "rng_state.pth").symlink_to(tmp_path / "nothing")
    (run,) = read_run_folder(folder, deep=True)
    assert run.unreadable.keys() == {WEIGHTS, STATE, "suture_ledger.json", "rng_state.pth"}
    assert (run.adapter, run.state, run.ledger) == (None, {}, None)
    assert found(folder, deep=True)


@pytest.mark.parametrize("name", ["", "elsewhere"])
def test_what_is_no_run(name, tmp_path):
    with pytest.raises(InputError):
        read_run_folder(tmp_path / name)


def test_a_base_is_no_run(tmp_path):
    with pytest.raises(InputError):
        read_run_folder(make_base(tmp_path / "base"))
