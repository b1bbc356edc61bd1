"""# W707 quantization-contradicts

## What it finds
A config that says "quantised" over weights that are not, quantised weights under a config that says nothing of it or
names another method, and packed weights whose scales are missing.

## Why it matters
Quantised weights are small integers with scales beside them; only together do they mean anything. If the config is
silent, a loader takes the integers for the weights or does not find them, and draws the layer at random. If the
config says quantised and the weights are plain, the loader looks for scales in vain. Merges that dequantise and
forget the config, or copy the base's config onto other weights, leave such folders.

## How it is detected
`quantization_config` is looked for at every level of config.json; other tools say it in a file of their own, such as
ModelOpt's `hf_quant_config.json`, which vLLM reads. Each method leaves its own names in the headers:
`.absmax` and `.quant_state` (bitsandbytes), `.qweight` and `.qzeros` (GPTQ, AWQ), `.weight_scale` and
`.weight_packed` (FP8, compressed-tensors), `_blocks` and `_scales` (MXFP4), `.W_q` (HQQ), `.weight._data` (quanto),
`._weight_qdata` (torchao). Methods that are not in this list are not judged.

## How to fix
If the weights were dequantised: remove `quantization_config` at the level that is named. If they are quantised: bring
back the part of the base's config. If scales are missing, the weights are lost: save the model again.

## References
- unslothai/unsloth-zoo#803: a merged 16-bit model whose config still says quantised
- unslothai/unsloth-zoo#808: the same inside `text_config`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suture.formats.model_config import at_every_level
from suture.formats.quantized import DESCRIPTIONS
from suture.formats.quantized.signs import (
    BITSANDBYTES,
    HQQ,
    MXFP4,
    PACKED_COLUMNS,
    QUANTO,
    SCALED,
    TORCHAO,
)
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding, Json

KEYS = ("quantization_config", "compression_config")
LEAVES = {
    "bitsandbytes": BITSANDBYTES, "gptq": PACKED_COLUMNS, "awq": PACKED_COLUMNS, "fp8": SCALED, "fbgemm_fp8": SCALED,
    "compressed-tensors": SCALED, "modelopt": SCALED, "mxfp4": MXFP4,
    "hqq": HQQ, "quanto": QUANTO, "torchao": TORCHAO,
}  # fmt: skip


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """The config against the names and types in the headers, both ways."""
    if not model.tensors or not model.config:
        return
    schemes = model.quantized.schemes
    said = _said(model.config)
    beside = {name: method for name, method in DESCRIPTIONS.items() if name in model.documents}
    for where, method in [*((f"config.json: {path}", m) for path, m in sorted(said.items())), *beside.items()]:
        wanted = LEAVES.get(method)
        if wanted and wanted not in schemes:
            really = f"names of {listed(schemes)}" if schemes else "plain weights"
            found = f"it says {method}, and the files hold {really}"
            do = "Remove it if the weights were dequantised; else bring back the config of these weights."
            yield RULE.finding(where, found, f"weights as {method} leaves them", do)
    if schemes and not said and not beside:
        names = sorted(model.quantized.siblings)
        found = (
            f"{len(names)} tensors belong to quantised weights ({listed(schemes)}), and config.json says nothing of it"
        )
        do = "Bring back quantization_config; a loader now takes packed numbers for weights, or finds none."
        yield RULE.finding(f"{model.tensors[names[0]].file}: {names[0]}", found, "a quantization_config", do)
    lonely = model.quantized.lonely
    if lonely and (not said or BITSANDBYTES in {LEAVES.get(method) for method in said.values()}):
        tensor = model.tensors[lonely[0]]
        found = f"{len(lonely)} weights are stored as {tensor.dtype} without anything that tells their scale: "
        do = "Save the model again: what the numbers mean is not in the files."
        yield RULE.finding(f"{tensor.file}: {lonely[0]}", found + listed(lonely), "floats, or scales beside them", do)


def _said(config: Json) -> dict[str, str]:
    """Where a config says quantised, and by which method."""
    return {
        ".".join(path): str(value.get("quant_method", "an unknown method"))
        for path, value in at_every_level(config, *KEYS)
        if isinstance(value, Mapping) and value
    }


RULE = Rule("W707", "quantization-contradicts", "error", model=check_model, modes=("F17", "F41"))
