"""# R805 shards-left

## What it finds
A checkpoint that holds the parts of several processes and no whole adapter: folders of DeepSpeed or FSDP, files with
a rank in their names; and an adapter file whose tensors are empty.

## Why it matters
When the parameters are split among processes, each process has only its part. A save that does not gather them first
writes an adapter file with the right names and nothing in it. Loaders only warn, and the merged model is the base.

## How it is detected
From the names of files and folders, and from shapes with an axis of length zero. Sharded state beside a whole adapter
is healthy: that is how the optimiser of such a run is saved.

## How to fix
Gather before saving: `stage3_gather_16bit_weights_on_model_save` for DeepSpeed, `state_dict_type: FULL_STATE_DICT`
for FSDP. A checkpoint that has only parts can be put together with DeepSpeed's `zero_to_fp32.py`, or by resuming the
run with as many processes as it had and saving again.

## References
- huggingface/trl#4416, huggingface/peft#460: empty adapters under ZeRO-3
- huggingface/peft#453: factors that were not gathered
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from suture.formats.listing import ADAPTER_WEIGHTS
from suture.rules.base import Rule, listed
from suture.run_folder import RunFolder
from suture.values import Finding

_FOLDER = re.compile(r"^(global_step\d+|pytorch_model_fsdp_\d+|.*_rank_?\d+)$")
_FILE = re.compile(r"^(adapter_model|model|pytorch_model).*rank.*\.(safetensors|bin|pt)$|_model_states\.pt$")
DO = "Gather the parameters onto one process before saving, and save again."


def check_run(run: RunFolder) -> Iterable[Finding]:
    """Parts instead of an adapter, and an adapter without values."""
    parts = [f"{name}/" for name in run.folders if _FOLDER.match(name)]
    parts += [name for name in run.files if _FILE.search(name)]
    has_model = any(
        name.startswith(("model", "pytorch_model", "adapter_model")) for name in run.files if name not in parts
    )
    if parts and run.adapter is None and not has_model and ADAPTER_WEIGHTS not in run.unreadable:
        found = f"there are parts of several processes ({listed(parts)}), and no whole adapter"
        yield RULE.finding(parts[0], found, ADAPTER_WEIGHTS, DO)
    if run.adapter is None:
        return
    tensors = run.adapter.tensors
    hollow = [name for name, tensor in tensors.items() if tensor.n_values == 0]
    if hollow:
        found = f"{len(hollow)} of {len(tensors)} tensors have no values: {listed(hollow)}"
        yield RULE.finding(f"{run.weights}: {hollow[0]}", found, "no axis of length 0", DO)
    elif not tensors:
        yield RULE.finding(run.weights, "the file holds no tensors", "the factors of at least one module", DO)


RULE = Rule("R805", "shards-left", "error", run=check_run, modes=("F21",))
