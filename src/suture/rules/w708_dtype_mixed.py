"""# W708 dtype-mixed

## What it finds
Matrices of several floating-point types in one model, and matrices of another type than config.json says.

## Why it matters
A merge that writes float32 where the base was bfloat16 doubles the size on the disk and, in programs that follow the
files, in memory. Where the config says a smaller type than the files hold, a loader rounds all weights once more. A
head or an embedding that alone is in another type shows that it came from the adapter as it was: some programs stop
on it.

## How it is detected
From the headers: the types of all matrices, weighted by their size, against `dtype` (or `torch_dtype`) in
config.json. Norms, biases and other vectors do not count, because many models keep them in float32. A smaller part of
float32 matrices, such as routers, is only told as information, unless it is the embedding or the head.

## How to fix
Save the model in one type (`model.to(torch.bfloat16)`), or put the type of the files into config.json. `suture merge`
keeps the type that each tensor has in the base.

## References
- hiyouga/LLaMA-Factory#3137: merged models of double the size
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from suture.formats.dtypes import DTYPES
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding, Severity, TensorInfo

NAMES = {d.torch_name: d.name for d in DTYPES.values() if d.computable}


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """The type of most matrices against the config, and the matrices of other types."""
    if model.quantized.schemes or model.quantized.lonely:
        return
    matrices = [t for t in model.tensors.values() if len(t.shape) > 1 and DTYPES[t.dtype].computable]
    values: Counter[str] = Counter()
    for tensor in matrices:
        values[tensor.dtype] += tensor.n_values
    if not values:
        return
    most = values.most_common(1)[0][0]
    said = model.config.get("dtype") or model.config.get("torch_dtype")
    if isinstance(said, str) and NAMES.get(said.removeprefix("torch."), most) != most:
        yield _other(model, said, most, values[most])
    others = [t for t in matrices if t.dtype != most]
    if others:
        yield _mixed(model, others, most)


def _other(model: ModelFolder, said: str, most: str, n_values: int) -> Finding:
    wanted = NAMES[said.removeprefix("torch.")]
    times = DTYPES[most].bits / DTYPES[wanted].bits
    size = f", {times:g} times the size" if times > 1 else ""
    field = "dtype" if model.config.get("dtype") else "torch_dtype"
    found = f"it says {said}, and {n_values:,} values of the matrices are stored as {most}{size}"
    do = "Save the model in the type that the config says, or put the type of the files into the config."
    return RULE.finding(f"config.json: {field}", found, most, do)


def _mixed(model: ModelFolder, others: list[TensorInfo], most: str) -> Finding:
    names = sorted(t.name for t in others)
    ends = {f"{m}.weight" for m in (model.arch.input_embedding, model.arch.output_embedding)} if model.arch else set()
    end_tensors = {tensor.name for end in ends if (tensor := model.tensor_of(end))}
    is_usual = all(t.dtype == "F32" for t in others) and not end_tensors & set(names)
    dtypes = sorted({t.dtype for t in others})
    found = f"{len(names)} matrices are stored as {listed(dtypes)}, and the others as {most}: {listed(names)}"
    do = "Nothing, if the class keeps these in float32; else save the model in one type."
    severity: Severity = "info" if is_usual else "warning"
    return RULE.finding(f"{others[0].file}: {names[0]}", found, "one type for all matrices", do, severity=severity)


RULE = Rule("W708", "dtype-mixed", "warning", model=check_model, modes=("F57",))
