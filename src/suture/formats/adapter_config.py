"""Types of the fields of an adapter_config.json: what reads them later may rely on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from suture.errors import FormatError
from suture.formats.listing import ADAPTER_CONFIG
from suture.values import Json

LARGEST = 2**53  # whole numbers from there on are not exact as floats; NaN and infinity are not below it either


def check_types(config: Json) -> None:
    """Refuse fields that decide what an adapter changes and have a type that no version of PEFT writes.

    A field that is missing or null is right: PEFT has a default for it. Fields of methods other than LoRA may share a
    name and mean something else (AdaLoRA's rank_pattern holds lists), so of those only the outer type is looked at.

    Raises:
        FormatError: names the first such field.
    """
    is_lora = config.get("peft_type") == "LORA"
    for field, (is_right, expected) in (_FIELDS | (_OF_LORA if is_lora else {})).items():
        value = config.get(field)
        if value is not None and not is_right(value):
            raise FormatError(
                f"{field} is {repr(value)[:80]}",
                where=ADAPTER_CONFIG,
                expected=f"{expected}, or no such field",
                do="Use the config that was saved with the adapter.",
            )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number that a float can hold; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(item) for item in value)


def _is_text_or_list(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value)


def _is_whole_or_list(value: Any) -> bool:
    return _is_whole(value) or _are_whole(value)


def _is_tokens(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _are_whole(ids) for name, ids in value.items())
    return _are_whole(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_table_of_numbers(value: Any) -> bool:
    return _is_table(value) and all(is_number(item) for item in value.values())


_Check = tuple[Callable[[Any], bool], str]
_NAMES: _Check = (_is_text_or_list, "a name or a list of names")
_FIELDS: dict[str, _Check] = {
    **dict.fromkeys(("target_modules", "exclude_modules", "target_parameters", "modules_to_save"), _NAMES),
    "layers_pattern": _NAMES,
    "layers_to_transform": (_is_whole_or_list, "a whole number or a list of them"),
    "trainable_token_indices": (_is_tokens, "a list of whole numbers, or a table of such lists by module"),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (_is_table, "a table of module → number")),
}
_OF_LORA: dict[str, _Check] = {
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (_is_table_of_numbers, "a table of module → number")),
    **dict.fromkeys(("r", "lora_alpha"), (is_number, "a number")),
}
