"""What the zoo's models are fed: deterministic inputs that touch every token of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Inputs = Mapping[str, torch.Tensor]
Feed = Callable[[Any, torch.Generator], dict[str, torch.Tensor]]

IMAGE, IMAGE_START, IMAGE_END, VIDEO = 90, 91, 92, 93  # ids that multimodal models give a meaning; never drawn as text


def text(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Every token once, in two rows; tokens that were added to the vocabulary are among them."""
    return _with_mask(_shuffled_tokens(model, rng))


def text_to_text(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Every token once on each side."""
    return {**text(model, rng), "decoder_input_ids": _shuffled_tokens(model, rng)}


def speech_to_text(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Two spectrograms of full length, and every token on the decoder's side."""
    n_frames = 2 * model.config.max_source_positions
    features = torch.randn(2, model.config.num_mel_bins, n_frames, generator=rng)
    return {"input_features": features, "decoder_input_ids": _shuffled_tokens(model, rng)}


def waveform(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Two stretches of sound."""
    return {"input_values": torch.randn(2, 96, generator=rng)}


def image(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Four pictures."""
    size = model.config.image_size
    return {"pixel_values": torch.randn(4, 3, size, size, generator=rng)}


def video(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Four short films."""
    size = model.config.image_size
    return {"pixel_values": torch.randn(4, model.config.num_frames, 3, size, size, generator=rng)}


def gemma3_image(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Two rows of text, each with a picture in it."""
    words = _shuffled_tokens(model, rng, without={IMAGE, IMAGE_START, IMAGE_END})
    ids = _insert(words, torch.full((model.config.mm_tokens_per_image,), IMAGE))
    size = model.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size, generator=rng)
    return {**_with_mask(ids), "token_type_ids": (ids == IMAGE).long(), "pixel_values": pixels}


def qwen_image(model: Any, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Two rows of text, each with a picture of 4 × 4 patches in it, which are merged to four tokens."""
    vision = model.config.vision_config
    words = _shuffled_tokens(model, rng, without={IMAGE, IMAGE_START, IMAGE_END, VIDEO})
    ids = _insert(words, torch.tensor([IMAGE_START, *[IMAGE] * 4, IMAGE_END]))
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        **_with_mask(ids),
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.randn(2 * 16, patch, generator=rng),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 4]]),
    }


def _shuffled_tokens(model: Any, rng: torch.Generator, without: set[int] = frozenset()) -> torch.Tensor:
    n_tokens = model.get_input_embeddings().weight.shape[0]
    ids = [i for i in torch.randperm(n_tokens, generator=rng).tolist() if i not in without]
    return torch.tensor(ids[: len(ids) // 2 * 2]).view(2, -1)


def _with_mask(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _insert(words: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    return torch.cat([words[:, :4], picture.repeat(2, 1), words[:, 4:]], dim=1)
