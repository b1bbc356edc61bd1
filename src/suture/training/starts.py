"""Where a run starts from: nothing, or an adapter that is checked, inherited and, if asked for, converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from suture import targets
from suture.arch import describe
from suture.errors import InputError, ResumeRefused, UsageError
from suture.formats import TensorReader, file_sha256, read_adapter
from suture.formats.listing import ADAPTER_WEIGHTS
from suture.pipeline import make_case
from suture.rewriting import PREFIX
from suture.rules import diagnose
from suture.training import folder as folders
from suture.training import ledger as ledgers
from suture.training.compare import against_ledger, grouped
from suture.training.config import RunConfig
from suture.training.convert import convert
from suture.training.live import DTYPES, Live
from suture.training.readback import in_memory, tensor_sha256
from suture.values import Adapter, Ancestor, Arch, Checkpoint, Difference, Json, Ledger, Options

PEFT_NAMES = {  # ours → PEFT's
    "adapter.rank": "r",
    "adapter.alpha": "lora_alpha",
    "adapter.dropout": "lora_dropout",
    "adapter.targets": "target_modules",
    "adapter.exclude": "exclude_modules",
    "adapter.parameters": "target_parameters",
    "adapter.rank_pattern": "rank_pattern",
    "adapter.alpha_pattern": "alpha_pattern",
    "adapter.bias": "bias",
    "adapter.init": "init_lora_weights",
    "save": "modules_to_save",
}
NAMES = {
    "adapter.targets",
    "adapter.exclude",
    "adapter.parameters",
    "adapter.rank_pattern",
    "adapter.alpha_pattern",
    "save",
}
NOT_INHERITED = ("inference_mode", "peft_version", "base_model_name_or_path", "revision", "auto_mapping")


@dataclass(frozen=True, slots=True)
class Start:
    """An adapter that a run goes on from."""

    adapter: Adapter
    config: Json  # as it was saved
    n_rows: int | None  # of the vocabulary that it was trained with, where it holds a matrix that says so
    ledger: Ledger | None
    lineage: tuple[Ancestor, ...]


def open_start(folder: str, checkpoint: Checkpoint, arch: Arch, base_fingerprint: str) -> Start:
    """Check an adapter against its ledger, its config and the base, before anything is loaded.

    Raises:
        ResumeRefused: the file, its config and the base do not fit together; all differences are listed.
        InputError: there is no adapter.
    """
    adapter = read_adapter(_of_run(Path(folder)))
    ledger = ledgers.read(adapter.folder)
    rows = _rows(adapter, arch)
    differences = [
        *(against_ledger(adapter, ledger, arch) if ledger else ()),
        *_against_base(ledger, base_fingerprint),
        *_against_config(adapter, describe(with_rows(checkpoint.config, arch, rows), {}) if rows else arch),
        *_findings(checkpoint, adapter),
    ]
    if differences:
        raise ResumeRefused(differences, where=str(adapter.folder))
    ancestor = Ancestor(
        adapter.folder.name, file_sha256(adapter.folder / adapter.file), ledger.step if ledger else None
    )
    return Start(adapter, adapter.config, rows, ledger, (*(ledger.lineage if ledger else ()), ancestor))


def inherited(start: Start, config: RunConfig, asked: Json, arch: Arch, given: Sequence[str]) -> dict[str, Any]:
    """The adapter's config, with what the run's file names otherwise. Nothing changes by a default.

    Args:
        asked: the PEFT config that the run's file alone would give.
        arch: of the base, with the adapter's vocabulary.
        given: the settings that the file or the command line names; none where a run resumes.

    Raises:
        UsageError: the run wants another method, another tie, or new tokens.
    """
    wanted = {k: v for k, v in start.config.items() if k not in NOT_INHERITED}
    wanted |= {"base_model_name_or_path": config.base, "revision": config.revision}
    _require_kind(start, config, asked, given)
    changed = wanted | {PEFT_NAMES[name]: asked[PEFT_NAMES[name]] for name in given if name in PEFT_NAMES}
    same = targets.expected(changed, arch).tensors == targets.expected(wanted, arch).tensors
    if same:  # names that select what is there already
        changed |= {name: wanted.get(name) for name in ("target_modules", "exclude_modules", "modules_to_save")}
    return changed


def _require_kind(start: Start, config: RunConfig, asked: Json, given: Sequence[str]) -> None:
    """Refuse settings that no conversion can follow."""
    flags: dict[str, tuple[str, ...]] = {"adapter.method": ("use_dora", "use_rslora")}
    if config.ties != "refuse":
        flags["ties"] = ("ensure_weight_tying",)
    for name, fields in flags.items():
        if name in given and any(bool(asked[field]) != bool(start.config.get(field)) for field in fields):
            raise UsageError(
                f"the adapter to continue has {', '.join(f'{f}={bool(start.config.get(f))}' for f in fields)}",
                where=name,
                expected="the same",
                do="Leave the setting out, or merge the adapter first and train a new one on the result.",
            )
    if config.new_tokens and given:
        raise UsageError(
            "new tokens cannot be added to an adapter that exists",
            where="new_tokens",
            do="Merge the adapter first (suture merge), and train on the result.",
        )


def described(config: RunConfig, adapter: Json) -> RunConfig:
    """A run's settings with what they inherited, so that they say what trains."""
    method = "dora" if adapter.get("use_dora") else "rslora" if adapter.get("use_rslora") else "lora"
    wanted = adapter.get("target_modules") or ()
    values = {
        "method": method,
        "rank": adapter.get("r"),
        "alpha": float(adapter.get("lora_alpha") or 0),
        "dropout": float(adapter.get("lora_dropout") or 0),
        "targets": wanted if isinstance(wanted, str) else sorted(wanted),
        "bias": adapter.get("bias") or "none",
        "exclude": _listed(adapter.get("exclude_modules")),
        "parameters": sorted(adapter.get("target_parameters") or ()),
        "rank_pattern": dict(adapter.get("rank_pattern") or {}),
        "alpha_pattern": dict(adapter.get("alpha_pattern") or {}),
    }
    told = {
        **config.model_dump(),
        "adapter": {**config.adapter.model_dump(), **values},
        "save": sorted(adapter.get("modules_to_save") or ()),
        "ties": "together" if adapter.get("ensure_weight_tying") else config.ties,
    }
    try:
        return RunConfig.model_validate(told)
    except ValidationError:  # an adapter of another tool may have what a run's settings cannot say
        return config


def _listed(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else sorted(names or ())


def load_start(live: Live, start: Start) -> tuple[str, ...]:
    """Give the model the adapter's values; statements say what was converted, and are empty where nothing was.

    Raises:
        UsageError: the conversion would lose training.
        ResumeRefused: a value did not arrive as it is in the file.
    """
    trained = targets.expected(start.config, live.arch).tensors
    files = {key: read_tensor(start.adapter, key) for key in start.adapter.tensors}
    copies = {key: tensor for key, tensor in files.items() if key not in trained}  # of the base's matrices
    old = {key: tensor.float().numpy() for key, tensor in files.items() if key in trained}
    expected = targets.expected(live.config, live.arch).tensors
    fresh = {key: live.held[key].detach().cpu().float().numpy() for key in expected}
    done = convert(old, start.config, live.config, expected, fresh)
    values = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in done.tensors.items()}
    set_values(live, {**copies, **values})
    wrong = {k: v.numel() for k, v in values.items() if tensor_sha256(v) != tensor_sha256(live.held[k])}
    if wrong:
        words = "{what} not what was to be loaded: {n}"
        differences = grouped(live.arch, wrong, words, "Please report this as a bug.")
        raise ResumeRefused(differences, where=str(start.adapter.folder))
    return done.statements


def set_values(live: Live, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy values into the model, by key; every one of the adapter's parameters must get one.

    Raises:
        ResumeRefused: a tensor has no place, or a place no tensor.
    """
    places = {key: in_memory(key, live) for key in tensors}
    homeless = {key: tensors[key].numel() for key, place in places.items() if place is None}
    given = {id(place) for place in places.values()}
    left = {key: p.numel() for key, p in live.unique().items() if id(p) not in given}
    if homeless or left:
        differences = [
            *grouped(live.arch, homeless, "{what} in the file, but not in the model: {n}", "The file is another's."),
            *grouped(live.arch, left, "{what} without a starting value: {n}", "The adapter's file lacks them."),
        ]
        raise ResumeRefused(differences, where=ADAPTER_WEIGHTS)
    with torch.no_grad():
        for key, place in places.items():
            if place is not None:
                place.copy_(tensors[key])


def read_tensor(adapter: Adapter, key: str) -> torch.Tensor:
    """A tensor of an adapter's file, in its own dtype."""
    info = adapter.tensors[key]
    with TensorReader(adapter.folder) as reader:
        stored = np.empty(info.n_bytes, np.uint8)
        reader.read_into(info, 0, stored)
    kinds = {name: kind for kind, name in DTYPES.items()}
    return torch.from_numpy(stored).view(kinds[info.dtype]).reshape(info.shape)


def with_rows(config: Json, arch: Arch, n_rows: int | None) -> dict[str, Any]:
    """A model's config with another size of the vocabulary, at every level that states the old one."""
    old = arch.params[f"{arch.input_embedding}.weight"].shape[0]

    def changed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: n_rows if k == "vocab_size" and v == old else changed(v) for k, v in value.items()}
        return value

    return dict(changed(config)) if n_rows else dict(config)


def _of_run(folder: Path) -> Path | str:
    """The adapter of a run, where its folder is named; else what was named."""
    if not (folder / folders.CONFIG).is_file():
        return str(folder)
    if not (folder / folders.ADAPTER).is_dir():
        raise InputError(
            "this run has no adapter yet",
            where=str(folder),
            do=f"Finish it (suture resume {folder}), or name a checkpoint.",
        )
    return folder / folders.ADAPTER


def _rows(adapter: Adapter, arch: Arch) -> int | None:
    """Rows of the vocabulary that the adapter was trained with, if they are not the base's."""
    module = arch.input_embedding
    for key, axis in ((".weight", 0), (".base_layer.weight", 0), (".lora_embedding_A", 1)):
        tensor = adapter.tensors.get(f"{PREFIX}{module}{key}")
        if tensor is not None:
            rows = tensor.shape[axis]
            return rows if rows != arch.params[f"{module}.weight"].shape[0] else None
    return None


def _against_base(ledger: Ledger | None, fingerprint: str) -> list[Difference]:
    if ledger is None or ledger.base.fingerprint in (None, fingerprint):
        return []
    found = f"the base is not the one that this adapter was trained on ({ledger.base.name})"
    return [Difference("base", found, "Name that base, in the same revision.", (), 0)]


def _against_config(adapter: Adapter, arch: Arch) -> list[Difference]:
    """Tensors that config.json and adapter_config.json promise, against the file."""
    if adapter.config.get("peft_type") != "LORA":
        found = f"adapters of the method {adapter.config.get('peft_type')} cannot be continued"
        return [Difference("LoRA", found, "LoRA, rsLoRA and DoRA can.", (), 0)]
    promised = targets.expected(adapter.config, arch).tensors
    sizes = {key: int(np.prod(shape)) for key, shape in promised.items()}
    missing = {key: n for key, n in sizes.items() if key not in adapter.tensors}
    shaped = {k: n for k, n in sizes.items() if k in adapter.tensors and adapter.tensors[k].shape != promised[k]}
    do = "Use the adapter as it was saved, with its own adapter_config.json."
    return [
        *grouped(arch, missing, "{what} promised by the adapter's config, but not in the file: {n}", do),
        *grouped(arch, shaped, "{what} of another shape in the file than its config says: {n}", do),
    ]


def _findings(checkpoint: Checkpoint, adapter: Adapter) -> list[Difference]:
    """What `suture check` calls an error in this pair, but for a quantised base: it is not merged into here."""
    case = make_case(checkpoint, adapter, describe(checkpoint.config, checkpoint.tensors), Options())
    errors = [f for f in diagnose(case) if f.severity == "error" and f.code != "N504"]
    return [Difference("files", f"{f.code} {f.where}: {f.found}", f.do or "", (), 0) for f in errors]
