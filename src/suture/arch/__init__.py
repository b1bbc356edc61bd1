"""What a model is, from its config and the names in its checkpoint: no weight is read, and often no library loaded."""

from __future__ import annotations

from collections.abc import Mapping

from suture.arch import cache as _cache
from suture.arch import table as _table
from suture.values import Arch, Json, Part, TensorInfo

__all__ = ["build", "describe"]


def describe(config: Json, tensors: Mapping[str, TensorInfo], *, cache: bool = True) -> Arch:
    """Names, shapes, kinds and ties of the class a config names, and how the checkpoint's tensors make it up.

    Args:
        tensors: of the checkpoint, by name; may be empty when there is only a config.
        cache: whether an earlier description of the same config and headers may be used, and this one kept, where
            the table of known classes does not answer.

    Raises:
        FormatError: Transformers rejects the config.
        MissingExtra: the model class needs a package that is not installed.
    """
    known = _table.lookup(config, tensors)
    if known is not None:
        return known
    if not cache:
        return build(config, tensors)
    key = _cache.key_of(config, tensors)
    known = _cache.load(key)
    if known is not None:
        return known
    arch = build(config, tensors)
    _cache.save(key, arch)
    return arch


def build(config: Json, tensors: Mapping[str, TensorInfo]) -> Arch:
    """The same from Transformers itself, which builds the class: what the table is made from and compared with.

    Raises:
        FormatError: Transformers rejects the config.
        MissingExtra: the model class needs a package that is not installed.
    """
    from suture.arch import meta
    from suture.arch.headers import read_headers
    from suture.arch.names import NotExpressible, follow
    from suture.arch.ties import find_ties

    model_class = meta.find_class(config)
    if model_class is None:
        return read_headers(config, tensors)
    built = meta.build(model_class, config)
    model = built.model
    params = meta.params(model)
    found, opaque, unknown = meta.routes(model, list(tensors))
    sources, targets = {n: t.shape for n, t in tensors.items()}, {n: p.shape for n, p in params.items()}
    parts: list[Part] = []
    for route in found:
        try:
            parts += follow(route, sources, targets)
        except NotExpressible as reason:
            opaque |= {n: str(reason) for names in route.sources.values() for n in names}
    ties, flags = find_ties(model_class, built, config)
    inputs, outputs = meta.embeddings(model)
    return Arch(
        model_class=model_class.__name__,
        source=f"transformers {meta.version()}",
        params=params,
        parts=tuple(sorted(parts, key=lambda p: (p.tensor, p.param, p.rows or (0, 0)))),
        ties=ties,
        tie_flags=flags,
        input_embedding=inputs,
        output_embedding=outputs,
        opaque=dict(sorted(opaque.items())),
        unknown=unknown,
    )
