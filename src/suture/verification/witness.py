"""The models whose logits are compared: the base with PEFT's live adapter, the witness, and the merged model."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from suture.errors import InputError, MissingExtra, SutureError
from suture.values import Adapter, Checkpoint, Json, Quantization
from suture.verification import reading

PREFIX = "base_model.model."
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in which dtype a model is computed. `device_map` hands the placing to accelerate."""

    dtype: str
    device: str | None
    device_map: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model for evaluation, and the parameters that its files did not give or that it did not want."""

    model: Any
    missing: frozenset[str]
    unexpected: frozenset[str]


def peft_version() -> str:
    """The version of PEFT.

    Raises:
        MissingExtra: it is not installed.
    """
    # At every import bitsandbytes, which PEFT imports, tells how its CPU code for 4 bits could be faster.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import peft
    except ImportError as error:
        raise MissingExtra(
            "the package peft is not installed",
            expected="PEFT, which applies the adapter to the base model as an independent witness",
            do="pip install 'suture[logits]'",
        ) from error
    return str(peft.__version__)


def load_base(checkpoint: Checkpoint, place: Place) -> Loaded:
    """The base. Quantised weights are dequantised by Transformers and their library, whose kernels for the CPU compute
    in fewer bits than the merged model.

    Raises:
        SutureError: Transformers cannot load it, or cannot dequantise it.
    """
    quantization = checkpoint.quantization
    if quantization is None:
        return load(checkpoint.folder, checkpoint.config, place)
    if quantization.method == "gguf":
        raise SutureError(
            "the base is a GGUF file",
            where=str(checkpoint.folder),
            expected="a model folder, for --logits",
            do="suture dequantize it, and compare with that folder as BASE; or leave --logits out.",
        )
    import torch

    told = f"Transformers cannot dequantise the base ({quantization.words})"
    with _failing(told, checkpoint.folder):
        settings = _dense(quantization)
        # While it loads, Transformers dequantises to the dtype that it loads in.
        first = replace(place, dtype=_DTYPES[quantization.dtype]) if settings else place
        loaded = load(checkpoint.folder, checkpoint.config, first, quantization_config=settings)
        model = loaded.model
        if getattr(model, "is_quantized", False):
            model = model.dequantize()
        return replace(loaded, model=model.to(getattr(torch, place.dtype)).eval())


def _dense(quantization: Quantization) -> object | None:
    """Settings with which Transformers dequantises while it loads, for the methods that know such a setting."""
    import transformers

    settings = dict(quantization.config.get("quantization_config") or {})
    known = {"fp8": ("FineGrainedFP8Config", "dequantize", True), "mxfp4": ("Mxfp4Config", "dequantize", True),
             "compressed-tensors": ("CompressedTensorsConfig", "run_compressed", False)}  # fmt: skip
    if quantization.method not in known:
        return None
    name, key, value = known[quantization.method]
    settings.pop("quant_method", None)
    return getattr(transformers, name)(**{**settings, key: value})  # type: ignore[no-any-return]


def load(folder: Path, config: Json, place: Place, **settings: object) -> Loaded:
    """A model from disk, of the class that its config names; never from the network, never with its own code.

    Args:
        settings: more arguments for `from_pretrained`; None is left out.

    Raises:
        SutureError: Transformers does not know the class, or cannot load the folder.
    """
    import torch

    names = config.get("architectures") or ["none"]
    model_class = _model_class(str(names[0]), folder)
    more = {"device_map": place.device_map, **settings}
    with _same_draws(), _failing(f"Transformers cannot load the model as {names[0]}", folder):
        model, info = model_class.from_pretrained(
            folder,
            dtype=getattr(torch, place.dtype),
            local_files_only=True,
            output_loading_info=True,
            **{name: value for name, value in more.items() if value is not None},
        )
    if info["mismatched_keys"] or info["error_msgs"]:
        found = [str(x) for x in (*sorted(info["mismatched_keys"]), *info["error_msgs"])]
        raise SutureError("; ".join(found[:3]), where=str(folder), expected="tensors of the shapes the class asks for")
    if not place.device_map:
        model = model.to(place.device or _device())
    return Loaded(model.eval(), frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]))


def _model_class(name: str, folder: Path) -> Any:
    import transformers

    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise SutureError(
            f"Transformers {transformers.__version__} has no class {name}",
            where=str(folder / "config.json"),
            expected="a class of Transformers under architectures",
            do="Verify without --logits: the values of all tensors are compared.",
        )
    return model_class


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def _same_draws() -> Iterator[None]:
    """Parameters that no file gives are drawn from one seed, so that two loads of a model draw the same."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _failures() -> tuple[type[Exception], ...]:
    """What Transformers, PEFT and torch raise for inputs that they cannot use."""
    from safetensors import SafetensorError

    return RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError, ImportError, SafetensorError


@contextlib.contextmanager
def _failing(what: str, where: Path) -> Iterator[None]:
    """Errors of the libraries, told with their place."""
    try:
        yield
    except _failures() as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SutureError(f"{what}: {first}", where=str(where)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from Transformers and PEFT while their models are only measured."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def with_adapter(model: Any, adapter: Adapter) -> Any:
    """The base model with the adapter live, as PEFT applies it: unmerged.

    `ensure_weight_tying` makes PEFT load one of two factors over the other. Where the file holds different ones, they
    are loaded apart, as they were trained: with low_cpu_mem_usage PEFT takes each from the file.

    Raises:
        SutureError: PEFT does not load every tensor of the file as it is, so it is no witness of this adapter.
    """
    from peft import PeftModel

    with _failing("PEFT cannot apply the adapter", adapter.folder):
        tuned = PeftModel.from_pretrained(model, adapter.folder)
        wrong = _wrong_values(tuned, adapter)
        if wrong and adapter.config.get("ensure_weight_tying"):
            tuned = PeftModel.from_pretrained(tuned.unload(), adapter.folder, low_cpu_mem_usage=True)
            wrong = _wrong_values(tuned, adapter)
        result = tuned.load_adapter(adapter.folder, "default")
    _require_loaded(adapter, "does not find", sorted(result.missing_keys))
    _require_loaded(adapter, "ignores", [k for k in sorted(result.unexpected_keys) if not _is_second_copy(k, adapter)])
    _require_loaded(adapter, "changes the values of", wrong)
    return tuned.eval()


def _require_loaded(adapter: Adapter, what: str, names: list[str]) -> None:
    if names:
        raise SutureError(
            f"PEFT {what} {len(names)} tensors, such as {names[0]}",
            where=str(adapter.folder / adapter.file),
            expected="an adapter that PEFT loads whole: only then is its forward pass a witness",
            do="Run `suture check` and `suture fix` on the adapter, then verify with the repaired one.",
        )


def _is_second_copy(key: str, adapter: Adapter) -> bool:
    """PEFT writes resized embeddings of `modules_to_save` twice, and reads one of the two."""
    one, other = adapter.tensors.get(key), adapter.tensors.get(key.replace(".modules_to_save.", "."))
    return one is not None and other not in (None, one) and reading.same_bytes(adapter.folder, one, other)


def _wrong_values(tuned: Any, adapter: Adapter) -> list[str]:
    """Tensors of the file that are not in the model with their values, up to the model's dtype."""
    import torch
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    wrong = []
    for name in sorted(state.keys() & adapter.tensors.keys()):
        tensor, info = state[name], adapter.tensors[name]
        if info.dtype not in reading.FLOATS or tensor.is_meta:
            continue
        stored = reading.floats(reading.raw(adapter.folder, info, 0, info.n_bytes), info.dtype).reshape(info.shape)
        if not torch.equal(torch.from_numpy(stored).to(tensor.dtype), tensor.cpu()):
            wrong.append(name)
    return wrong


def table_rows(model: Any) -> int:
    """Rows of the input embedding; 0 for a model that reads no tokens."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return 0
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.ndim == 2 else 0


def grow(model: Any, adapter: Adapter) -> None:
    """Resize the model's embeddings to the rows that the adapter holds. The new rows are the adapter's to give."""
    before = table_rows(model)
    rows = max(_rows_of(model, adapter), default=0) if before else 0
    if rows > before:
        with _same_draws():
            model.resize_token_embeddings(rows, mean_resizing=False)


def _rows_of(model: Any, adapter: Adapter) -> Iterator[int]:
    """Rows of every embedding or head tensor in the adapter."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for path in (name for name, module in model.named_modules() if any(module is end for end in ends)):
        axes: Mapping[str, int] = {
            ".weight": 0, ".base_layer.weight": 0, ".lora_embedding_A": 1, ".lora_B.weight": 0
        }  # fmt: skip
        for suffix, axis in axes.items():
            tensor = adapter.tensors.get(f"{PREFIX}{path}{suffix}")
            if tensor is not None and len(tensor.shape) == 2:
                yield tensor.shape[axis]


def run(model: Any, arguments: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits (positions, classes) of one forward pass, in float32 on the CPU.

    Raises:
        SutureError: the model gives none.
    """
    import torch

    place = next(model.parameters())
    feed = {name: torch.from_numpy(a).to(place.device) for name, a in arguments.items()}
    feed = {name: t.to(place.dtype) if t.is_floating_point() else t for name, t in feed.items()}
    with torch.no_grad(), _failing("the forward pass fails", Path(type(model).__name__)):
        found = getattr(model(**feed), "logits", None)
    if found is None:
        raise SutureError(
            f"{type(model).__name__} gives no logits",
            expected="a model with a head",
            do="Verify without --logits: the values of all tensors are compared.",
        )
    array: np.ndarray[Any, np.dtype[np.float32]] = found.reshape(-1, found.shape[-1]).float().cpu().numpy()
    return array


def load_tokenizer(*folders: Path) -> Any | None:
    """The tokenizer of the first folder that has one; None when no folder has.

    Raises:
        InputError: there is one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    for folder in folders:
        if not any((folder / name).is_file() for name in names):
            continue
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except _failures() as error:
            raise InputError(
                f"the tokenizer cannot be loaded: {str(error).strip().splitlines()[0] if str(error) else error!r}",
                where=str(folder),
                do="Install what its class needs (sentencepiece, tiktoken), or repair its files.",
            ) from error
    return None
