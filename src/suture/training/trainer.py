"""Transformers' Trainer with four habits changed: groups by name, strict loading, a loud resume, a true mean loss.

The Trainer drops the result of loading an adapter, restores the optimiser by position, and goes on without a file that
it does not find. Here each of these is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments

from suture.errors import OutputError, ResumeRefused
from suture.formats import read_adapter
from suture.training import starts
from suture.training.build import on_cpu
from suture.training.config import RunConfig
from suture.training.live import Live, look
from suture.training.measure import Ruler
from suture.values import Difference

OPTIMIZERS = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
ENDS = ("embeddings", "head", "tokens")
NO_DECAY = ("biases", "norms and others")


def arguments(config: RunConfig, run: Path, n_steps: int, save_every: int, precision: str) -> TrainingArguments:
    """The Trainer's settings. Checkpoints are rotated by the run, once their ledger is written.

    One process uses one device; more are for `accelerate launch`, never for threads that share a model.
    """
    cpu = on_cpu(config)
    warmup = round(config.warmup * n_steps) if config.warmup < 1 else round(config.warmup)
    found = TrainingArguments(
        output_dir=str(run),
        max_steps=n_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        activation_checkpointing=config.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=OPTIMIZERS[config.optimizer],
        lr_scheduler_type=SCHEDULES[config.schedule],
        warmup_steps=warmup,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=None,
        bf16=precision == "bf16",
        fp16=precision == "f16",
        use_cpu=cpu,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=not cpu,
        ddp_find_unused_parameters=False,
        report_to=[],
        disable_tqdm=True,
    )
    found._n_gpu = min(found.n_gpu, 1)
    return found


def tensorboard(config: RunConfig, run: Path) -> list[TrainerCallback]:
    """What writes curves for TensorBoard into the run's folder, if it is wanted and installed."""
    if not config.tensorboard or find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(run / "tensorboard")))]


class StrictTrainer(Trainer):  # type: ignore[misc]  # Transformers is untyped here
    """A Trainer that loses nothing in silence.

    Args:
        n_base_rows: of the base's vocabulary on the disk. Where the model has others, embeddings are saved with it.
        new_rows: of tokens that the base does not have.
    """

    def __init__(
        self, config: RunConfig, ruler: Ruler, n_base_rows: int, new_rows: Sequence[int] = (), **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.config = config
        self.ruler = ruler
        self.n_base_rows, self.new_rows = n_base_rows, tuple(new_rows)
        self.numbers: dict[str, float] = {}  # that go with the next line of the log, to TensorBoard too

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Parameters in groups of one learning rate, with their file keys as names, which the state then carries."""
        if self.optimizer is None:
            live = look(self.model if model is None else model)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer: Any = kind(named_groups(live, self.config), **options)
        return cast("torch.optim.Optimizer", self.optimizer)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass, its tokens counted: of several processes, this one's times their number.

        Packed rows are counted with the padding at their ends.
        """
        mask = inputs.get("attention_mask")
        n_tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        self.state.num_input_tokens_seen += n_tokens * self.args.world_size
        return cast("torch.Tensor", super().training_step(model, inputs, num_items_in_batch))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what the Trainer measures, with the numbers of the groups."""
        super().log({**logs, **(self.numbers if "loss" in logs else {})}, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss over every token of the evaluation set that counts, whatever the batches."""
        metrics = {"eval_loss": self.ruler.mean_loss(self.model, self.ruler.eval, self.accelerator)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint; what the disk refuses is told as such."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            raise OutputError(
                f"the checkpoint of step {self.state.global_step} could not be written: {error}",
                where=self.args.output_dir,
                do="Make room, then `suture resume`: earlier checkpoints are whole, this one will be passed over.",
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The adapter as PEFT saves it. Whether embeddings go with it is decided by their rows, not by PEFT's guess."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        live = look(self.model)
        resized = live.model.get_input_embeddings().weight.shape[0] != self.n_base_rows
        in_full = any(live.group(key) in ("embeddings", "head") for key in live.held)  # then the rows are there already
        live.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=resized and not in_full)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the run has loaded the adapter before it made the Trainer, tensor by tensor."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The optimiser's state, by the names of its parameters, and the schedule's."""
        if checkpoint is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(by_name(state, self.optimizer.state_dict(), checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random numbers go on where they were; without them the run would be another one."""
        world = self.args.world_size
        name = f"rng_state_{self.args.process_index}.pth" if world > 1 else "rng_state.pth"
        if checkpoint is not None and not (Path(checkpoint) / name).is_file():
            found = f"{name} is missing: the checkpoint was written by another number of processes than {world}"
            do = "Resume with as many processes as the run had, or start a new run from it with --continue."
            raise ResumeRefused([Difference("files", found, do, (name,), 0)], where=checkpoint)
        super()._load_rng_state(checkpoint)


def named_groups(live: Live, config: RunConfig) -> list[dict[str, Any]]:
    """The optimiser's groups: one for each pair of learning rate and decay, its parameters as (key, parameter)."""
    groups: dict[tuple[float, float], list[tuple[str, torch.nn.Parameter]]] = {}
    for key, parameter in sorted(live.unique().items()):
        if not parameter.requires_grad:
            continue
        group = live.group(key)
        rate = config.embedding_rate if group in ENDS else config.lr
        if ".lora_B" in key or ".lora_embedding_B" in key:
            rate *= config.lora_plus_ratio or 1.0
        still = group in NO_DECAY or ".lora_magnitude" in key
        groups.setdefault((rate, 0.0 if still else config.weight_decay), []).append((key, parameter))
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def load_values(live: Live, folder: Path) -> None:
    """Copy an adapter's file into the model, bit for bit, with the embeddings that were saved beside it.

    Raises:
        ResumeRefused: a tensor has no place, or a place no tensor.
    """
    adapter = read_adapter(folder)
    starts.set_values(live, {key: starts.read_tensor(adapter, key) for key in adapter.tensors})


def by_name(saved: dict[str, Any], current: dict[str, Any], where: str) -> dict[str, Any]:
    """A saved optimiser state, its parameters in the order of the current one.

    Raises:
        ResumeRefused: the state has no names, or other ones.
    """
    old = [name for group in saved["param_groups"] for name in group.get("param_names") or ()]
    new = [name for group in current["param_groups"] for name in group["param_names"]]
    if sorted(old) != sorted(new):
        lost, extra = sorted(set(new) - set(old)), sorted(set(old) - set(new))
        found = f"the optimiser's state lacks {len(lost):,} of the run's tensors and has {len(extra):,} others"
        raise ResumeRefused(
            [Difference("optimiser", found, "Take another checkpoint.", (*lost, *extra), 0)], where=where
        )
    index = {name: i for i, name in enumerate(old)}
    settings = {name: group for group in saved["param_groups"] for name in group["param_names"]}
    state, groups, at = {}, [], 0
    for group in current["param_groups"]:
        names = group["param_names"]
        for i, name in enumerate(names, at):
            if index[name] in saved["state"]:
                state[i] = saved["state"][index[name]]
        groups.append({**settings[names[0]], "params": list(range(at, at + len(names))), "param_names": list(names)})
        at += len(names)
    return {"state": state, "param_groups": groups}
