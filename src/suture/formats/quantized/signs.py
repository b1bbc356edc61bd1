"""What names and types of stored tensors tell of quantised weights: which are packed, and which hold their scales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from suture.values import TensorInfo

BITSANDBYTES, PACKED_COLUMNS, SCALED, MXFP4 = "bitsandbytes", "GPTQ or AWQ", "scaled 8- or 4-bit", "MXFP4"
HQQ, QUANTO, TORCHAO = "HQQ", "quanto", "torchao"

# Each pattern matches a tensor that stands beside a packed weight; what it keeps is the weight's module.
_SIBLINGS = (
    (QUANTO, re.compile(r"^(.+)\.weight\._(?:data(?:\._data)?|scale|shift)$")),
    (TORCHAO, re.compile(r"^(.+)\._weight_\w+$")),
    (HQQ, re.compile(r"^(.+)\.(?:W_q|scale|zero|shape|nbits|group_size|axis|packing|compute_dtype)$")),
    (
        HQQ,
        re.compile(
            r"^(.+)\.(?:channel_wise|encoded_state_dict|offload_meta|optimize|quant_(?:scale|zero)|round_zero)$"
        ),
    ),
    (HQQ, re.compile(r"^(.+)\.(?:stores_quant_config|unpack_view_dtype|view_as_float)$")),
    (BITSANDBYTES, re.compile(r"^(.+)\.weight\.(?:nested_)?(?:absmax|quant_map)$")),
    (BITSANDBYTES, re.compile(r"^(.+)\.weight\.quant_state\.bitsandbytes__\w+$")),
    (BITSANDBYTES, re.compile(r"^(.+)\.(?:SCB|weight_format)$")),
    (PACKED_COLUMNS, re.compile(r"^(.+)\.(?:qweight|qzeros|scales|g_idx)$")),
    (SCALED, re.compile(r"^(.+)\.(?:weight_(?:packed|scale|scale_inv|scale_2|zero_point|shape|global_scale|g_idx))$")),
    (SCALED, re.compile(r"^(.+)\.(?:input|output|k|v)_(?:scale|global_scale|zero_point)$")),
    (MXFP4, re.compile(r"^(.+)_(?:blocks|scales)$")),
)
# A sibling's name alone can be a parameter of some class (`scales`): of these, one must be there as well.
_PROOF = {
    QUANTO: ("{}.weight._scale",),
    TORCHAO: ("{}._weight_qdata",),
    HQQ: ("{}.W_q",),
    PACKED_COLUMNS: ("{}.qweight",),
    SCALED: ("{}.weight_packed", "{}.weight_scale", "{}.weight_scale_inv"),
    MXFP4: ("{}_blocks",),
}
_PACKED_TYPES = ("U8", "I8", "I32")


@dataclass(frozen=True, slots=True)
class Quantized:
    """Signs of quantised weights in the headers of a model."""

    schemes: Mapping[str, tuple[str, ...]]  # scheme → the tensors that show it
    owners: frozenset[str]  # modules (MXFP4: parameters) whose weight is packed
    lonely: tuple[str, ...]  # weights stored as packed integers without anything that tells their scale

    @property
    def siblings(self) -> frozenset[str]:
        """All tensors beside packed weights."""
        return frozenset(name for names in self.schemes.values() for name in names)


def find_quantized(tensors: Mapping[str, TensorInfo]) -> Quantized:
    """The signs of quantised weights among these tensors."""
    schemes: dict[str, list[str]] = {}
    owners: set[str] = set()
    for name in sorted(tensors):
        for scheme, pattern in _SIBLINGS:
            if (match := pattern.match(name)) and _is_proved(scheme, match[1], tensors):
                schemes.setdefault(scheme, []).append(name)
                owners.add(match[1])
                break
    packed = [n for n, t in tensors.items() if n.endswith(".weight") and t.dtype in _PACKED_TYPES]
    lonely = sorted(n for n in packed if n.removesuffix(".weight") not in owners)
    return Quantized({s: tuple(names) for s, names in schemes.items()}, frozenset(owners), tuple(lonely))


def _is_proved(scheme: str, module: str, tensors: Mapping[str, TensorInfo]) -> bool:
    proofs = _PROOF.get(scheme)
    return proofs is None or any(proof.format(module) in tensors for proof in proofs)
