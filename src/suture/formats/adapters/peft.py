"""PEFT adapters: adapter_config.json beside adapter_model.safetensors, in a folder, a subfolder or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from suture.errors import FormatError, InputError, PickleRefused
from suture.formats import hub, pickles
from suture.formats.adapter_config import check_types
from suture.formats.files import inside, quoted
from suture.formats.jsonfile import read_json_object
from suture.formats.listing import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINT, file_names, side_files
from suture.formats.safetensors import read_header
from suture.values import Adapter

PICKLE = "adapter_model.bin"

_MLX_KEYS = ("fine_tune_type", "lora_parameters", "lora_layers")
_OTHER_FILES = {
    "adapters.safetensors": "MLX",
    "adapters.npz": "MLX",
    "pytorch_lora_weights.safetensors": "diffusers",
    "lit_model.pth.lora": "LitGPT",
    "adapter_model.pt": "torchtune",
}


def read_adapter(
    source: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    need_weights: bool = True,
) -> Adapter:
    """The adapter in a folder or on the Hub, from its config and its header; no weight is read.

    Args:
        source: a folder, or the id of a Hub repository.
        name: which adapter, if the folder holds several: "default" for the folder itself, else a subfolder.
        revision: branch, tag or commit of the Hub repository.
        allow_pickle: convert `adapter_model.bin` in a private folder first, which then is the adapter's folder.
        need_weights: when False, a config without weights gives an adapter without tensors.

    Raises:
        InputError: there is no adapter, more than one, or its weights are missing.
        FormatError: config or weights are malformed, or of another tool's format.
        PickleRefused: the only weights are pickled.
    """
    root = hub.locate(source, revision, allow_pickle=allow_pickle, need_weights=need_weights)
    folder, adapter_name = _choose(root, name)
    config = _read_config(folder)
    names = file_names(folder)
    if ADAPTER_WEIGHTS not in names and PICKLE in names:
        if allow_pickle:
            folder = pickles.converted(folder, [PICKLE])
            names = file_names(folder)
        elif need_weights:
            raise PickleRefused(
                f"the weights are pickled ({PICKLE}), and opening a pickle can run code",
                where=str(folder),
                expected=ADAPTER_WEIGHTS,
                do="Save the adapter with a current PEFT, or pass --allow-pickle: tensors are read, code never runs.",
            )
    if ADAPTER_WEIGHTS not in names and need_weights:
        raise InputError(
            f"there is {ADAPTER_CONFIG} but no weights",
            where=str(folder),
            expected=ADAPTER_WEIGHTS,
            do="Finish the copy.",
        )
    tensors = {t.name: t for t in read_header(folder, ADAPTER_WEIGHTS).tensors} if ADAPTER_WEIGHTS in names else {}
    return Adapter(folder, adapter_name, config, tensors, ADAPTER_WEIGHTS, side_files(folder))


def _choose(root: Path, name: str | None) -> tuple[Path, str]:
    """The adapter's folder and name: the folder itself, or the one place below it that has a config."""
    if name is None and ADAPTER_CONFIG in file_names(root):
        return root, "default"
    found = _adapters(root)
    if name is not None and name not in found:
        raise InputError(
            f"there is no adapter {quoted(name)}", where=str(root), expected=", ".join(found) or "adapters in it"
        )
    if not found:
        raise _nothing_found(root)
    if name is None and len(found) > 1:
        raise _too_many(root, list(found))
    path = next(iter(found)) if name is None else name
    last = path.rpartition("/")[2]
    return found[path], "default" if CHECKPOINT.fullmatch(last) else last


def _adapters(root: Path) -> dict[str, Path]:
    """Every adapter of a folder: "default" for itself, else a subfolder's path, below trainer checkpoints too."""
    found = {}
    for folder in _subfolders(root):
        deeper = _subfolders(folder) if CHECKPOINT.fullmatch(folder.name) else []
        for place in [folder, *deeper]:
            if ADAPTER_CONFIG in file_names(place):
                found[place.relative_to(root).as_posix()] = place
    if ADAPTER_CONFIG in file_names(root):
        found["default"] = root
    return found


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder cannot be listed: {error.strerror}", where=str(folder)) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = inside(folder, ADAPTER_CONFIG)
    config = read_json_object(path)
    if isinstance(config.get("peft_type"), str):
        check_types(config)
        return config
    is_mlx = any(key in config for key in _MLX_KEYS)
    raise FormatError(
        "the config is of MLX's format, not of PEFT's" if is_mlx else "the config has no peft_type",
        where=str(path),
        expected="PEFT's adapter_config.json",
        do="Convert the adapter to PEFT's format first." if is_mlx else "Save the adapter again with PEFT.",
    )


def _too_many(root: Path, names: list[str]) -> InputError:
    checkpoints = [(int(match[1]), n) for n in names if (match := CHECKPOINT.match(n))]
    latest = f" The latest checkpoint is {max(checkpoints)[1]}." if checkpoints else ""
    return InputError(
        f"there are {len(names)} adapters: {', '.join(names)}",
        where=str(root),
        expected="one adapter",
        do=f"Choose one with --adapter-name, or name its folder.{latest}",
    )


def _nothing_found(root: Path) -> InputError:
    names = file_names(root)
    where, expected = str(root), f"{ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}"
    for file in names:
        tool = "llama.cpp" if file.endswith(".gguf") else _OTHER_FILES.get(file)
        if tool:
            do = "Convert it to PEFT's format first."
            return FormatError(
                f"{file} looks like an adapter of {tool}, not of PEFT", where=where, expected=expected, do=do
            )
    if ADAPTER_WEIGHTS in names or PICKLE in names:
        do = "Copy the config that was saved beside the weights."
        return InputError(f"adapter weights but no {ADAPTER_CONFIG}", where=where, expected=expected, do=do)
    if "config.json" in names:
        do = "Give the base model first and the adapter second."
        return InputError("a model, not an adapter", where=where, expected=expected, do=do)
    return InputError(f"there is no {ADAPTER_CONFIG}", where=where, expected=expected)
