"""What of an adapter is as it was asked for and easily meant otherwise: ends of the vocabulary that part or share."""

from __future__ import annotations

from collections.abc import Iterable

from suture.training.live import Live


def tied_ends(live: Live) -> tuple[str, ...]:
    """Statements about tied ends of the vocabulary, where the adapter touches them."""
    together = bool(live.config.get("ensure_weight_tying"))
    return tuple(
        text
        for tie in live.arch.ties
        for text in (_shared(tie.members, live) if together else _parted(tie.members, live))
    )


def _parted(members: Iterable[str], live: Live) -> Iterable[str]:
    ends = [member.rpartition(".")[0] for member in members]
    touched = {end: live.of_module(end) for end in ends}
    apart = [end for end, held in touched.items() if held]
    stores = [{id(p) for p in held.values()} for held in touched.values()]
    if apart and not all(store == stores[0] for store in stores):
        yield (
            f"{' and '.join(ends)} are one tensor in the base; {' and '.join(apart)} will train apart. "
            "A merge must write both ends and turn the tie off, as suture merge does; PEFT's changes both"
        )


def _shared(members: Iterable[str], live: Live) -> Iterable[str]:
    """LoRA on tied ends in float32: two parameters that are views of the same memory."""
    held = [live.of_module(member.rpartition(".")[0]) for member in members]
    parameters = {id(p): p for tensors in held for key, p in tensors.items() if ".lora_" in key}.values()
    stores = {p.untyped_storage()._cdata for p in parameters}
    if len(stores) < len(parameters):
        yield (
            f"the LoRA factors of {' and '.join(members)} are views of one memory (ensure_weight_tying): "
            "an optimiser that holds both moves it twice a step"
        )
