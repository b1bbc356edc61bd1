"""While a run trains: metrics by group, speed and time left, signals, early stopping, and checkpoints that are kept."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from suture.errors import SutureError
from suture.training import folder as folders
from suture.training.config import RunConfig
from suture.training.live import Live, look
from suture.values import Movement, StepMetrics

AGAIN_SECONDS = 1.0


class Signals:
    """Ctrl-C and SIGTERM ask for a checkpoint and an end; a second Ctrl-C stops at once.

    Launchers pass a signal on that the terminal has sent to their children as well: what comes within a second of the
    first, and every further SIGTERM, is the same wish.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[Signals]:
        """Listen while the block runs."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._ask)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > AGAIN_SECONDS:
            raise KeyboardInterrupt


class Watch(TrainerCallback):  # type: ignore[misc]  # Transformers is untyped here
    """Observes a run's steps. `trainer` is set once it exists; `begin` is called before the first step."""

    def __init__(
        self,
        config: RunConfig,
        run: Path,
        signals: Signals,
        show: Callable[[StepMetrics], None],
        begin: Callable[[], None],
    ) -> None:
        self.config, self.run, self.signals, self.show, self.begin = config, run, signals, show, begin
        self.trainer: Any = None
        self.live: Live | None = None  # of the model while it trains; its shape does not change
        self.curve: list[tuple[int, float]] = []
        self.best: tuple[float, int] | None = None  # evaluation loss, step
        self.n_worse = 0
        self._norms: Mapping[str, float] = {}
        self._rows_norm: float | None = None
        self._lrs: Mapping[str, float] = {}
        self._since = (0.0, 0, 0)  # seconds, tokens, step at the last log
        self._speed, self._step_seconds = 0.0, math.nan

    def resume(self, lines: list[dict[str, Any]]) -> None:
        """Take up the curve and the best evaluation of the lines that a run has logged before."""
        for line in lines:
            if "eval_loss" in line:
                self._judge(math.nan if line["eval_loss"] is None else line["eval_loss"], line["step"])
            elif "loss" in line:
                self.curve.append((line["step"], line["loss"]))

    @property
    def has_stopped_early(self) -> bool:
        """True when too many evaluations have brought no better loss."""
        return self.config.early_stop is not None and self.n_worse >= self.config.early_stop

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save what a new run starts from, and start the clock."""
        if state.global_step == 0:
            self.begin()
        self.live = look(self.trainer.model)
        self._since = (time.monotonic(), state.num_input_tokens_seen, state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Norms of the gradients by group, on steps that are logged."""
        if self.live is not None and (state.global_step + 1) % self.config.log_every == 0:
            self._norms, self._rows_norm = gradient_norms(self.live, self.trainer.new_rows)
            self._lrs = self._rates(self.live)
            self.trainer.numbers = {f"grad_norm/{group}": norm for group, norm in self._norms.items()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A signal, on whatever process, saves and ends."""
        if self._anyone(self.signals.asked):
            self.signals.asked = True  # also in a process that no signal has reached
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Turn what the Trainer logs into one record, on disk and on the screen."""
        if logs is None or not args.should_save or not ("loss" in logs or "eval_loss" in logs):
            return
        metrics = self._metrics(state, logs)
        line = {k: v for k, v in dataclasses.asdict(metrics).items() if v is not None}
        folders.append_line(self.run / folders.METRICS, line)
        self.show(metrics)
        if "loss" in logs and not math.isfinite(logs["loss"]):
            raise SutureError(
                f"the loss is {logs['loss']} at step {state.global_step}",
                where=str(self.run),
                expected="a finite number",
                do="Resume from a checkpoint before it with a smaller lr, or train in f32 or bf16.",
            )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """Early stopping: the best evaluation is saved, and too many without a better one end the run."""
        better = self._judge(metrics["eval_loss"], state.global_step)
        if self.config.early_stop is None:
            return
        if better:
            control.should_save = True
        elif self.has_stopped_early:
            control.should_training_stop = True

    def moved(self, step: int, found: Sequence[Movement]) -> None:
        """Write down how far each group has moved."""
        parts = {m.group: {"relative": m.relative, "still_rows": m.n_still_rows, "rows": m.n_rows} for m in found}
        folders.append_line(self.run / folders.METRICS, {"step": step, "moved": parts})

    def rotate(self) -> None:
        """Delete checkpoints that are no longer kept; the best one stays while early stopping needs it."""
        spare = folders.checkpoint(self.run, self.best[1]) if self.config.early_stop and self.best else None
        folders.rotate(self.run, self.config.keep, spare)

    def _judge(self, loss: float, step: int) -> bool:
        better = math.isfinite(loss) and (self.best is None or loss < self.best[0])
        self.best, self.n_worse = ((loss, step), 0) if better else (self.best, self.n_worse + 1)
        return better

    def _anyone(self, asked: bool) -> bool:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return asked
        return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum") > 0)

    def _metrics(self, state: TrainerState, logs: Mapping[str, float]) -> StepMetrics:
        now, tokens, step = time.monotonic(), int(state.num_input_tokens_seen), state.global_step
        seconds, n_tokens, n_steps = now - self._since[0], tokens - self._since[1], step - self._since[2]
        if "loss" in logs:
            self._speed = n_tokens / seconds if seconds > 0 else 0.0
            self._step_seconds = seconds / n_steps if n_steps > 0 else math.nan
            self.curve.append((step, logs["loss"]))
        self._since = (now, tokens, step)  # also after an evaluation, whose time is not training's
        return StepMetrics(
            step=step,
            n_steps=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=self.curve[-1][1] if self.curve else math.nan,
            lrs=self._lrs,
            grad_norm=logs.get("grad_norm"),
            grad_norms=dict(self._norms),
            new_rows_grad_norm=self._rows_norm,
            n_tokens=tokens,
            tokens_per_second=self._speed,
            seconds_left=(state.max_steps - step) * self._step_seconds,
            eval_loss=logs.get("eval_loss"),
        )

    def _rates(self, live: Live) -> dict[str, float]:
        rates: dict[str, float] = {}
        for group in self.trainer.optimizer.param_groups:
            for key in group["param_names"]:
                rates.setdefault(live.group(key), float(group["lr"]))
        return rates

    def release(self) -> None:
        """Forget the model, so that its memory can be used again."""
        self.trainer = self.live = None


def gradient_norms(live: Live, new_rows: Sequence[int]) -> tuple[dict[str, float], float | None]:
    """Norm of the gradient of each group, and of the rows of new tokens."""
    squares: dict[str, float] = {}
    rows: list[float] = []
    for key, parameter in live.unique().items():
        gradient = parameter.grad
        if gradient is None:
            continue
        square = float(gradient.float().square().sum())
        group = live.group(key)
        squares[group] = squares.get(group, 0.0) + square
        if group == "tokens":
            rows.append(square)
        elif group in ("embeddings", "head") and new_rows and not hasattr(gradient, "full_tensor"):
            rows.append(float(gradient[list(new_rows)].float().square().sum()))
    return {group: math.sqrt(s) for group, s in squares.items()}, math.sqrt(sum(rows)) if rows else None
