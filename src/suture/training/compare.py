"""A checkpoint against its ledger, and a ledger against the model that is to go on: differences, group by group."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft import get_peft_model_state_dict

from suture.arch import describe
from suture.formats import TensorReader, file_sha256, stored_sha256
from suture.groups import group_of
from suture.targets import changed_fields
from suture.training import ledger as ledgers
from suture.training.live import Live
from suture.training.probe import token_rows
from suture.training.readback import tensor_sha256
from suture.values import Adapter, Arch, Checkpoint, Difference, Json, Ledger, TensorRecord

RESUMABLE = ("scheduler.pt", "trainer_state.json")  # and the optimiser, whose files have a name for each backend


def against_ledger(adapter: Adapter, ledger: Ledger, arch: Arch) -> list[Difference]:
    """The file and the config of an adapter against what its ledger says was saved."""
    recorded = {record.name: record for record in ledger.tensors}
    sizes = {name: r.n_values for name, r in recorded.items()}
    missing = {name: sizes.get(name, 0) for name in ledger.sha256 if name not in adapter.tensors}
    foreign = {name: t.n_values for name, t in adapter.tensors.items() if name not in ledger.sha256}
    shaped = {
        n: r.n_values for n, r in recorded.items() if n in adapter.tensors and adapter.tensors[n].shape != r.shape
    }
    alike = {name: t for name, t in adapter.tensors.items() if name in ledger.sha256 and name not in shaped}
    with TensorReader(adapter.folder) as reader:
        changed = {n: t.n_values for n, t in alike.items() if stored_sha256(reader, t) != ledger.sha256[n]}
    do = "Bring back the original of this file; or delete this checkpoint, and resume from the one before."
    return [
        *grouped(arch, missing, "{what} missing from the file, though the ledger has it: {n}", do),
        *grouped(arch, foreign, "{what} in the file, though the ledger does not know it: {n}", do),
        *grouped(arch, shaped, "{what} of another shape than the ledger says: {n}", do),
        *grouped(arch, changed, "{what} of other bytes than the ledger says: {n}", do),
        *config_differences(ledger.adapter_config, adapter.config, "adapter_config.json", "when it was saved"),
    ]


def config_differences(then: Json, now: Json, where: str, when: str) -> list[Difference]:
    """Fields that decide what an adapter computes and have changed."""
    return [
        Difference(
            "config",
            f"{where}: {name} is {new!r}, but was {old!r} {when}",
            "Put the value back; a continued run (`suture train --continue`) may change it and says what that does.",
            (name,),
            0,
        )
        for name, old, new in changed_fields(then, now)
    ]


def against_files(folder: Path, ledger: Ledger) -> list[Difference]:
    """The other files of a checkpoint against the hashes in its ledger."""
    wanted = {name: sha for name, sha in ledger.files.items() if name not in ledgers.WEIGHTS}
    there = {path.name for path in folder.iterdir()}
    optimizer = () if any(name.startswith("optimizer") for name in there) else ("optimizer.pt",)
    missing = sorted({*wanted, *RESUMABLE, *optimizer} - there)
    changed = sorted(name for name, sha in wanted.items() if name not in missing and file_sha256(folder / name) != sha)
    do = "Delete this checkpoint, and resume from the one before: this one cannot give the same run."
    return [
        *(Difference("files", f"{name} is missing", do, (name,), 0) for name in missing),
        *(Difference("files", f"{name} has other bytes than the ledger says", do, (name,), 0) for name in changed),
    ]


def against_run(ledger: Ledger, facts: Mapping[str, str | None]) -> list[Difference]:
    """Facts about a run against those of its ledger: sha256 of base, data and tokenizer; names of device, precision."""
    then = {"base": ledger.base.fingerprint, "data": ledger.data_sha256, "tokenizer": ledger.tokenizer_sha256}
    then |= {name: ledger.versions[name] for name in ("device", "precision") if name in ledger.versions}
    do = "Bring back what the run was started with, or start a new one with --continue."
    return [
        Difference(name, f"the {name} is not the one that this checkpoint was trained with", do, (), 0)
        for name, sha in facts.items()
        if then.get(name) is not None and then[name] != sha
    ]


def against_model(ledger: Ledger, records: Sequence[TensorRecord], arch: Arch) -> list[Difference]:
    """What trains now against what trained then: names, shapes, dtypes, groups and learning rates."""
    then, now = {r.name: r for r in ledger.tensors}, {r.name: r for r in records}
    lost = {name: r.n_values for name, r in then.items() if name not in now}
    new = {name: r.n_values for name, r in now.items() if name not in then}
    both = [(then[name], now[name]) for name in then if name in now]
    do = "Resume with the config of the run; a continued run (--continue) may change it."
    differences = [
        *grouped(arch, lost, "{what} no longer trained: {n} that trained before", do),
        *grouped(arch, new, "{what} newly trained: {n} that did not train before", do),
    ]
    for field, noun in (("shape", "shapes"), ("dtype", "dtypes"), ("lr", "learning rates")):
        pairs = {(getattr(a, field), getattr(b, field)) for a, b in both if getattr(a, field) != getattr(b, field)}
        names = {a.name: a.n_values for a, b in both if getattr(a, field) != getattr(b, field)}
        example = ", ".join(f"{a} → {b}" for a, b in sorted(pairs, key=str)[:3])
        differences += grouped(arch, names, f"{{what}} trained at other {noun} than before ({example}): {{n}}", do)
    return differences


def against_memory(ledger: Ledger, live: Live) -> list[Difference]:
    """The adapter in memory, values and config, against what the ledger says was saved."""
    other = {
        key: p.numel()
        for key, p in live.unique().items()
        if key in ledger.sha256 and not hasattr(p, "full_tensor") and tensor_sha256(p) != ledger.sha256[key]
    }
    words = "{what} not the checkpoint's after loading: {n} that were re-initialised or changed"
    do = "The Trainer drops what does not match; repair the checkpoint or the model."
    configs = config_differences(ledger.adapter_config, live.config, "the adapter in memory", "in the checkpoint")
    return [*configs, *grouped(live.arch, other, words, do)]


def unsaved_rows(live: Live, base: Checkpoint) -> list[Difference]:
    """Rows of the vocabulary that PEFT, as it saves by default, would put into no file."""
    if token_rows(live) is None:  # PEFT asks such a model for its embeddings too
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says them again when it saves
        kept = get_peft_model_state_dict(live.model, adapter_name=live.adapter)
    return against_rows(live, base, [tuple(t.shape) for key, t in kept.items() if ".lora_" not in key])


def against_rows(live: Live, base: Checkpoint, shapes: Iterable[tuple[int, ...]]) -> list[Difference]:
    """Rows of the vocabulary that the base's files do not have, and that nothing of the adapter's file would hold.

    None for a model that takes no tokens.

    Args:
        shapes: of the file's tensors, without low-rank factors.
    """
    arch = describe(base.config, base.tensors)
    table, rows = arch.params.get(f"{arch.input_embedding}.weight"), token_rows(live)
    if table is None or rows is None:
        return []
    on_disk, in_memory = table.shape[0], rows.shape[0]
    if in_memory == on_disk or any(len(shape) == 2 and shape[0] == in_memory for shape in shapes):
        return []
    found = f"the model has {in_memory:,} rows, its base on the disk {on_disk:,}, and the file would hold neither end"
    do = "Save with save_embedding_layers=True, or resize the base, save it, and train on that."
    return [Difference("embeddings", found, do, (), 0)]


def against_order(ledger: Ledger, order: Sequence[str]) -> list[Difference]:
    """The optimiser's parameters in the order of its state, which most trainers restore by position."""
    if not ledger.optimizer or not order or tuple(order) == ledger.optimizer:
        return []
    if sorted(order) == sorted(ledger.optimizer):
        moved = [a for a, b in zip(ledger.optimizer, order, strict=True) if a != b]
        found = f"{len(moved):,} parameters stand at other positions in the optimiser than in the checkpoint's"
    else:
        moved = sorted(set(order) ^ set(ledger.optimizer))
        found = f"{len(moved):,} parameters are in only one of the checkpoint's optimiser and the run's"
    do = "Their moments would go to other tensors. Make the optimiser's groups as they were, or use suture resume."
    return [Difference("optimiser", found, do, tuple(moved), 0)]


def grouped(arch: Arch, found: Mapping[str, int], words: str, do: str) -> list[Difference]:
    """One difference for each group that has members; `words` holds {what} and {n}."""
    groups: dict[str, dict[str, int]] = {}
    for key, n in found.items():
        groups.setdefault(joint_group(key, arch), {})[key] = n
    return [
        Difference(
            group,
            words.format(what=described(group, members), n=f"{sum(members.values()):,} parameters"),
            do,
            tuple(members),
            sum(members.values()),
        )
        for group, members in groups.items()
    ]


def joint_group(key: str, arch: Arch) -> str:
    """The group of a key, the two ends of the vocabulary told together."""
    group = group_of(key, arch)
    return "embeddings" if group == "head" else group


def described(group: str, keys: Iterable[str]) -> str:
    """'embed_tokens and lm_head are', or 'LoRA of 224 modules (448 tensors) is'."""
    keys = list(keys)
    modules = {key.split(".lora_")[0].split(".token_adapter")[0] for key in keys}
    modules = {module.removesuffix(".weight").removesuffix(".bias") for module in modules}
    names = sorted({module.rpartition(".")[2] for module in modules})
    modules_of = f"{len(modules):,} {'module' if len(modules) == 1 else 'modules'}"
    if len(names) <= 3 and group != "LoRA":
        of = f" ({modules_of})" if len(modules) > len(names) else ""
        return f"{' and '.join(names)}{of} {'is' if len(modules) == 1 else 'are'}"
    tensors = f"{len(keys):,} {'tensor' if len(keys) == 1 else 'tensors'}"
    return f"{'LoRA' if group == 'LoRA' else group} of {modules_of} ({tensors}) is"
