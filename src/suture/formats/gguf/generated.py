"""A GGUF file → config.json, the tokenizer's files, and what its tensors are called, by Transformers' own maps.

Transformers' reader of the keys takes seconds and half a gigabyte for a large vocabulary, so it is given the header
without the vocabulary.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from suture.errors import FormatError, MissingExtra
from suture.formats.dtypes import DTYPES, Array, from_float, to_float
from suture.formats.files import open_regular, quoted, read_exact
from suture.formats.gguf.additions import ARCHITECTURES, Said, additions, shortest, unused
from suture.formats.gguf.header import MAGIC, Header, Stored
from suture.formats.gguf.weights import FACTORS, undone
from suture.formats.quantized.gguf import PLAIN

_KEYS = "keys.gguf"
# Model types whose tokenizers have classes of their own.
_TOKENIZERS = {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"}
# Splits of text that are those of GPT-2, which Transformers takes where it does not know better.
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "default"}
_MAX_CHECKED = 1 << 28  # bytes of float32 that are read to see whether 16 bits hold them
_MAX_FACTORS = 1 << 12


@dataclass(frozen=True, slots=True)
class Source:
    """The files of one model: the first has the keys, all have tensors."""

    paths: tuple[Path, ...]
    headers: tuple[Header, ...]

    @property
    def where(self) -> str:
        """The first file, for errors."""
        return str(self.paths[0])

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.headers[0].get("general.architecture"))

    @property
    def tensors(self) -> dict[str, Stored]:
        """Those of all files, in the order of their bytes."""
        return {tensor.name: tensor for header in self.headers for tensor in header.tensors}

    def floats(self, tensor: Stored) -> Array:
        """The values of a float32 tensor."""
        path = next(p for p, h in zip(self.paths, self.headers, strict=True) if h.file == tensor.file)
        values = np.empty(tensor.shape, "<f4")
        with open_regular(path) as file:
            read_exact(file, tensor.begin, values, tensor=tensor.name)
        return values


def generate(source: Source, folder: Path, scratch: Path) -> dict[str, Any]:
    """Write what Transformers makes of the keys into `folder`, which has a link to the first file already.

    Returns:
        What `weights.Target` needs, and `notes` for the user, as JSON data.

    Raises:
        FormatError: the keys make no model that Transformers knows.
        MissingExtra: Transformers is too old or too new.
    """
    said = Said(source.headers[0], source.where, set())
    if (kind := said.header.get("general.type", "model")) != "model":
        said.refuse(f"general.type is {quoted(kind)}", "a model")
    if source.architecture not in ARCHITECTURES:
        said.refuse(f"the architecture is {quoted(source.architecture)}", f"one of {', '.join(ARCHITECTURES)}")
    tensors = source.tensors
    added = additions(said, tensors, _factors(source, tensors))
    dtype = common_dtype(source, tensors)
    (scratch / _KEYS).write_bytes(without_vocabulary(source.headers[0], tensors))
    with _accepted(source.where):
        config, model = _model(scratch, added, dtype)
        names, shapes = _names(source.architecture, config, model, tensors)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        _save_generation(config, folder)
        notes = _save_tokenizer(source, str(config.model_type), folder)
    if missing := sorted(shapes.keys() - set(names.values())):
        said.refuse(f"nothing is known to become {quoted(missing[0])}", "a tensor for each parameter of the model")
    if names_left := unused(said):
        notes.append(f"not taken into account: {', '.join(names_left)}")
    return {"dtype": dtype, "names": names, "shapes": shapes, "notes": notes}


def without_vocabulary(header: Header, tensors: Mapping[str, Stored]) -> bytes:
    """A GGUF file of the same keys, but for long arrays, whose tensors have the same names and one value each."""
    kept = {name: key.raw for name, key in header.keys.items() if key.raw}
    architecture = str(header.get("general.architecture"))
    if (name := f"{architecture}.vocab_size") not in kept:
        kept[name] = _text(name) + struct.pack("<II", 4, tensors["token_embd.weight"].shape[0])
    entries = b"".join(_text(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in tensors)
    counts = struct.pack("<IQQ", 3, len(tensors), len(kept))
    whole = MAGIC + counts + b"".join(kept.values()) + entries
    alignment = header.get("general.alignment", 32)
    return whole + bytes(-len(whole) % alignment + 4)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def common_dtype(source: Source, tensors: Mapping[str, Stored]) -> str:
    """F16 or BF16, where every weight of the file is exactly such a number; else F32, which is what types decode to."""
    weights = [tensor for name, tensor in tensors.items() if name not in FACTORS]
    halves = {tensor.type for tensor in weights} - {"F32"}
    if len(halves) != 1 or not halves < PLAIN:
        return "F32"
    [half], floats = halves, [tensor for tensor in weights if tensor.type == "F32"]
    if sum(tensor.n_bytes for tensor in floats) > _MAX_CHECKED:
        return "F32"
    for tensor in floats:
        x = source.floats(tensor) - np.float32(undone(tensor, source.architecture).get("plus", 0))
        if not np.array_equal(to_float(from_float(x, half), half), x):
            return "F32"
    return half


def _factors(source: Source, tensors: Mapping[str, Stored]) -> dict[str, Array]:
    """The values of the tensors that hold numbers of the config."""
    found = {name: tensors[name] for name in FACTORS if name in tensors}
    for name, tensor in found.items():
        if tensor.type != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MAX_FACTORS:
            raise FormatError(
                f"{tensor.type} {list(tensor.shape)}", where=f"{source.where}: {name}", expected="a few F32 values"
            )
    return {name: source.floats(tensor) for name, tensor in found.items()}


def _model(scratch: Path, added: Mapping[str, Any], dtype: str) -> tuple[Any, Any]:
    """The config, and the model that it describes, on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

    found, _ = PreTrainedConfig.get_config_dict(str(scratch), gguf_file=_KEYS)
    made = {key: shortest(value) for key, value in found.items() if key != "_model_name_or_path"}
    config = AutoConfig.for_model(**{**made, **added, "dtype": DTYPES[dtype].torch_name})
    with torch.device("meta"):
        return config, AutoModelForCausalLM.from_config(config)


def _names(
    architecture: str, config: Any, model: Any, tensors: Mapping[str, Stored]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Tensor of the file → parameter of the model, and the shapes of the parameters that files hold."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if "output.weight" not in tensors:  # tied to the embedding
        shapes.pop("lm_head.weight")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    found = get_gguf_hf_weights_map(_Parameters(config, shapes), processor, model_type=architecture)
    names = {key if key.endswith((".weight", ".bias")) else f"{key}.weight": name for key, name in found.items()}
    return names, shapes


@dataclass(frozen=True, slots=True)
class _Parameters:
    """As much of a model as Transformers' map of names looks at. With its modules it would be made once a module."""

    config: Any
    shapes: Mapping[str, tuple[int, ...]]

    def state_dict(self) -> Mapping[str, Any]:
        return self.shapes

    def named_children(self) -> tuple[()]:
        return ()


def _save_generation(config: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    GenerationConfig.from_model_config(config).save_pretrained(folder)


def _save_tokenizer(source: Source, model_type: str, folder: Path) -> list[str]:
    """Write the tokenizer's files; what is to be said of them."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    header = source.headers[0]
    if header.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return ["the file has no tokenizer"]
    if model_type in _TOKENIZERS:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=header.file, tokenizer_type=model_type)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=header.file)
    tokenizer.save_pretrained(folder)
    if len(tokenizer) > (n_tokens := header.keys["tokenizer.ggml.tokens"].n_items):
        _drop_additions(folder / "tokenizer.json", n_tokens)
    split = header.get("tokenizer.ggml.pre")
    if header.get("tokenizer.ggml.model") != "gpt2" or split in {*_known_splits(), *_AS_GPT2, None}:
        return []
    return [f"Transformers does not know how {quoted(split)} splits text, and takes GPT-2's way: some ids may differ"]


def _drop_additions(path: Path, n_tokens: int) -> None:
    """Take out the tokens that classes add by themselves, such as <|endoftext|>: the model has no row for them."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < n_tokens]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=2), encoding="utf-8")


def _known_splits() -> set[str]:
    """Ways to split text that Transformers rebuilds."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    return set(getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", ()))


@contextlib.contextmanager
def _accepted(where: str) -> Iterator[None]:
    """Whatever Transformers raises over the keys, as an error that says so."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(
            f"Transformers cannot read GGUF files here: {quoted(error, 300)}",
            where=where,
            expected="torch, gguf, and a version of Transformers that reads this architecture",
            do="pip install --upgrade 'suture[gguf]'",
        ) from error
    except Exception as error:  # whatever its parts raise; tokenizers raises Exception itself
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; Transformers' own have no number
            raise
        raise FormatError(
            f"Transformers makes no model of its keys: {type(error).__name__}: {quoted(error, 300)}",
            where=where,
            expected=f"the keys and the vocabulary of one of {', '.join(ARCHITECTURES)}",
            do="Use the safetensors weights of the model.",
        ) from error
