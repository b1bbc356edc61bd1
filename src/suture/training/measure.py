"""The mean loss over the tokens that count: one number, whatever the batches, processes and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from suture.training.batches import Example, collate
from suture.values import Stage, StageLoss

N_TRAIN = 32  # examples of the training set that every stage is measured on


@dataclass(frozen=True, slots=True)
class Ruler:
    """What a run measures itself with; the same at every stage."""

    train: Sequence[Example]
    eval: Sequence[Example]
    batch_size: int
    pad_id: int
    autocast: torch.dtype | None  # None: as the model is

    def stage(self, name: Stage, model: Any, accelerator: Any = None) -> StageLoss:
        """The losses of a model at one stage."""
        train = self.mean_loss(model, self.train[:N_TRAIN], accelerator)
        return StageLoss(name, train, self.mean_loss(model, self.eval, accelerator) if self.eval else None)

    def mean_loss(self, model: Any, examples: Sequence[Example], accelerator: Any = None) -> float:
        """Mean cross-entropy in nats over all counted tokens, in evaluation mode. No random number is drawn.

        Args:
            accelerator: of accelerate; shares the examples among its processes. Every process must call.
        """
        rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
        batches = [examples[i : i + self.batch_size] for i in range(0, len(examples), self.batch_size)]
        n_rounds = -(-len(batches) // world)  # every process makes as many forward passes: a sharded model needs that
        total = torch.zeros(2, dtype=torch.float64)
        was_training = model.training
        model.eval()
        try:
            for at in range(rank, n_rounds * world, world):
                loss, n = self._batch_loss(model, batches[at % len(batches)])
                if at < len(batches):
                    total += torch.tensor([loss * n, n], dtype=torch.float64)
        finally:
            model.train(was_training)
        if accelerator is not None and world > 1:
            total = accelerator.reduce(total.to(accelerator.device), "sum")
        return float(total[0] / total[1])

    def _batch_loss(self, model: Any, examples: Sequence[Example]) -> tuple[float, int]:
        """Mean loss of a batch, and over how many tokens; without any the mean is not a number, and is given as 0."""
        device = model.get_input_embeddings().weight.device
        inputs = collate(examples, self.pad_id)
        n = int((inputs["labels"][:, 1:] != -100).sum())
        cast = torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None)
        with torch.no_grad(), cast:
            loss = model(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}).loss
        return float(loss) if n else 0.0, n
