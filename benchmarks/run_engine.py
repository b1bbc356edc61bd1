"""Merge with the engine alone: a plan made by hand for a Llama and a LoRA, without checks and without verification.

For bench_merge.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from suture import execute
from suture.codec import digest
from suture.formats import read_adapter, read_checkpoint
from suture.planning import layout
from suture.values import (
    Adapter,
    Checkpoint,
    Operation,
    Options,
    Plan,
    Running,
    Source,
    TensorInfo,
    Term,
    Verdict,
    View,
)

PREFIX = "base_model.model."


def terms_of(tensor: TensorInfo, adapter: Adapter, scale: float) -> tuple[Term, ...]:
    """The LoRA of a tensor, if it has one."""
    module = tensor.name.removesuffix(".weight")
    a, b = (adapter.tensors.get(f"{PREFIX}{module}.lora_{f}.weight") for f in "AB")
    if a is None or b is None:
        return ()
    return (Term("lora", module, {"A": View.whole(a), "B": View.whole(b)}, scale, 0, tensor.shape[0], a.shape[0]),)


def plan_of(checkpoint: Checkpoint, adapter: Adapter) -> Plan:
    """Add every LoRA of the adapter, copy the rest."""
    scale = adapter.config["lora_alpha"] / adapter.config["r"]
    operations = []
    for tensor in sorted(checkpoint.tensors.values(), key=lambda t: (t.file, t.begin)):
        terms = terms_of(tensor, adapter, scale)
        operations.append(
            Operation(
                tensor=tensor.name,
                why="merge" if terms else "copy",
                source=Source("base", tensor),
                terms=terms,
                dtype=tensor.dtype,
                shape=tensor.shape,
                cols=tensor.shape[-1],
                block_rows=1,
                file=tensor.file,
                begin=0,
                end=0,
            )
        )
    metadata: Mapping[str, Mapping[str, str]] = {s.name: s.metadata for s in checkpoint.shards}
    placed = layout.lay_out(operations, metadata)
    return Plan(
        schema=1,
        base_fingerprint="",
        adapter_sha256="",
        options=Options(),
        operations=placed.operations,
        files=placed.files,
        texts={},
        side_files=(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--no-hash", action="store_true")
    parser.add_argument("--no-fsync", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    checkpoint, adapter = read_checkpoint(args.base), read_adapter(args.adapter)
    plan = plan_of(checkpoint, adapter)
    ready = time.perf_counter()
    inputs = execute.Inputs(checkpoint, adapter)
    running = Running(workers=args.workers, durable=not args.no_fsync, hashes=not args.no_hash)
    staged = execute.run(plan, inputs, args.out, running)
    execute.publish(staged, Verdict(True, ()))
    end = time.perf_counter()
    digests = digest(dict(staged.receipt.sha256))[:16]
    print(f"headers and plan {ready - begin:.2f} s, engine {end - ready:.2f} s, output {digests}", file=sys.stderr)


if __name__ == "__main__":
    main()
