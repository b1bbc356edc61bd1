"""A run from its config to a proven adapter: check → build → audit → train → save → read back → measure → merge."""

from __future__ import annotations

import contextlib
import gc
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from peft import PeftModel
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState

from suture.codec import to_json
from suture.errors import ResumeRefused, SutureError, UsageError
from suture.training import folder as folders
from suture.training import ledger as ledgers
from suture.training.batches import collate
from suture.training.build import on_cpu
from suture.training.callback import ProofCallback
from suture.training.compare import against_files
from suture.training.config import RunConfig, dump
from suture.training.config import load as load_config
from suture.training.curve import svg
from suture.training.ends import Proof, prove
from suture.training.live import look
from suture.training.movement import movements
from suture.training.ready import Ready, Source, make_ready
from suture.training.trainer import StrictTrainer, arguments, load_values, tensorboard
from suture.training.watch import Signals, Watch
from suture.values import Audit, Difference, Ledger, Movement, Outcome, StageLoss, StepMetrics

FREE = ("log_every", "keep", "prove", "merge_dtype", "tensorboard", "out")  # settings that change no bit
STAGED = ".adapter"


class Observer(Protocol):
    """Who watches a run."""

    def stage(self, name: str) -> None:
        """A part of the run begins."""

    def audit(self, found: Audit) -> None:
        """The audit is done; if it found differences, the run ends."""

    def note(self, text: str) -> None:
        """A choice that was made, or something that was cut or left out."""

    def step(self, metrics: StepMetrics) -> None:
        """A step was logged."""

    def saved(self, folder: Path, n_tensors: int) -> None:
        """A folder was written and read back."""


class Silent:
    """Watches nothing."""

    def stage(self, name: str) -> None:
        """Nothing."""

    def audit(self, found: Audit) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def step(self, metrics: StepMetrics) -> None:
        """Nothing."""

    def saved(self, folder: Path, n_tensors: int) -> None:
        """Nothing."""


def train(config: RunConfig, *, continue_from: str | None = None, observer: Observer | None = None) -> Outcome:
    """Train an adapter and prove it. `config.out` must be new or empty.

    Args:
        continue_from: an adapter, a folder or a Hub id, that the run goes on from.
        observer: is told of every stage and step.

    Raises:
        AuditFailed: what would train is not what the adapter's config promises.
        ResumeRefused: the adapter to continue does not fit its ledger, its config or the base.
        NotSaved: what lies on the disk is not what was in memory.
    """
    world = PartialState(cpu=on_cpu(config))
    watching = observer if observer is not None and world.is_main_process else Silent()
    if world.is_main_process:
        with folders.writing(config.out):
            folders.claim(config.out)
    world.wait_for_everyone()
    with folders.writing(config.out), _locked(config.out, world):
        watching.stage("checking")
        source = Source(continue_from) if continue_from else None
        try:
            return _Run(*make_ready(config, source, world.device), config.out, watching).go(None)
        except BaseException:
            if world.is_main_process:
                folders.unclaim(config.out)
            raise


def resume(run: str | Path, *, observer: Observer | None = None) -> Outcome:
    """Go on with a run that was stopped, from its newest whole checkpoint: the same bytes as without the stop.

    Raises:
        InputError: the folder is not a run's.
        ResumeRefused: there is no whole checkpoint, or a file of it, the base, the data, the tokenizer or the config
            is not what it was.
    """
    run = Path(run)
    folders.require_run(run)
    config = load_config(run / folders.CONFIG)
    world = PartialState(cpu=on_cpu(config))
    watching = observer if observer is not None and world.is_main_process else Silent()
    with folders.writing(run), _locked(run, world):
        watching.stage("checking")
        folder, ledger = _newest(run, watching)
        differences = [
            *against_files(folder, ledger),
            *_against_config(ledger, config),
            *_against_processes(ledger, world.num_processes),
        ]
        if differences:
            raise ResumeRefused(differences, where=str(folder))
        for text in _other_versions(ledger):
            watching.note(text)
        # in one expression: a name here would keep the model in memory until the end
        return _Run(*make_ready(config, Source(str(folder), ledger), world.device), run, watching).go((folder, ledger))


def _processes(accelerator: Any) -> tuple[str, ...]:
    """How several processes share the run.

    Raises:
        UsageError: sharding was asked for, and accelerate has silently replaced it.
    """
    kind = accelerator.distributed_type.value
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and kind != "FSDP":
        raise UsageError(
            f"FSDP was asked for, but accelerate gives {kind} on {accelerator.device.type}",
            where="accelerate launch",
            expected="GPUs",
            do="Leave FSDP out: each process then holds the whole model.",
        )
    return (f"{accelerator.num_processes} processes: {kind}",) if accelerator.num_processes > 1 else ()


def _locked(run: Path, world: PartialState) -> contextlib.AbstractContextManager[None]:
    return folders.locked(run) if world.is_main_process else contextlib.nullcontext()


def _newest(run: Path, watching: Observer) -> tuple[Path, Ledger]:
    """The newest checkpoint that was written whole: its ledger comes last."""
    for folder in reversed(folders.checkpoints(run)):
        ledger = ledgers.read(folder)
        if ledger is not None:
            return folder, ledger
        watching.note(f"{folder.name} was not finished (it has no ledger), so it is passed over")
    found = "no checkpoint was finished before the run stopped"
    raise ResumeRefused([Difference("files", found, "Delete the folder, and start again.", (), 0)], where=str(run))


def _against_config(ledger: Ledger, config: RunConfig) -> list[Difference]:
    then, now = dict(ledger.config or {}), config.model_dump(mode="json")
    return [
        Difference(
            "config",
            f"{folders.CONFIG}: {name} is {now.get(name)!r}, but was {then.get(name)!r} when the run began",
            "Put it back, or start a new run from the checkpoint with --continue.",
            (name,),
            0,
        )
        for name in sorted(then.keys() | now.keys())
        if name not in FREE and then.get(name) != now.get(name)
    ]


def _against_processes(ledger: Ledger, n_processes: int) -> list[Difference]:
    then = sum(name.startswith("rng_state") for name in ledger.files)
    if then == n_processes:
        return []
    found = f"{n_processes} processes resume what {then} have trained: other batches, and other random numbers"
    return [Difference("processes", found, f"Launch {then}.", (), 0)]


def _other_versions(ledger: Ledger) -> tuple[str, ...]:
    now = ledgers.versions()
    changed = [f"{name} {old} → {now[name]}" for name, old in ledger.versions.items() if now.get(name, old) != old]
    return (f"{', '.join(changed)}: the bytes may differ from those of a run without a stop",) if changed else ()


def _require_finite(before: StageLoss, ready: Ready) -> None:
    losses = (before.train, before.eval if before.eval is not None else 0.0)
    if not all(map(math.isfinite, losses)):
        raise SutureError(
            f"the loss is {before.train} on training and {before.eval} on evaluation before the first step",
            where=ready.config.base,
            expected="finite numbers",
            do=f"Try another precision than {ready.precision}; look for values that are not finite in the base.",
        )


class _Run:
    """One run: the parts that know each other only while it lasts."""

    def __init__(self, ready: Ready, model: PeftModel, run: Path, watching: Observer) -> None:
        self.ready, self.run, self.watching = ready, run, watching
        self.signals = Signals()
        self.watch = Watch(ready.config, run, self.signals, watching.step, self._begin)
        self.proof = ProofCallback(
            ready.provenance, on_audit=self._audited, on_saved=self._saved, metrics=self._numbers
        )
        self.before: StageLoss | None = None
        self.found: Audit | None = None
        self.trainer: Any = self._trainer(model)
        self.watch.trainer = self.trainer

    def go(self, checkpoint: tuple[Path, Ledger] | None) -> Outcome:
        """Train, from the first step or from a checkpoint, and prove what came out."""
        for text in (*self.ready.notes, *_processes(self.trainer.accelerator)):
            self.watching.note(text)
        if checkpoint is None:
            self.watching.stage("measuring before training")
            self.before = self.ready.ruler.stage("before", self.trainer.model, self.trainer.accelerator)
            _require_finite(self.before, self.ready)
        else:
            self._take_up(*checkpoint)
        self.watching.stage("training")
        is_over = self.trainer.args.max_steps <= (checkpoint[1].step if checkpoint else -1)
        if checkpoint is not None and (is_over or self.watch.has_stopped_early):
            self._after_the_last_step(checkpoint[0])
        else:
            with self.signals.listening():
                self.trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
        state = self.trainer.state
        if self.signals.asked and state.global_step < state.max_steps and not self.watch.has_stopped_early:
            return self._outcome(checkpoint=folders.checkpoint(self.run, state.global_step))
        return self._finish()

    def _take_up(self, folder: Path, ledger: Ledger) -> None:
        numbers = ledger.metrics
        self.before = StageLoss("before", numbers["before_train"], numbers.get("before_eval"))
        lines = folders.lines_until(self.run / folders.METRICS, ledger.step)
        self.watch.resume(lines)
        if self.trainer.args.should_save:
            folders.put_lines(self.run / folders.METRICS, lines)
        self.watching.note(f"resuming from {folder.name}")

    def _after_the_last_step(self, folder: Path) -> None:
        """Where a stop came after the last step: the Trainer, which would make another one, as it was then."""
        trainer = self.trainer
        trainer.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
        trainer.create_optimizer_and_scheduler(trainer.args.max_steps)
        trainer._load_optimizer_and_scheduler(str(folder))
        trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)  # its autocast
        seen = {"model": trainer.model, "optimizer": trainer.optimizer, "processing_class": self.ready.tokenizer}
        self.proof.on_train_begin(trainer.args, trainer.state, trainer.control, **seen)

    def _trainer(self, model: PeftModel) -> StrictTrainer:
        ready, config = self.ready, self.ready.config
        world = PartialState().num_processes
        per_epoch = math.ceil(math.ceil(len(ready.data.train) / (config.batch_size * world)) / config.accumulate)
        n_steps = config.steps or math.ceil(config.epochs * per_epoch)
        trainer = StrictTrainer(
            config,
            ready.ruler,
            ready.n_base_rows,
            ready.new_rows,
            model=model,
            args=arguments(config, self.run, n_steps, config.save_every or per_epoch, ready.precision),
            train_dataset=list(ready.data.train),
            eval_dataset=list(ready.data.eval) or None,
            data_collator=partial(collate, pad_id=ready.ruler.pad_id),
            processing_class=ready.tokenizer,
            callbacks=[*self._curves(), self.proof, self.watch],
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        return trainer

    def _curves(self) -> list[TrainerCallback]:
        return tensorboard(self.ready.config, self.run) if PartialState().is_main_process else []

    def _begin(self) -> None:
        """Before the first step: the settings, the audit, and the adapter as it starts, read back from the disk."""
        if self.trainer.args.should_save:
            folders.put(self.run / folders.CONFIG, dump(self.ready.config))
            folders.put_json(self.run / folders.AUDIT, to_json(self.found))
        self.trainer.save_model(str(self.run / folders.START))
        self.proof.seal(self.run / folders.START)

    def _audited(self, found: Audit) -> None:
        self.found = found
        self.watching.audit(found)

    def _saved(self, folder: Path, ledger: Ledger) -> None:
        self.watching.saved(folder, len(ledger.tensors))
        if folder == folders.checkpoint(self.run, ledger.step):
            self.watch.moved(ledger.step, self._movements(folder, ledger))
            self.watch.rotate()

    def _movements(self, folder: Path, ledger: Ledger) -> tuple[Movement, ...]:
        return movements(self.run / folders.START, folder, self.ready.arch, {r.name for r in ledger.tensors})

    def _numbers(self) -> dict[str, float]:
        """What a ledger keeps of the measurements."""
        step = self.trainer.state.global_step
        losses = [loss for at, loss in self.watch.curve if at <= step]
        numbers = {"loss": losses[-1]} if losses else {}
        if self.before is not None:
            numbers["before_train"] = self.before.train
            numbers |= {"before_eval": self.before.eval} if self.before.eval is not None else {}
        if self.watch.best is not None:
            numbers |= {"best_eval_loss": self.watch.best[0], "best_step": float(self.watch.best[1])}
        return numbers

    def _finish(self) -> Outcome:
        """Save, read back, measure; then measure again from the files, with the trained model out of memory."""
        ready, config, trainer = self.ready, self.ready.config, self.trainer
        best = self.watch.best
        notes: tuple[str, ...] = ()
        if config.early_stop and best and best[1] != trainer.state.global_step:
            folder = folders.checkpoint(self.run, best[1])
            load_values(look(trainer.model), folder)
            trainer.state = TrainerState.load_from_json(str(folder / "trainer_state.json"))
            notes = (f"the adapter is that of step {best[1]}, which had the best evaluation loss",)
            self.watching.note(notes[0])
        self.watching.stage("saving and reading back")
        adapter, staged = self.run / folders.ADAPTER, self.run / STAGED
        if trainer.args.should_save:
            folders.remove(staged)
        trainer.save_model(str(staged))
        ledger = self.proof.seal(staged, trainer.state)
        self.watching.stage("measuring after training")
        after = ready.ruler.stage("after", trainer.model, trainer.accelerator)
        if not trainer.args.should_save:
            return self._outcome(adapter=adapter)
        folders.publish(staged, adapter)
        outcome = self._outcome(adapter=adapter, ledger=ledger, stages=(after,), notes=notes)
        self.trainer = trainer = None
        self.watch.release()
        self.proof.release()
        gc.collect()
        self.watching.stage("measuring after a reload and a merge")
        return _with_proof(outcome, prove(ready, adapter, after))

    def _outcome(
        self,
        *,
        adapter: Path | None = None,
        ledger: Ledger | None = None,
        checkpoint: Path | None = None,
        stages: tuple[StageLoss, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Outcome:
        state = self.trainer.state
        return Outcome(
            run=self.run,
            base=self.ready.config.base,
            adapter=adapter,
            checkpoint=checkpoint,
            step=state.global_step,
            n_steps=state.max_steps,
            stages=(*((self.before,) if self.before else ()), *stages),
            movements=self._movements(adapter, ledger) if adapter and ledger else (),
            curve=tuple(self.watch.curve),
            problems=(),
            notes=(*self.ready.notes, *notes),
            is_first=self.trainer.args.should_save,
        )


def _with_proof(outcome: Outcome, proof: Proof) -> Outcome:
    """The outcome with what the files gave; it is written beside the adapter, with a picture of the loss."""
    whole = replace(
        outcome,
        stages=(*outcome.stages, *proof.stages),
        problems=proof.problems,
        notes=(*outcome.notes, *proof.notes),
    )
    folders.put_json(whole.run / folders.OUTCOME, to_json(whole))
    folders.put(whole.run / folders.CURVE, svg(whole.curve, (), title="loss"))
    return whole
