"""Models of one class, built on the meta device from many configs, and which configs are refused."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from suture import arch
from suture.arch import meta
from suture.errors import SutureError
from suture.values import Arch, Json, Param, TensorInfo

Sizes = dict[str, int]
Signature = tuple[Any, ...]


@dataclass(frozen=True)
class Subject:
    """A class to describe. `pinned` are fields that keep their default, although Transformers takes other values."""

    model: str
    pinned: tuple[str, ...] = ()

    @functools.cached_property
    def model_class(self) -> Any:
        """The class of Transformers."""
        import transformers

        return getattr(transformers, self.model)

    @property
    def config_class(self) -> Any:
        """The class of its config."""
        return self.model_class.config_class

    @property
    def fields(self) -> list[str]:
        """All fields that the config class declares."""
        return sorted(f.name for f in dataclasses.fields(self.config_class))

    @property
    def layers(self) -> str:
        """The field that holds the number of layers."""
        return self._called("num_hidden_layers")

    @property
    def heads(self) -> str:
        """The field that holds the number of attention heads."""
        return self._called("num_attention_heads")

    @property
    def width(self) -> str:
        """The field that holds the size of hidden states."""
        return self._called("hidden_size")

    @property
    def assumed(self) -> list[str]:
        """What is demanded of sizes, although some classes take others: models that were trained are so."""
        return [f"{self.width}%{self.heads}"]

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of fields."""
        return {k: v for k, v in sorted(self.config_class.attribute_map.items()) if k != v}

    def _called(self, name: str) -> str:
        return str(self.config_class.attribute_map.get(name, name))

    def config(self, **changes: Any) -> Json:
        """A config of two layers, as it would stand in config.json."""
        start = {"architectures": [self.model], "model_type": self.config_class.model_type, self.layers: 2}
        return {**start, "pad_token_id": None, **changes}

    def without(self, key: str, **changes: Any) -> Json:
        """The same without a key."""
        return {k: v for k, v in self.config(**changes).items() if k != key}

    def resolved(self, config: Json) -> Any:
        """The config object, or None when it is refused."""
        try:
            with meta.accepted(self.model), meta.quiet():
                return self.config_class(**copy.deepcopy(config))  # it writes into what is nested
        except SutureError:
            return None

    def signature(self, config: Json) -> Signature | None:
        """All that a description says but for its parts, or None when the config is refused."""
        try:
            model = meta.build(self.model_class, config).model
        except SutureError:
            return None
        return tuple(meta.params(model).items()), meta.tied_groups(model), meta.embeddings(model)


@dataclass(frozen=True)
class Probe:
    """A config that was built: its sizes, and the descriptions of two checkpoints of it.

    `own` has the names of the class, `saved` those that Transformers writes.
    """

    sizes: Mapping[str, int]
    own: Arch
    saved: Arch
    tensors: Mapping[str, TensorInfo]  # of `saved`


def probe(subject: Subject, config: Json, sizes: Mapping[str, int]) -> Probe | None:
    """The descriptions of a config, or None when it is refused."""
    try:
        model = meta.build(subject.model_class, config).model
    except SutureError:
        return None
    own = headers({n: p.shape for n, p in meta.params(model).items()})
    saved = saved_headers(model)
    return Probe(sizes, arch.build(config, own), arch.build(config, saved), saved)


def saved_headers(model: Any) -> dict[str, TensorInfo]:
    """What Transformers would write of a model."""
    from transformers.core_model_loading import revert_weight_conversion

    saved = revert_weight_conversion(model, model.state_dict())
    return headers({n: tuple(t.shape) for n, t in saved.items()})


def headers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    """Headers of tensors that exist nowhere."""
    return {n: TensorInfo(n, "BF16", s, "model.safetensors", 0, 0) for n, s in shapes.items()}


def patterns(params: Mapping[str, Param]) -> list[tuple[str, Param]]:
    """Parameters with `*` for their layer; those of the first layer stand for all, which must not differ.

    Raises:
        ValueError: the layers differ.
    """
    found: dict[str, Param] = {}
    layers: dict[str, set[str]] = {}
    for name, param in params.items():
        pattern, number = starred(name)
        if number:
            layers.setdefault(pattern, set()).add(number)
        first = found.setdefault(pattern, param)
        if (first.shape, first.kind, first.transposed) != (param.shape, param.kind, param.transposed):
            raise ValueError(f"{name} is another in each layer")
    if len({frozenset(n) for n in layers.values()}) > 1:
        raise ValueError(f"the layers have other parameters: {layers}")
    return list(found.items())


def starred(name: str) -> tuple[str, str]:
    """A name with `*` for its first number, and that number."""
    words = name.split(".")
    at = next((i for i, w in enumerate(words) if w.isdecimal()), None)
    if at is None:
        return name, ""
    return ".".join([*words[:at], "*", *words[at + 1 :]]), words[at]


def draw(rng: random.Random, subject: Subject, keys: Sequence[str]) -> Sizes:
    """Random sizes: small numbers with many divisors, of which the width is a multiple of the number of heads."""
    sizes = {k: rng.choice((1, 2, 3, 4, 6, 12)) * rng.choice((5, 6, 8, 12)) for k in keys}
    width = sizes[subject.heads] * rng.choice((5, 6, 8, 12))
    return {**sizes, subject.layers: rng.choice((2, 3)), subject.width: width}
