"""Defects put into healthy pairs of base and adapter, one at a time, and what becomes of them.

A mutator changes a `Subject`, the files of one pair in memory, and says whether there was anything to change. The
mutant is written beside the healthy pair and checked. If the check is silent, both are merged: a mutant whose merge has
the same tensors and config is harmless, any other one *survives*.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from healthy import HEALTHY
from safetensors.torch import load_file, save_file
from verdicts import codes, of_base, of_pair
from workshop import Healthy, Pair, Workshop

from suture import pipeline
from suture.errors import SutureError
from suture.formats import read_checkpoint
from suture.values import Running

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

Outcome = Literal["found", "base", "refused", "harmless", "survives", "crashed"]  # base: by a check of the base
Tensors = dict[str, torch.Tensor]
Wanted = Callable[[str, str, int], bool]  # kind, subject, seed


class Subject:
    """The files of a pair, to be changed: configs, tensors, and bytes of single files beside them."""

    def __init__(self, pair: Pair, rng: random.Random) -> None:
        self.pair, self.rng = pair, rng
        self.config: dict[str, Any] = json.loads((pair.adapter / CONFIG).read_text())
        self.tensors: Tensors = load_file(pair.adapter / WEIGHTS)
        self._before = dict(self.tensors)
        self.files: dict[str, bytes | None] = {}  # beside the adapter; None takes one away
        self.base_files: dict[str, bytes | None] = {}
        self.base_folder: Path | None = None  # another base, in the place of the pair's
        self.after: Callable[[bytes], bytes] | None = None  # what happens to the weight file

    @cached_property
    def base(self) -> Tensors:
        """The base's tensors; whoever asks for them may change them."""
        return {k: v for file in sorted(self.pair.base.glob("*.safetensors")) for k, v in load_file(file).items()}

    @cached_property
    def base_config(self) -> dict[str, Any]:
        """The base's config; whoever asks for it may change it."""
        return json.loads((self.pair.base / "config.json").read_text())

    @property
    def base_class(self) -> str:
        """Name of the base's class."""
        return str(json.loads((self.pair.base / "config.json").read_text()).get("architectures"))

    @property
    def touches_config(self) -> bool:
        """True when the adapter's config is to be written anew."""
        return self.config != json.loads((self.pair.adapter / CONFIG).read_text())

    @property
    def touches_tensors(self) -> bool:
        """True when the adapter's weights are to be written anew."""
        now, before = self.tensors, self._before
        return now.keys() != before.keys() or any(now[name] is not before[name] for name in now)

    @property
    def touches_base(self) -> bool:
        """True when the base is to be written anew."""
        return bool({"base", "base_config"} & vars(self).keys()) or bool(self.base_files)

    # ------------------------------------------------------------------------------------------- looking for places

    def keys(self, *endings: str) -> list[str]:
        """Keys of the adapter with one of these endings, sorted."""
        return sorted(k for k in self.tensors if k.endswith(endings))

    def pick(self, names: list[str], n: int = 1) -> list[str]:
        """Some of these names, drawn from the seed; none if there are too few."""
        return self.rng.sample(names, n) if len(names) >= n else []

    @property
    def modules(self) -> list[str]:
        """Keys of linear pairs without `.lora_A.weight`."""
        return [k.removesuffix(".lora_A.weight") for k in self.keys(".lora_A.weight")]

    def kinds(self) -> list[str]:
        """Last parts of the names of the modules with linear pairs."""
        return sorted({m.rpartition(".")[2] for m in self.modules} - {"base_layer"})

    def rename(self, change: Callable[[str], str]) -> bool:
        """Rename keys; True when there was a change, and no two became one."""
        renamed = {change(k): v for k, v in self.tensors.items()}
        if renamed.keys() == self.tensors.keys() or len(renamed) != len(self.tensors):
            return False
        self.tensors = renamed
        return True

    def drop(self, names: list[str]) -> bool:
        """Leave tensors out; never all of them."""
        if not names or len(names) == len(self.tensors):
            return False
        for name in names:
            del self.tensors[name]
        return True

    def put(self, names: list[str], change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        """Change the values of tensors; True when there was a change."""
        before = {name: self.tensors[name] for name in names}
        self.tensors |= {name: change(x.clone()).contiguous() for name, x in before.items()}
        return any(not same(before[name], self.tensors[name]) for name in names)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True for equal bytes of equal shape and type."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


# ------------------------------------------------------------------------------------------------------------ mutators


@dataclass(frozen=True)
class Mutator:
    """One kind of defect: its name, the failure mode that it stands for, and what it does to a subject."""

    kind: str
    mode: str
    change: Callable[[Subject], bool] = field(compare=False)


MUTATORS: dict[str, Mutator] = {}


def mutator(mode: str, kind: str) -> Callable[[Callable[[Subject], bool]], Callable[[Subject], bool]]:
    """Put a function into the list of mutators."""

    def add(change: Callable[[Subject], bool]) -> Callable[[Subject], bool]:
        assert kind not in MUTATORS, kind
        MUTATORS[kind] = Mutator(kind, mode, change)
        return change

    return add


# ------------------------------------------------------------------------------------------------- writing and judging


@dataclass(frozen=True)
class Mutant:
    """A mutant and what became of it."""

    kind: str
    subject: str
    outcome: Outcome
    codes: tuple[str, ...] = ()
    detail: str = ""


def mutants_of(
    shop: Workshop, healthy: Healthy, folder: Path, *, seeds: int = 1, wanted: Wanted = lambda *_: True
) -> Iterator[Mutant]:
    """All mutants of one healthy pair, each with its outcome."""
    pair = shop.pair(healthy)
    assert not codes(of_pair(pair.base, pair.adapter, pair.reading)), "a healthy pair must be silent"
    whole = merged(pair.base, pair.adapter, pair, folder / "healthy")
    shutil.rmtree(folder / "healthy")
    for kind, m in MUTATORS.items():
        for seed in range(seeds):
            subject = Subject(pair, random.Random(f"{kind}|{healthy.id}|{seed}"))
            if wanted(kind, healthy.id, seed) and m.change(subject):
                here = folder / "mutant"
                base, adapter = write(subject, here)
                yield judged(kind, pair, base, adapter, whole, here)
                shutil.rmtree(here)


def write(subject: Subject, folder: Path) -> tuple[Path, Path]:
    """Write a mutant; its base only if that was changed."""
    adapter, base = folder / "adapter", subject.base_folder or subject.pair.base
    shutil.copytree(subject.pair.adapter, adapter)
    if subject.touches_config:
        (adapter / CONFIG).write_text(json.dumps(subject.config))
    if subject.touches_tensors:
        save_file(subject.tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    if subject.after is not None:
        (adapter / WEIGHTS).write_bytes(subject.after((adapter / WEIGHTS).read_bytes()))
    _put_files(adapter, subject.files)
    if subject.touches_base:
        base = folder / "base" / subject.pair.base.name
        shutil.copytree(subject.pair.base, base)
        if "base" in vars(subject):
            for file in (*base.glob("*.safetensors"), *base.glob("*.index.json")):
                file.unlink()
            save_file(subject.base, base / "model.safetensors", metadata={"format": "pt"})
        if "base_config" in vars(subject):
            (base / "config.json").write_text(json.dumps(subject.base_config))
        _put_files(base, subject.base_files)
    return base, adapter


def _put_files(folder: Path, files: Mapping[str, bytes | None]) -> None:
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def judged(kind: str, pair: Pair, base: Path, adapter: Path, whole: Mapping[str, str], folder: Path) -> Mutant:
    """What the check says of the pair; of a changed base, too; and where both are silent, whether the merge differs."""
    subject = pair.healthy.id
    try:
        findings = of_pair(base, adapter, pair.reading)
        told = codes(findings)
        if told:
            return Mutant(kind, subject, "found", told)
        if base != pair.base and (told := codes(of_base(base))):
            return Mutant(kind, subject, "base", told)
        changed = difference(whole, merged(base, adapter, pair, folder / "merged"))
    except SutureError as error:
        return Mutant(kind, subject, "refused", detail=f"{type(error).__name__}: {error.found}")
    except Exception as error:  # noqa: BLE001 - a bug of the product
        return Mutant(kind, subject, "crashed", detail=f"{type(error).__name__}: {error}")
    infos = tuple(sorted({f.code for f in findings}))
    return Mutant(kind, subject, "survives" if changed else "harmless", infos, changed)


def merged(base: Path, adapter: Path, pair: Pair, out: Path) -> dict[str, str]:
    """What a merge makes of its base: digests of the tensors that are not the base's, and what else differs."""
    pipeline.merge(base, adapter, out, reading=pair.reading, running=Running(workers=1, durable=False))
    before, after = digests(base), digests(out)
    changed = {name: digest for name, digest in after.items() if before.get(name) != digest}
    return changed | dict.fromkeys(before.keys() - after.keys(), "gone")


def digests(folder: Path) -> dict[str, str]:
    """Of all tensors, of the fields of config.json, and of the tokenizer's files."""
    found = {f.name: f.read_text() for pattern in ("tokenizer*", "*.jinja") for f in sorted(folder.glob(pattern))}
    for file in {t.file for t in read_checkpoint(folder).tensors.values()}:
        for name, x in load_file(folder / file).items():
            values = x.contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b""
            found[name] = f"{x.dtype} {tuple(x.shape)} {hashlib.sha256(values).hexdigest()}"
    config = json.loads((folder / "config.json").read_text())
    return found | {f"config.json: {field}": json.dumps(value, sort_keys=True) for field, value in config.items()}


def difference(whole: Mapping[str, str], got: Mapping[str, str]) -> str:
    """The first names that differ between two merges; nothing if none does."""
    names = sorted(n for n in whole.keys() | got.keys() if whole.get(n) != got.get(n))
    return ", ".join(names[:3])


# The pairs that are mutated: of every method, option and kind of architecture one.
SUBJECTS = (
    "llama: every linear layer",
    "llama: rslora",
    "llama: dora",
    "llama: rank and alpha of single layers",
    "llama: one layer",
    "llama: tokens",
    "llama: embedding and head in full",
    "llama: lora on embedding and head",
    "llama: a trainer's checkpoint",
    "llama: a trainer's checkpoint with its ledger",
    "llama: its tokenizer beside it",
    "llama-tied: tied lora",
    "llama-tied: other tokens of each end",
    "llama-tied: both ends in full, resized",
    "llama-tied: new tokens, resized",
    "llama-tied: its larger tokenizer beside it",
    "qwen2: lora_bias",
    "qwen2: bfloat16",
    "gemma2: dora on both ends",
    "phi3: rslora",
    "gpt2: every linear layer",
    "gpt2: all biases",
    "gpt2: positions",
    "gpt-neox: biases of LoRA's layers",
    "bert: every linear layer",
    "vit: classifier in full",
    "vit: dora on convolutions",
    "mixtral: experts",
    "mixtral: experts in full",
    "qwen3-moe: down of experts",
    "gpt-oss: experts",
    "olmoe: lora on both ends, resized",
    "gemma3-image: regex with exclusions",
    "whisper: head in full",
    "t5: tokens",
    "mamba2: norms in full",
)
assert HEALTHY.keys() >= set(SUBJECTS), set(SUBJECTS) - HEALTHY.keys()
