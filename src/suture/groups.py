"""The groups that trainable tensors are told in: low-rank factors, the two ends of the vocabulary, and the rest."""

from __future__ import annotations

from suture.rewriting import PREFIX
from suture.values import Arch

GROUPS = ("LoRA", "embeddings", "head", "tokens", "biases", "norms and others")
TOKENS = ".token_adapter.trainable_tokens_delta"


def group_of(key: str, arch: Arch) -> str:
    """The group of a tensor of an adapter, by its key in the file."""
    module = key.removeprefix(PREFIX).rpartition(".")[0]
    if ".lora_" in key:
        return "LoRA"
    if key.endswith(TOKENS):
        return "tokens"
    if key.endswith(".bias") and module not in vocabulary_ends(arch):
        return "biases"
    if module == arch.output_embedding:
        return "head"
    return "embeddings" if module in vocabulary_ends(arch) else "norms and others"


def vocabulary_ends(arch: Arch) -> set[str]:
    """Modules at the two ends of the vocabulary, with those that are tied to them."""
    ends = {module for module in (arch.input_embedding, arch.output_embedding) if module}
    for tie in arch.ties:
        modules = {member.rpartition(".")[0] for member in tie.members}
        if modules & ends:
            ends |= modules
    return ends
