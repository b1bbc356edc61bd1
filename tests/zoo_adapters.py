"""Adapters made by the real PEFT, and the oracle: base + live adapter, unmerged, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from zoo import Family, inputs, load, logits
from zoo_feeds import Inputs

import suture

MAX_KL = 1e-6  # nats
MAX_ABS = 2e-3  # logits

Oracle = Literal["both", "memory", "file"]


@dataclass(frozen=True)
class Made:
    """An adapter on disk and what it computes: logits of base + adapter, unmerged, and of the base alone."""

    folder: Path
    feed: Inputs
    reference: torch.Tensor
    bare: torch.Tensor


@dataclass(frozen=True)
class Comparison:
    """Two sets of logits over the same positions. `mean_kl` is KL(reference ‖ got) in nats, `top1` a share."""

    max_abs: float
    mean_kl: float
    top1: float

    @property
    def same(self) -> bool:
        """True within the bounds that a float32 merge must keep."""
        return self.max_abs <= MAX_ABS and self.mean_kl <= MAX_KL and self.top1 == 1.0


def compare(reference: torch.Tensor, got: torch.Tensor) -> Comparison:
    """Compare two (positions, classes) matrices of logits, in float64."""
    assert reference.shape == got.shape, (reference.shape, got.shape)
    p, q = (x.double().log_softmax(-1) for x in (reference, got))
    return Comparison(
        max_abs=float((reference - got).abs().max()),
        mean_kl=float((p.exp() * (p - q)).sum(-1).mean()),
        top1=float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    )


def load_base(family: Family, folder: Path, resize: int = 0) -> Any:
    """The base from disk, its vocabulary extended by `resize` tokens whose rows come from a fixed seed."""
    model = load(family, folder)
    if resize:
        torch.manual_seed(resize)
        n_tokens = model.get_input_embeddings().weight.shape[0]
        model.resize_token_embeddings(n_tokens + resize, mean_resizing=False)
    return model


@torch.no_grad()
def perturb(model: PeftModel, *, seed: int, std: float) -> None:
    """Add N(0, std) to every parameter that the adapter trains: the stand-in for training."""
    rng = torch.Generator().manual_seed(seed)
    trained = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    assert trained
    for p in trained:
        p.add_(std * torch.randn(p.shape, generator=rng))


def make_adapter(
    family: Family,
    base: Path,
    config: LoraConfig,
    folder: Path,
    *,
    seed: int = 0,
    std: float = 0.02,
    resize: int = 0,
    oracle: Oracle = "both",
) -> Made:
    """Make, perturb and save an adapter, and run it unmerged.

    The model reloaded from base and adapter must compute what the model in memory computed, bit for bit. Where PEFT
    does not read its own file back right, `oracle` says whose logits are the reference, and the two must differ.
    """
    model = load_base(family, base, resize)
    feed = inputs(family, model, seed=seed)
    bare = logits(model, feed)
    torch.manual_seed(seed)  # of the factors' initial values
    live = get_peft_model(model, config).eval()
    perturb(live, seed=seed, std=std)
    in_memory = logits(live, feed)
    live.save_pretrained(folder)
    reloaded = logits(reload(family, base, folder, resize), feed)
    assert torch.equal(in_memory, reloaded) == (oracle == "both"), compare(in_memory, reloaded)
    reference = reloaded if oracle == "file" else in_memory
    assert float((reference - bare).abs().max()) > 10 * MAX_ABS, "the adapter does too little for a test"
    return Made(folder, feed, reference, bare)


def reload(family: Family, base: Path, folder: Path, resize: int = 0) -> PeftModel:
    """Base from disk + adapter from disk, as a user would load them."""
    return PeftModel.from_pretrained(load_base(family, base, resize), folder).eval()


def peft_merge(family: Family, base: Path, folder: Path, out: Path, *, resize: int = 0) -> Path:
    """PEFT's own merge, saved: the rival."""
    reload(family, base, folder, resize).merge_and_unload(safe_merge=False).save_pretrained(out)
    return out


def merge_and_compare(
    family: Family, base: Path, made: Made, out: Path, options: suture.Options | None = None
) -> Comparison:
    """Merge with Suture, load the result with Transformers, and compare its logits with those of the live adapter."""
    suture.merge(base, made.folder, out, options=options)
    return compare(made.reference, logits(load(family, out), made.feed))
