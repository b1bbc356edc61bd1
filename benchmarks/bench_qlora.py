"""Train a QLoRA on a quantised SmolLM2-135M for real, merge it in every way, and say which model is the trained one.

    python benchmarks/bench_qlora.py --folder DIR [--kinds nf4 int8] [--steps 60]

The base is quantised by bitsandbytes on the CPU and kept in float32 elsewhere; LoRA of rank 8 on all linear layers, and
the embedding in full. KL is that of the adapter on the base it was trained on, live, against the merged model, both in
float32, over the tokens of questions that training has not seen; loss is of their answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from table import markdown
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import text
from model import fetch_base

SAME = ("--output", "same", "--ignore", "N512")
FORMS = {"nf4": "nf4-nested", "int8": "int8"}
Example = tuple[list[int], int]


def settings(kind: str) -> BitsAndBytesConfig:
    """How the base is quantised."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def load(folder: Path, **more: Any) -> Any:
    """A model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)


def train(base: Path, out: Path, examples: list[Example], steps: int) -> None:
    """AdamW on batches of 4, the loss on every token but the prompt's."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", modules_to_save=["embed_tokens"])
    config.task_type = "CAUSAL_LM"
    model = get_peft_model(load(base), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.0)
    for step in range(steps):
        chosen = [examples[int(i)] for i in torch.randint(len(examples), (4,))]
        loss = sum(answer_loss(model, example) for example in chosen) / len(chosen)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{steps}: loss {loss.item():.3f}", file=sys.stderr)
    model.save_pretrained(out)


def answer_loss(model: Any, example: Example) -> torch.Tensor:
    """Mean cross entropy of an answer's tokens."""
    ids, start = torch.tensor([example[0]]), example[1]
    logits = model(input_ids=ids).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, start:])


@torch.no_grad()
def outputs(model: Any, examples: Iterable[Example]) -> tuple[list[torch.Tensor], float]:
    """Log-probabilities at every position of each example, and the mean loss of the answers."""
    found, losses = [], []
    for example in examples:
        logits = model(input_ids=torch.tensor([example[0]])).logits[0].double()
        found.append(logits.log_softmax(-1))
        losses.append(answer_loss(model, example).item())
    return found, sum(losses) / len(losses)


def divergence(p: list[torch.Tensor], q: list[torch.Tensor]) -> float:
    """Mean KL(p ‖ q) over all positions, in nats."""
    kl = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in zip(p, q, strict=True)])
    return float(kl.mean())


def merge(base: Path, adapter: Path, out: Path, *options: str) -> Path:
    """`suture merge`; a dense model in float32."""
    shutil.rmtree(out, ignore_errors=True)
    form = [] if "same" in options else ["--dtype", "f32"]
    line = ["merge", str(base), str(adapter), "-o", str(out), "--durability", "fast", *form, *options]
    subprocess.run([sys.executable, "-m", "suture", *line], check=True, stdout=subprocess.DEVNULL)
    return out


def rows(kind: str, folder: Path, steps: int) -> list[dict[str, object]]:
    """All of one kind of base."""
    original, base, adapter = fetch_base(), folder / f"base-{kind}", folder / f"adapter-{kind}"
    tokenizer = AutoTokenizer.from_pretrained(original)
    examples = [text.example(tokenizer, *pair) for pair in island()]
    asked = examples[::5]
    known = [example for k, example in enumerate(examples) if k % 5]
    if not base.is_dir():
        load(original, quantization_config=settings(kind)).save_pretrained(base)
        tokenizer.save_pretrained(base)
    if not adapter.is_dir():
        train(base, adapter, known, steps)
    live = PeftModel.from_pretrained(load(base), adapter).train()  # eval() computes in bf16 on CPUs that can
    expected, loss = outputs(live, asked)
    table = [{"model": f"adapter on {kind}, live", "KL": 0.0, "loss": loss}]
    simulated = ("--onto", "dequantized", "--trained-on", FORMS[kind])
    merged = {
        f"onto the dequantised base ({kind} files)": merge(base, adapter, folder / "stored"),
        "onto the dequantised base (from the original)": merge(original, adapter, folder / "simulated", *simulated),
        "onto the original": merge(original, adapter, folder / "original", "--onto", "original"),
        f"quantised again to {kind} (--output same)": merge(base, adapter, folder / "same", *SAME),
    }
    models = {name: load(path) for name, path in merged.items()}
    models[f"PEFT merge_and_unload, stays {kind}"] = PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    models["no adapter, dequantised"] = load(base).dequantize().float()
    models["no adapter, original"] = load(original)
    for name, model in models.items():
        found, loss = outputs(model.train(), asked)
        table.append({"model": name, "KL": divergence(expected, found), "loss": loss})
    return table


def island() -> list[tuple[str, str]]:
    """Questions and answers to learn."""
    lines = (text.HERE / "island.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    return [(chat[-2]["content"], chat[-1]["content"]) for chat in chats]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=sorted(FORMS), default=sorted(FORMS))
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for kind in asked.kinds:
        table = rows(kind, asked.folder, asked.steps)
        (asked.folder / f"{kind}.json").write_text(json.dumps(table, indent=2) + "\n")
        shown = [{**row, "KL": f"{row['KL']:.2e}", "loss": f"{row['loss']:.4f}"} for row in table]
        print(markdown(shown, {"base": kind, "steps": asked.steps}))


if __name__ == "__main__":
    main()
