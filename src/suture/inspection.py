"""What is in a base model and an adapter, and how many values the adapter trains. Config files alone are enough."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from suture import targets
from suture.arch import describe
from suture.formats import read_adapter, read_checkpoint
from suture.groups import GROUPS, group_of, vocabulary_ends
from suture.pipeline import Reading
from suture.resolve import resolve
from suture.rewriting import PREFIX
from suture.values import Adapter, Arch, Checkpoint, Json, TensorInfo, Tie


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """A base model. Counts of values are of the model class, tied parameters once; sizes are of the files."""

    folder: Path
    model_class: str
    source: str  # of the knowledge about the class: "transformers 5.23.0", "table of transformers 5.23.0", or "headers"
    n_params: int
    n_tensors: int  # in the files; 0 when there is only a config
    n_bytes: int
    n_files: int
    dtypes: Mapping[str, int]  # type → stored values
    ties: tuple[Tie, ...]
    vocabulary_rows: int | None
    unknown: tuple[str, ...]  # tensors in the files that the class does not have


@dataclass(frozen=True, slots=True)
class Trainable:
    """How many values train, as PEFT counts them: `n_total` are those of the base and those that the adapter adds."""

    groups: Mapping[str, int]
    n_trainable: int
    n_total: int
    percent: float


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter. `expected` follows from the configs of both sides, `in_file` is what the file holds."""

    folder: Path
    name: str
    method: str
    base_named: str | None
    ranks: Mapping[str, int]  # rank → modules
    scales: Mapping[str, int]  # scale → modules
    targets: Mapping[str, int]  # last part of a module's path → low-rank modules of that name
    saved: tuple[str, ...]  # modules that are trained in full
    n_tensors: int  # in the file; 0 when there is only a config
    n_bytes: int
    dtypes: Mapping[str, int]
    expected: Trainable | None  # None: the method is not LoRA, or the architecture is not known
    in_file: Trainable | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `suture inspect` tells."""

    base: BaseFacts
    adapter: AdapterFacts | None


def inspect(base: str | Path, adapter: str | Path | None = None, *, reading: Reading | None = None) -> Inspection:
    """Look at a base model, and at an adapter for it. Reads configs, and headers where there are any.

    Raises:
        InputError: a folder or id cannot be used.
    """
    reading = reading or Reading()
    checkpoint = read_checkpoint(
        base, revision=reading.base_revision, allow_pickle=reading.allow_pickle, need_weights=False
    )
    arch = describe(checkpoint.config, checkpoint.tensors)
    facts = _base_facts(checkpoint, arch)
    if adapter is None:
        return Inspection(facts, None)
    tuned = read_adapter(
        adapter,
        name=reading.adapter_name,
        revision=reading.adapter_revision,
        allow_pickle=reading.allow_pickle,
        need_weights=False,
    )
    return Inspection(facts, _adapter_facts(checkpoint, tuned, arch, facts.n_params))


def _base_facts(checkpoint: Checkpoint, arch: Arch) -> BaseFacts:
    embedding = arch.params.get(f"{arch.input_embedding}.weight")
    return BaseFacts(
        folder=checkpoint.folder,
        model_class=arch.model_class,
        source=arch.source,
        n_params=arch.n_params,
        n_tensors=len(checkpoint.tensors),
        n_bytes=checkpoint.n_bytes,
        n_files=len(checkpoint.shards),
        dtypes=_dtypes(checkpoint.tensors),
        ties=arch.ties,
        vocabulary_rows=embedding.shape[0] if embedding is not None else None,
        unknown=arch.unknown,
    )


def _adapter_facts(checkpoint: Checkpoint, adapter: Adapter, arch: Arch, n_base: int) -> AdapterFacts:
    config = adapter.config
    is_lora = config.get("peft_type") == "LORA" and bool(arch.params)
    claims = targets.expected(config, arch) if is_lora else targets.Expected((), (), {})
    fused = targets.target_parameters(config, arch) if is_lora else {}
    names = [*claims.lora_modules, *(param.name for params in fused.values() for param in params)]
    trained = _trained(checkpoint, adapter, arch, claims) if is_lora else {}
    return AdapterFacts(
        folder=adapter.folder,
        name=adapter.name,
        method=_method(config),
        base_named=config.get("base_model_name_or_path"),
        ranks=_count(targets.rank_and_alpha(config, name)[0] for name in names),
        scales=_count(f"{targets.scale(config, name):g}" for name in names),
        targets=_count(name.rpartition(".")[2] for name in names),
        saved=claims.saved_modules,
        n_tensors=len(adapter.tensors),
        n_bytes=sum(t.n_bytes for t in adapter.tensors.values()),
        dtypes=_dtypes(adapter.tensors),
        expected=_trainable(claims.tensors, arch, n_base) if is_lora else None,
        in_file=_trainable(trained, arch, n_base) if trained else None,
    )


def _trained(
    checkpoint: Checkpoint, adapter: Adapter, arch: Arch, claims: targets.Expected
) -> dict[str, tuple[int, ...]]:
    """Tensors of the file that were trained: without copies of the base's matrices, repeats, and resized embeddings."""
    resolved = resolve(checkpoint, adapter, arch)
    left_out = {t.name for t in resolved.frozen.values()} | set(resolved.copies)
    ends = {f"{PREFIX}{module}.weight" for module in vocabulary_ends(arch)}
    left_out |= ends - claims.tensors.keys()
    return {name: t.shape for name, t in adapter.tensors.items() if name not in left_out}


def _trainable(tensors: Mapping[str, tuple[int, ...]], arch: Arch, n_base: int) -> Trainable:
    counts = Counter(dict.fromkeys(GROUPS, 0))
    for key, shape in tensors.items():
        counts[group_of(key, arch)] += math.prod(shape)
    n_trainable = counts.total()
    n_total = n_base + n_trainable - counts["biases"]  # which are trained where they are
    percent = 100 * n_trainable / n_total if n_total else 0.0
    return Trainable({g: n for g, n in counts.items() if n}, n_trainable, n_total, percent)


def _method(config: Json) -> str:
    """The method's name, with what the config switches on."""
    if config.get("peft_type") != "LORA":
        return str(config.get("peft_type"))
    name = "DoRA" if config.get("use_dora") else "LoRA"
    return f"{name}, rank-stabilised" if config.get("use_rslora") else name


def _dtypes(tensors: Mapping[str, TensorInfo]) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for tensor in tensors.values():
        counts[tensor.dtype] += tensor.n_values
    return dict(sorted(counts.items()))


def _count(values: Iterable[object]) -> Mapping[str, int]:
    """How often each value comes, most frequent first."""
    return {str(value): n for value, n in Counter(values).most_common()}
