"""What models are fed to compare their logits: natural text, prompts of new tokens, or seeded pictures and sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from suture.errors import SutureError
from suture.verification.configs import at_every_level

Ids = npt.NDArray[np.int64]

PROMPTS = (
    "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Canada is",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. When he died,",
    "Ein Zug fährt um 8:15 Uhr in Hamburg ab und erreicht Berlin um 10:02 Uhr. Die Fahrt dauert",
    "Le chat dort sur le canapé, la pluie tombe sur le toit, et dans la cuisine",
    "今天天气很好,我们打算去公园散步,然后",
    '{"name": "Ada", "born": 1815, "languages": ["English", "French"], "occupation": "',
    "Q: A farmer has 17 sheep, and all but 9 run away. How many are left?\nA: Let us think step by step.",
    "В начале июля, в чрезвычайно жаркое время, под вечер, один молодой человек вышел",
    "El ingrediente principal del gazpacho es",
)
RANDOM_LENGTH = 32
NEW_AT_MOST = 64  # new tokens that are looked at
NEW_PER_PROMPT = 16
_MARKERS = ("image", "video", "audio", "vision", "boi", "eoi", "boa", "eoa")


@dataclass(frozen=True, slots=True)
class Feed:
    """Arguments of a forward pass. `new`: made of new or trained tokens."""

    arguments: Mapping[str, npt.NDArray[Any]]
    new: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What text can be made of: rows of the embedding table, ids with a special meaning, and new or trained ids."""

    rows: int
    markers: frozenset[int]
    new: tuple[int, ...] = ()


def marker_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """Ids that stand for pictures or sounds: text must not hold them."""
    found: set[int] = set()
    for key in _keys(config):
        if key.endswith(("_token_id", "_token_index")) and key.startswith(_MARKERS):
            found |= {v for v in at_every_level(config, key).values() if isinstance(v, int)}
    return frozenset(found)


def _keys(config: Mapping[str, Any]) -> set[str]:
    nested = [_keys(v) for v in config.values() if isinstance(v, Mapping)]
    return set(config).union(*nested)


def token_rows(tokenizer: Any | None, prompts: Iterable[str], vocabulary: Vocabulary, max_length: int) -> list[Ids]:
    """Token ids of the prompts; without a tokenizer, ids drawn from a fixed seed, as many."""
    prompts, rows = list(prompts), []
    ordinary = np.setdiff1d(np.arange(vocabulary.rows), np.array(sorted(vocabulary.markers), np.int64))
    for number, prompt in enumerate(prompts):
        if tokenizer is None:
            drawn = np.random.default_rng(number).choice(ordinary, min(max_length, RANDOM_LENGTH))
            rows.append(drawn.astype(np.int64))
            continue
        ids = np.array(tokenizer(prompt)["input_ids"], np.int64)[:max_length]
        ids = ids[np.isin(ids, ordinary)]
        rows += [ids] if len(ids) else []
    if not rows:
        raise SutureError("none of the prompts gives a token of this model", do="Give other prompts.")
    return rows


def new_token_rows(ordinary: Ids, vocabulary: Vocabulary, max_length: int) -> list[Ids]:
    """Prompts in which new tokens follow a few ordinary ones and each other."""
    new = np.array([i for i in vocabulary.new if 0 <= i < vocabulary.rows], np.int64)
    if len(new) > NEW_AT_MOST:
        new = new[np.linspace(0, len(new) - 1, NEW_AT_MOST).astype(np.int64)]
    start = ordinary[: min(4, max(max_length - 1, 0))]
    size = max(1, min(NEW_PER_PROMPT, max_length - len(start)))
    return [np.concatenate([start, new[at : at + size]]) for at in range(0, len(new), size)]


def feeds(model: Any, texts: Iterable[Ids], new_texts: Iterable[Ids]) -> list[Feed]:
    """The forward passes of a model: one for each text, or one seeded input for models of pictures and sounds.

    Raises:
        SutureError: the model takes something else.
    """
    decodes = bool(getattr(model.config, "is_encoder_decoder", False))
    marked = [*((ids, False) for ids in texts), *((ids, True) for ids in new_texts)]
    if _reads_text(model):
        return [Feed(_text(model, ids, decodes), new) for ids, new in marked]
    main = str(model.main_input_name)
    signal = {main: _signal(model, main)}
    return [Feed({**signal, **_decoder(model, ids)}, new) for ids, new in marked] if decodes else [Feed(signal)]


def leaves_out_signals(model: Any) -> bool:
    """True for a model of text and pictures or sounds, of which only the text is run."""
    return _reads_text(model) and any(name in _parameters(model) for name in ("pixel_values", "input_features"))


def _reads_text(model: Any) -> bool:
    decodes = bool(getattr(model.config, "is_encoder_decoder", False))
    return str(model.main_input_name) == "input_ids" or (not decodes and "input_ids" in _parameters(model))


def _parameters(model: Any) -> Iterable[str]:
    import inspect

    return inspect.signature(model.forward).parameters


def _text(model: Any, ids: Ids, decodes: bool) -> dict[str, npt.NDArray[Any]]:
    arguments: dict[str, npt.NDArray[Any]] = {"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])}
    return {**arguments, **_decoder(model, ids)} if decodes else arguments


def _decoder(model: Any, ids: Ids) -> dict[str, npt.NDArray[Any]]:
    """The same ids for the decoder, after its start token."""
    start = getattr(model.config, "decoder_start_token_id", None)
    return {"decoder_input_ids": np.concatenate([[start if start is not None else ids[0]], ids])[None].astype(np.int64)}


def _signal(model: Any, name: str) -> npt.NDArray[np.float32]:
    """A seeded picture, film, spectrogram or waveform of the size that the config asks for."""
    shape = _signal_shape(model.config, name)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _signal_shape(config: Any, name: str) -> tuple[int, ...]:
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or config.vision_config.image_size
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        frames = (config.num_frames,) if getattr(config, "num_frames", None) else ()
        return (8, *frames, getattr(config, "num_channels", 3), height, width)
    if name == "input_features":
        return (1, config.num_mel_bins, 2 * config.max_source_positions)
    if name == "input_values":
        return (1, 16_000)
    raise SutureError(
        f"the model is fed {name}, for which there is no built-in input",
        expected="input_ids, pixel_values, input_features or input_values",
        do="Verify without --logits: the values of all tensors are compared.",
    )
