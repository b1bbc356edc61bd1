"""How far a merge in bf16 is from base + adapter, rounded to nearest and at random, for small updates of a real model.

    python benchmarks/bench_rounding.py
    python benchmarks/bench_rounding.py --sizes 0.0008 --seeds 2 --positions 512

SmolLM2-135M-Instruct in bf16 (as `demo/model.py` fetches it), LoRA r = 16 on all linear layers: with random factors, of
which every module's update has the given size ‖Δ‖ / ‖W‖; and trained on half of the pages of Python's reference until
all updates together have it. Each is merged by `suture.merge` in float32, which computes what the unmerged adapter
computes, in bf16 to nearest, and in bf16 at random with several seeds. All are run in float32 on other pages, so that
the weights alone differ: KL(float32 ‖ bf16) in nats and the loss, means over positions. The share of the update that is
kept is ⟨applied, Δ⟩ / ⟨Δ, Δ⟩ over all weights that change.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from table import markdown

HERE = Path(__file__).resolve().parent
LENGTH, RANK, RATE, MOST_STEPS = 256, 16, 1e-3, 300


@dataclass(frozen=True)
class Found:
    """One merge against base + adapter."""

    factors: str  # random or trained
    size: float  # ‖Δ‖ / ‖W‖
    rounding: str  # nearest, stochastic; float32: nothing is lost; base: nothing is merged
    seed: int
    kept: float
    cosine: float
    kl: float
    top1: float
    loss: float


# ----------------------------------------------------------------------------------------------------------- adapters


def live_model(base: Path) -> Any:
    """The base in float32 with an adapter that does nothing yet."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def layers(model: Any) -> list[tuple[Any, Any, Any]]:
    """W, A and B of each module."""
    found = [m for m in model.modules() if hasattr(m, "lora_A")]
    return [(m.base_layer.weight, m.lora_A["default"].weight, m.lora_B["default"].weight) for m in found]


def size_of(model: Any) -> float:
    """‖Δ‖ / ‖W‖ over all modules together; the scale is 1."""
    both = [(float((b @ a).detach().square().sum()), float(w.square().sum())) for w, a, b in layers(model)]
    return (sum(d for d, _ in both) / sum(w for _, w in both)) ** 0.5


def random_adapter(base: Path, size: float, out: Path) -> None:
    """Random factors, scaled until each module's update has the size."""
    import torch

    model = live_model(base)
    with torch.no_grad():
        for w, a, b in layers(model):
            b.normal_()
            b.mul_(size * w.norm() / (b @ a).norm())
    model.save_pretrained(out)


def trained_adapters(base: Path, sizes: list[float], pages: Any, out: Path) -> None:
    """AdamW at a constant rate, a page a step; the adapter is saved whenever the update reaches one of the sizes."""
    import torch

    model, left = live_model(base), sorted(sizes)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    for step in range(MOST_STEPS):
        batch = pages[step % len(pages)][None]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        while left and size_of(model) >= left[0]:
            print(f"{step + 1} steps: {size_of(model):.3%}", file=sys.stderr)
            model.save_pretrained(out / f"trained-{left.pop(0)}")
        if not left:
            return
    raise RuntimeError(f"{MOST_STEPS} steps were not enough for {left}")


def pages_of(base: Path) -> Any:
    """Python's reference in sequences of LENGTH tokens, (pages, LENGTH), in a drawn order."""
    from pydoc_data.topics import topics

    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(base)("\n\n".join(topics[k] for k in sorted(topics)))["input_ids"]
    pages = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    return pages[torch.randperm(len(pages), generator=torch.Generator().manual_seed(0))]


# ---------------------------------------------------------------------------------------------------------- measuring


def tensors_of(folder: Path) -> dict[str, Any]:
    """The tensors of a model in float32."""
    from safetensors.torch import load_file

    return {name: t.float() for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def logits_of(model: Any, tensors: dict[str, Any], pages: Any) -> Iterator[Any]:
    """Of each page, (LENGTH, vocabulary)."""
    import torch

    missing = model.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"lm_head.weight"}
    with torch.no_grad():
        for page in pages:
            yield model(input_ids=page[None]).logits[0].numpy()


def size(base: dict[str, Any], whole: dict[str, Any]) -> float:
    """‖Δ‖ / ‖W‖ over the weights that change."""
    both = [((whole[n] - w).square().sum(), w.square().sum()) for n, w in base.items() if not w.equal(whole[n])]
    return float(sum(d for d, _ in both) / sum(w for _, w in both)) ** 0.5


def kept(base: dict[str, Any], whole: dict[str, Any], merged: dict[str, Any]) -> tuple[float, float]:
    """⟨applied, Δ⟩ / ⟨Δ, Δ⟩ and the cosine, over all weights."""
    both = own = applied = 0.0
    for name, w in base.items():
        delta, change = (whole[name] - w).double(), (merged[name] - w).double()
        both += float((delta * change).sum())
        own += float(delta.square().sum())
        applied += float(change.square().sum())
    return both / own, both / (own * applied) ** 0.5 if applied else 0.0


def measure(base: Path, adapter: Path, factors: str, seeds: int, pages: Any) -> Iterator[Found]:
    """Merge in all ways, and compare with the merge in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    import suture
    from suture.verification.divergence import Divergence, divergence

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    ways = [("nearest", 0), *(("stochastic", seed) for seed in range(seeds))]
    with tempfile.TemporaryDirectory() as scratch:
        suture.merge(base, adapter, Path(scratch) / "whole", options=suture.Options(dtype="F32"))
        before, whole = tensors_of(base), tensors_of(Path(scratch) / "whole")
        truth, label = list(logits_of(model, whole, pages)), (factors, size(before, whole))
        yield Found(*label, "float32", 0, 1.0, 1.0, 0.0, 1.0, mean(map(loss, truth, pages)))
        for rounding, seed in (("base", 0), *ways):
            merged = before
            if rounding != "base":
                out = Path(scratch) / f"{rounding}-{seed}"
                suture.merge(base, adapter, out, options=suture.Options(rounding=rounding, seed=seed))
                merged = tensors_of(out)
            apart, losses = Divergence(), []
            for page, p, q in zip(pages, truth, logits_of(model, merged, pages), strict=True):
                apart += divergence(p, q)
                losses.append(loss(q, page))
            yield Found(*label, rounding, seed, *kept(before, whole, merged), apart.mean_kl, apart.top1, mean(losses))


def loss(logits: Any, page: Any) -> float:
    """Mean over the tokens of a page but the first."""
    import torch

    return float(torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]), page[1:]))


# --------------------------------------------------------------------------------------------------------------- report


def summary(found: list[Found]) -> list[dict[str, object]]:
    """One row an adapter and a rounding; the mean over seeds, and the range of the KL."""
    rows = []
    for key in dict.fromkeys((f.factors, f.size, f.rounding) for f in found):
        here = [f for f in found if (f.factors, f.size, f.rounding) == key]
        spread = f" ({min(f.kl for f in here):.3g} to {max(f.kl for f in here):.3g})" if len(here) > 1 else ""
        rows.append(
            {
                "factors": key[0],
                "‖Δ‖ / ‖W‖": f"{key[1]:.2%}",
                "rounding": key[2],
                "kept": f"{mean(f.kept for f in here):.1%}",
                "cosine": f"{mean(f.cosine for f in here):.3f}",
                "KL": f"{mean(f.kl for f in here):.3g}{spread}",
                "same first token": f"{mean(f.top1 for f in here):.2%}",
                "loss": f"{mean(f.loss for f in here):.5f}",
            }
        )
    return rows


def main() -> None:
    """Measure what the command line names, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.008, 0.002, 0.0008])
    parser.add_argument("--factors", nargs="+", default=["random", "trained"], choices=["random", "trained"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=4096)
    chosen = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "demo"))
    from model import fetch_base

    base, found = fetch_base(), list[Found]()
    pages = pages_of(base)
    half, held_out = len(pages) // 2, pages[-(chosen.positions // LENGTH) :]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        if "trained" in chosen.factors:
            trained_adapters(base, chosen.sizes, pages[:half], Path(scratch))
        for factors in chosen.factors:
            for wanted in chosen.sizes:
                adapter = Path(scratch) / f"{factors}-{wanted}"
                if factors == "random":
                    random_adapter(base, wanted, adapter)
                for one in measure(base, adapter, factors, chosen.seeds, held_out):
                    found.append(one)
                    print(one, file=sys.stderr)
            (results / "rounding.json").write_text(json.dumps([asdict(f) for f in found], indent=1))
    facts = {"positions": len(held_out) * LENGTH, "seeds": chosen.seeds}
    print(markdown(summary(found), facts))


if __name__ == "__main__":
    main()
