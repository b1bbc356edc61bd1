"""The callback in the Trainers of Transformers and TRL: every checkpoint proven, every damaged resume refused.

Each damage is first shown to pass without a word where the callback is absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import VOCAB, make_base, make_tokenizer, wrapped
from transformers import (
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer
from zoo import FAMILIES, build
from zoo import VOCAB as VOCAB_OF_ZOO

import suture
from suture.errors import AuditFailed, NotSaved, ResumeRefused, UsageError
from suture.formats import fingerprint, read_checkpoint
from suture.training import ledger as ledgers
from suture.training.callback import Provenance
from suture.values import BaseRecord

pytestmark = [
    pytest.mark.usefixtures("quiet_torch"),
    # TRL's config asks Transformers for a field by its old name
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

FILE = "adapter_model.safetensors"
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
ARGS = {
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, quiet_torch):
    return make_base(tmp_path_factory.mktemp("base") / "base")


def rows(n=8):
    ids = torch.randint(3, VOCAB, (n, 12), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def load(base, rows=None, **of_lora):
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(3)
    return wrapped(model, **of_lora)


def trainer(model, out, *callbacks, kind=Trainer, **args):
    made = kind(
        model=model,
        args=TrainingArguments(str(out), **{**ARGS, **args}),
        train_dataset=rows(),
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )
    return quiet(made)


def sft_trainer(model, out, *callbacks):
    pairs = [{"prompt": f"{i} + {i} =", "completion": f" {2 * i}"} for i in range(8)]
    args = SFTConfig(str(out), **ARGS, max_length=32, dataset_num_proc=None)
    made = SFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )
    return quiet(made)


def quiet(made):
    for callback in [c for c in made.callback_handler.callbacks if "Printer" in type(c).__name__]:
        made.remove_callback(callback)
    return made


class Reversed(Trainer):
    """A Trainer that gives its optimiser the parameters in the opposite order."""

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        for group in optimizer.param_groups:
            group["params"].reverse()
        return optimizer


# ----------------------------------------------------------------------------------------------------------- the proof


@pytest.mark.parametrize("make", [trainer, sft_trainer])
def test_every_checkpoint_has_a_ledger_that_is_right(make, base, tmp_path):
    seen = []
    model = load(base, modules_to_save=["input_layernorm"])
    proof = suture.ProofCallback(on_audit=seen.append, on_saved=lambda folder, ledger: seen.append(folder.name))
    run = make(model, tmp_path, proof)
    run.train()
    assert [x if isinstance(x, str) else x.ok for x in seen] == [True, "checkpoint-2", "checkpoint-4"]
    assert seen[0].probed
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        ledger = ledgers.read(folder)
        with safe_open(folder / FILE, "pt") as file:
            keys = sorted(file.keys())
            tensors = {key: file.get_tensor(key) for key in keys}
        assert ledger.sha256 == {
            key: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for key, t in tensors.items()
        }
        assert [record.name for record in ledger.tensors] == keys
        for record in ledger.tensors:
            assert (record.shape, record.dtype) == (tuple(tensors[record.name].shape), "F32")
            assert record.group == ("LoRA" if ".lora_" in record.name else "norms and others")
            assert record.lr == ARGS["learning_rate"]  # the peak, whatever the schedule says now
        names = {id(p): name for name, p in model.named_parameters()}
        order = [names[id(p)] for group in run.optimizer.param_groups for p in group["params"]]
        assert ledger.optimizer == tuple(name.replace(".default", "").replace(".modules_to_save", "") for name in order)
        assert ledger.base == BaseRecord(str(base), fingerprint(read_checkpoint(base)))
        assert ledger.adapter_config == json.loads((folder / "adapter_config.json").read_text())
        assert (ledger.step, ledger.version, ledger.config) == (step, ledgers.VERSION, None)
        assert ledger.epoch == step / 4
        assert math.isfinite(ledger.metrics["loss"])
        assert ledger.tokenizer_sha256 == ledgers.tokenizer_sha256(make_tokenizer())
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ledgers.NAME}
        assert ledger.files == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_the_result_can_be_sealed_too(base, tmp_path):
    proof = suture.ProofCallback()
    run = trainer(load(base), tmp_path / "run", proof, save_strategy="no")
    with pytest.raises(UsageError, match="nothing has been trained yet"):
        proof.seal(tmp_path)
    run.train()
    run.save_model(str(tmp_path / "out"))
    ledger = proof.seal(tmp_path / "out")
    assert ledgers.read(tmp_path / "out") == ledger
    assert ledger.step == 4
    with torch.no_grad():
        next(p for p in run.model.parameters() if p.requires_grad).add_(1)
    with pytest.raises(NotSaved, match="bytes differ"):
        proof.seal(tmp_path / "out")
    proof.release()
    with pytest.raises(UsageError):
        proof.seal(tmp_path / "out")


def test_training_is_the_same_with_the_callback_as_without(base, tmp_path):
    weights = []
    for name, callbacks in (("with", [suture.ProofCallback()]), ("without", [])):
        trainer(load(base, lora_dropout=0.2), tmp_path / name, *callbacks).train()
        weights.append((tmp_path / name / "checkpoint-4" / FILE).read_bytes())
    assert weights[0] == weights[1]


def test_an_audit_that_fails_stops_before_the_first_step(base, tmp_path):
    model = load(base)
    model.peft_config["default"].lora_alpha = 64
    seen = []
    run = trainer(model, tmp_path, suture.ProofCallback(on_audit=seen.append))
    with pytest.raises(AuditFailed, match="another factor"):
        run.train()
    assert not seen[0].ok
    assert run.state.global_step == 0
    assert not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_a_save_that_loses_a_tensor_stops_the_run(base, tmp_path):
    class Losing(Trainer):
        def _save(self, output_dir=None, state_dict=None):
            super()._save(output_dir, state_dict)
            tensors = load_file(f"{output_dir}/{FILE}")
            del tensors[KEY]
            save_file(tensors, f"{output_dir}/{FILE}")

    run = trainer(load(base), tmp_path, suture.ProofCallback(), kind=Losing)
    with pytest.raises(NotSaved, match=f"{KEY}: not in the file"):
        run.train()
    assert run.state.global_step == 2
    assert not (tmp_path / "checkpoint-2" / ledgers.NAME).exists()


def test_a_nan_among_the_metrics_does_not_keep_the_ledger_from_being_written(base, tmp_path):
    class Nan(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            state.log_history.append({"strange": math.nan, "loss": 1.5})

    trainer(load(base), tmp_path, Nan(), suture.ProofCallback()).train()
    assert "strange" not in ledgers.read(tmp_path / "checkpoint-4").metrics


# ------------------------------------------------------------------------------------------------ base and vocabulary


def test_a_base_without_files_is_told(base, tmp_path):
    model = load(base)
    model.peft_config["default"].base_model_name_or_path = ""
    with pytest.warns(UserWarning, match="no files of a base named ''"):
        trainer(model, tmp_path, suture.ProofCallback()).train()
    assert ledgers.read(tmp_path / "checkpoint-4").base == BaseRecord("", None)
    seen = []
    trainer(model, tmp_path, suture.ProofCallback(on_audit=seen.append)).train()
    assert len(seen[0].notes) == 1


def test_what_a_run_knows_goes_into_the_ledger(base, tmp_path):
    known = Provenance(BaseRecord("a base", "0" * 64), {"lr": 1}, "d" * 64)
    trainer(load(base), tmp_path, suture.ProofCallback(known, metrics=lambda: {"x": 2.0})).train()
    ledger = ledgers.read(tmp_path / "checkpoint-4")
    assert (ledger.base, ledger.config, ledger.data_sha256) == (known.base, known.config, known.data_sha256)
    assert ledger.metrics == {"x": 2.0}


def test_new_rows_that_peft_would_not_save_are_told_before_the_first_step(tmp_path):
    """PEFT looks for the vocabulary's size at the top of the config, where a model of text and images has none."""
    family = FAMILIES["qwen3-vl"]
    base = build(family, tmp_path / "base")
    model = family.model_class.from_pretrained(base)
    model.resize_token_embeddings(VOCAB_OF_ZOO + 8, mean_resizing=False)
    model = wrapped(model)
    model.save_pretrained(tmp_path / "adapter")
    assert all(".lora_" in key for key in load_file(tmp_path / "adapter" / FILE))
    begin = suture.ProofCallback().on_train_begin
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(AuditFailed, match=r"the model has 104 rows, its base on the disk 96, and the file would hold"):
        begin(args, TrainerState(), TrainerControl(), model=model)


def test_new_rows_that_are_not_saved_are_told_at_the_first_save(base, tmp_path):
    class Without(Trainer):
        def _save(self, output_dir=None, state_dict=None):
            self.model.save_pretrained(output_dir, save_embedding_layers=False)

    trainer(load(base, rows=104), tmp_path / "without", kind=Without).train()
    run = trainer(load(base, rows=104), tmp_path, suture.ProofCallback(), kind=Without)
    with pytest.raises(NotSaved, match="the model has 104 rows"):
        run.train()


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_new_rows_that_peft_saves_are_read_back(base, tmp_path):
    trainer(load(base, rows=104), tmp_path, suture.ProofCallback()).train()
    ledger = ledgers.read(tmp_path / "checkpoint-4")
    assert any("embed_tokens" in key for key in ledger.sha256)
    assert not any("embed_tokens" in record.name for record in ledger.tensors)


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def proven(base, tmp_path_factory):
    """The folder of a run with a proven checkpoint at step 2."""
    out = tmp_path_factory.mktemp("proven") / "run"
    trainer(load(base), out, suture.ProofCallback()).train()
    return out


@pytest.fixture
def run(proven, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(proven, tmp_path / "run")


def rewrite(checkpoint, change):
    tensors = load_file(checkpoint / FILE)
    change(tensors)
    save_file(tensors, checkpoint / FILE, metadata={"format": "pt"})


def lose(checkpoint):
    rewrite(checkpoint, lambda t: [t.pop(key) for key in list(t) if "layers.1" in key and "lora_B" in key])


def add(checkpoint):
    foreign = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    rewrite(checkpoint, lambda t: t.update({foreign: torch.ones(4, 32)}))


def scale(checkpoint):
    path = checkpoint / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 64}))


def flip(checkpoint):
    rewrite(checkpoint, lambda t: t[KEY].neg_())


DAMAGES = {
    "lost": (lose, "LoRA of 3 modules (3 tensors) is missing from the file, though the ledger has it"),
    "added": (add, "LoRA of 1 module (1 tensor) is in the file, though the ledger does not know it"),
    "alpha": (scale, "adapter_config.json: lora_alpha is 64, but was 8 when it was saved"),
    "changed": (flip, "LoRA of 1 module (1 tensor) is of other bytes than the ledger says"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_passes_silently_without_and_is_refused_with_the_callback(damage, base, run):
    change, words = DAMAGES[damage]
    checkpoint = run / "checkpoint-2"
    change(checkpoint)
    without = trainer(load(base), run / "without")
    without.train(resume_from_checkpoint=str(checkpoint))
    assert without.state.global_step == 4
    shutil.rmtree(run / "checkpoint-4")
    with pytest.raises(ResumeRefused) as caught:
        trainer(load(base), run, suture.ProofCallback()).train(resume_from_checkpoint=str(checkpoint))
    assert words in str(caught.value)
    assert not (run / "checkpoint-4").exists()


def test_lost_tensors_start_again_at_zero_without_the_callback(base, run):
    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **_):
            factors = [(name, p) for name, p in model.named_parameters() if "lora_B" in name]
            self.is_zero = {name: not p.any() for name, p in factors}

    lose(run / "checkpoint-2")
    begin = Begin()
    trainer(load(base), run / "without", begin).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert {name for name, zero in begin.is_zero.items() if zero} == {n for n in begin.is_zero if "layers.1" in n}


def test_moments_go_to_other_tensors_without_and_are_refused_with_the_callback(base, tmp_path):
    square = {"target_modules": ["q_proj", "o_proj"], "r": 32}  # all factors have one shape, and torch notices nothing
    trainer(load(base, **square), tmp_path, suture.ProofCallback()).train()
    checkpoint = str(tmp_path / "checkpoint-2")
    trainer(load(base, **square), tmp_path / "without", kind=Reversed).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ResumeRefused, match="8 parameters stand at other positions in the optimiser"):
        trainer(load(base, **square), tmp_path, suture.ProofCallback(), kind=Reversed).train(checkpoint)


def test_an_untouched_resume_passes_and_gives_the_same_bytes(base, run):
    whole = (run / "checkpoint-4" / FILE).read_bytes()
    shutil.rmtree(run / "checkpoint-4")
    seen = []
    proof = suture.ProofCallback(on_audit=seen.append)
    trainer(load(base), run, proof).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert (run / "checkpoint-4" / FILE).read_bytes() == whole
    assert seen[0].notes == ()
    assert ledgers.read(run / "checkpoint-4").step == 4


def test_a_model_with_another_alpha_than_the_checkpoint(base, run):
    checkpoint = str(run / "checkpoint-2")
    trainer(load(base, lora_alpha=16), run / "without").train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ResumeRefused, match="the adapter in memory: lora_alpha is 16, but was 8 in the checkpoint"):
        trainer(load(base, lora_alpha=16), run, suture.ProofCallback()).train(resume_from_checkpoint=checkpoint)


def test_a_model_with_other_targets_than_the_checkpoint(base, run):
    """As many tensors as before, most of them others, and no optimiser.pt: the Trainer goes on all the same."""
    of_lora = {"target_modules": ["q_proj", "o_proj", "k_proj"], "r": 4}
    (run / "checkpoint-2" / "optimizer.pt").unlink()
    trainer(load(base, **of_lora), run / "without").train(resume_from_checkpoint=str(run / "checkpoint-2"))
    with pytest.raises(ResumeRefused) as caught:
        trainer(load(base, **of_lora), run, suture.ProofCallback()).train(str(run / "checkpoint-2"))
    assert "LoRA of 4 modules (8 tensors) is no longer trained" in str(caught.value)
    assert "LoRA of 4 modules (8 tensors) is newly trained" in str(caught.value)


def test_a_checkpoint_elsewhere_or_without_a_ledger_is_told(base, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    with pytest.warns(UserWarning, match=r"resumed at step 2, and .* has no ledger"):
        trainer(load(base), elsewhere, suture.ProofCallback()).train(resume_from_checkpoint=str(run / "checkpoint-2"))


def test_an_adapter_of_another_name(base, tmp_path):
    torch.manual_seed(3)
    model = wrapped(AutoModelForCausalLM.from_pretrained(base), adapter_name="mine")
    trainer(model, tmp_path, suture.ProofCallback()).train()
    ledger = ledgers.read(tmp_path / "checkpoint-4")
    assert ledger.sha256.keys() == load_file(tmp_path / "checkpoint-4" / "mine" / FILE).keys()
