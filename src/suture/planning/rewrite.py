"""A repaired adapter as a plan: its tensors under their new names, copied, and a config. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from suture.formats.ledger import NAME as LEDGER
from suture.formats.listing import ADAPTER_CONFIG
from suture.planning import layout
from suture.planning.build import SCHEMA, Identity
from suture.values import Adapter, Json, Operation, Options, Plan, SideFile, Source, TensorInfo


def plan_adapter(
    adapter: Adapter, made: Iterable[Operation], identity: Identity, options: Options, notes: tuple[str, ...]
) -> Plan:
    """What writes an adapter: its tensors by their names, those in `made` computed, all else copied byte for byte.

    Args:
        adapter: the repaired one; its tensors lie in the file of the damaged one.
        made: operations whose tensor is a key of the new file.
    """
    made = tuple(made)
    travelling = (name for name in adapter.side_files if name != LEDGER)  # which vouches for the files as they were
    names = {op.tensor for op in made}
    kept = sorted((t for t in adapter.tensors.values() if t.name not in names), key=lambda t: t.begin)
    laid = layout.lay_out([*(_copy(t) for t in kept), *made], {adapter.file: {"format": "pt"}})
    return Plan(
        schema=SCHEMA,
        base_fingerprint=identity.base_fingerprint,
        adapter_sha256=identity.adapter_sha256,
        options=options,
        operations=laid.operations,
        files=laid.files,
        texts={ADAPTER_CONFIG: config_text(adapter.config)},
        side_files=tuple(SideFile(name, "adapter") for name in travelling),
        untied=(),
        notes=notes,
    )


def config_text(config: Json) -> str:
    """adapter_config.json."""
    return json.dumps(config, indent=2)  # in its order: of patterns that match the same module, the first one counts


def _copy(tensor: TensorInfo) -> Operation:
    return Operation(
        tensor=tensor.name,
        why="copy",
        source=Source("adapter", tensor),
        terms=(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        cols=tensor.shape[-1] if len(tensor.shape) > 1 else 1,
        block_rows=1,
        file=tensor.file,
        begin=0,
        end=0,
    )
