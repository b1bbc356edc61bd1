"""Time training and its memory against TRL and Transformers, in fresh processes and alternating rounds.

    python benchmarks/bench_train.py --quick
    python benchmarks/bench_train.py --cases 49k-half 262k-half --rounds 3 --rivals suture trl-default

`trl-default` has TRL's own defaults, which on a CPU are bfloat16 autocast and gradient checkpointing; `trl-f32` has
neither, nor has `trainer`; `suture` has Suture's defaults, float32 with checkpointing. All see the same random token
ids. The first step is not timed. Memory is the peak of the resident set during training, and how much of it was not
there before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from table import markdown

HERE = Path(__file__).resolve().parent
LENGTH = 1024  # tokens of a sequence
RANK = 16


@dataclass(frozen=True)
class Case:
    """A model and the share of its tokens that counts."""

    model: str
    vocab: int
    counted: float


CASES = {
    "49k-half": Case("llama", 49152, 0.5),
    "49k-all": Case("llama", 49152, 1.0),
    "262k-half": Case("gemma3", 262144, 0.5),
    "262k-all": Case("gemma3", 262144, 1.0),
}


@dataclass(frozen=True)
class Run:
    """One training of one rival."""

    case: str
    rival: str
    seconds: float  # median of the timed steps
    tokens_per_second: float
    peak_mib: float
    added_mib: float
    losses: tuple[float, ...]


# ------------------------------------------------------------------------------------------------------ in the process


def make_model(case: Case) -> Any:
    """A random model with adapters on all of its linear layers: SmolLM2-135M's shape, or a small Gemma 3."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shared = {"vocab_size": case.vocab, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if case.model == "llama":
        shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        config = LlamaConfig(**shared, **shape, num_key_value_heads=3, tie_word_embeddings=True)
        model = LlamaForCausalLM(config)
    else:
        shape = {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 4}
        model = Gemma3ForCausalLM(Gemma3TextConfig(**shared, **shape, num_key_value_heads=1, head_dim=256))
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"))


def make_data(case: Case, n_rows: int) -> Any:
    """Random token ids; of each row, the last share counts."""
    import torch
    from datasets import Dataset

    ids = torch.randint(3, case.vocab, (n_rows, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : round(LENGTH * (1 - case.counted))] = -100
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """A batch of rows of one length."""
    import torch

    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def suture_trainer(model: Any, data: Any, common: dict[str, Any]) -> Any:
    """Suture's side: the trainer of a run, with audit and probe before the first step."""
    from transformers import TrainingArguments

    from suture.training import loss
    from suture.training.callback import ProofCallback, Provenance
    from suture.training.config import RunConfig
    from suture.training.measure import Ruler
    from suture.training.trainer import StrictTrainer
    from suture.values import BaseRecord

    loss.install(model.get_base_model())
    config = RunConfig.model_validate({"base": "none", "out": "none", "data": {"train": "none"}}, strict=False)
    rest = {"args": TrainingArguments(**common), "train_dataset": data, "data_collator": collate}
    proof = ProofCallback(Provenance(BaseRecord("none", None)))
    rows = model.get_input_embeddings().weight.shape[0]
    return StrictTrainer(config, Ruler((), (), 1, 0, None), rows, model=model, callbacks=[proof], **rest)


def plain_trainer(model: Any, data: Any, common: dict[str, Any]) -> Any:
    """Transformers' Trainer with its own loss."""
    from transformers import Trainer, TrainingArguments

    return Trainer(model=model, args=TrainingArguments(**common), train_dataset=data, data_collator=collate)


def trl_trainer(model: Any, data: Any, common: dict[str, Any]) -> Any:
    """TRL's SFTTrainer with its defaults for everything that is not given."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    args = SFTConfig(**common, max_length=LENGTH)
    return SFTTrainer(model, args, collate, data, processing_class=tokenizer)


BF16 = {"bf16": True, "gradient_checkpointing": True}
F32 = {"bf16": False, "gradient_checkpointing": False}
RIVALS: Mapping[str, tuple[Callable[..., Any], dict[str, bool]]] = {
    "suture": (suture_trainer, {"bf16": False, "gradient_checkpointing": True}),
    "suture-f32": (suture_trainer, F32),
    "suture-bf16": (suture_trainer, BF16),
    "trl-default": (trl_trainer, {}),
    "trl-f32": (trl_trainer, F32),
    "trainer": (plain_trainer, F32),
}


def memory_mib(field: str) -> float:
    """A field of this process' status: VmRSS or VmHWM."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def work(case_name: str, rival: str, batch: int, steps: int) -> Run:
    """Train, and measure it."""
    from transformers import TrainerCallback

    case, (build, options) = CASES[case_name], RIVALS[rival]
    common = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "max_steps": steps + 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    trainer = build(make_model(case), make_data(case, batch * (steps + 1)), common)
    moments: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            moments.append(time.perf_counter())

    trainer.add_callback(Clock())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mib("VmRSS")
    trainer.train()
    peak = memory_mib("VmHWM")
    seconds = statistics.median(b - a for a, b in list(zip(moments[::2], moments[1::2], strict=True))[1:])
    losses = tuple(round(row["loss"], 5) for row in trainer.state.log_history if "loss" in row)
    return Run(case_name, rival, seconds, batch * LENGTH / seconds, peak, peak - before, losses)


# --------------------------------------------------------------------------------------------------------- around them


def fresh(case: str, rival: str, args: argparse.Namespace) -> Run:
    """Train in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", case, rival, str(out)]
        command += ["--batch", str(args.batch), "--steps", str(args.steps)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(args.threads),
            "PYTHONPATH": str(HERE.parent / "src"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case} {rival}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return Run(**json.loads(out.read_text()))


def measure(args: argparse.Namespace) -> list[Run]:
    """All rivals, one after the other, `rounds` times. The order turns round every time."""
    runs = []
    for case in args.cases:
        for k in range(args.rounds):
            for rival in args.rivals if k % 2 == 0 else args.rivals[::-1]:
                run = fresh(case, rival, args)
                figures = f"{run.seconds:7.2f} s {run.tokens_per_second:7.0f} tokens/s"
                memory = f"{run.peak_mib:6.0f} MiB, added {run.added_mib:6.0f}"
                print(f"{case:10} {k + 1}/{args.rounds} {rival:16} {figures} {memory} {run.losses}", file=sys.stderr)
                runs.append(run)
    return runs


def summary(runs: list[Run], reference: str) -> list[dict[str, object]]:
    """Medians of each rival in each case, and ratios to the reference."""
    rows: list[dict[str, object]] = []
    for case, rival in dict.fromkeys((r.case, r.rival) for r in runs):
        mine = [r for r in runs if (r.case, r.rival) == (case, rival)]
        row: dict[str, object] = {
            "case": case,
            "rival": rival,
            "tokens_per_second": round(statistics.median(r.tokens_per_second for r in mine)),
            "peak_mib": round(statistics.median(r.peak_mib for r in mine)),
            "added_mib": round(statistics.median(r.added_mib for r in mine)),
        }
        other = [r for r in runs if (r.case, r.rival) == (case, reference)]
        for name in ("tokens_per_second", "peak_mib", "added_mib"):
            if other:
                ours, theirs = (statistics.median(getattr(r, name) for r in rs) for rs in (mine, other))
                row[f"{name}_ratio"] = round(ours / theirs, 2)
        rows.append({**row, "last_loss": mine[-1].losses[-1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    parser.add_argument("--reference", choices=RIVALS, default="trl-default", help="what ratios are made to")
    parser.add_argument("--batch", type=int, default=4, help="sequences in a step")
    parser.add_argument("--steps", type=int, default=4, help="timed steps; one more comes before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="one round, one timed step, two sequences, half counted")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "train", help="prefix of .json and .md")
    parser.add_argument("--worker", nargs=3, metavar=("CASE", "RIVAL", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case, rival, out = args.worker
        Path(out).write_text(json.dumps(asdict(work(case, rival, args.batch, args.steps))))
        return
    if args.quick:
        args.rounds, args.steps, args.batch = 1, 1, 2
        args.cases = [c for c in args.cases if CASES[c].counted < 1] or args.cases
    runs = measure(args)
    rows = summary(runs, args.reference)
    names = ("torch", "transformers", "peft", "trl")
    facts = {
        "length": LENGTH,
        "batch": args.batch,
        "steps": args.steps,
        "rank": RANK,
        "rounds": args.rounds,
        "threads": args.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
    table = markdown(rows, facts)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.with_suffix(".json").write_text(
        json.dumps({"facts": facts, "summary": rows, "runs": [asdict(r) for r in runs]}, indent=2)
    )
    args.results.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
