"""# W709 token-ids

## What it finds
Ids of the tokens that begin, end and fill up a text which lie outside the vocabulary, or which config.json,
generation_config.json and the tokenizer tell differently. Also a language model without a tokenizer.

## Why it matters
Generation stops at the end token. If the model was trained with the tokenizer's end token and generation_config.json
names another one, the answer never ends. An id beyond the last row of the embedding crashes on the first batch that
is padded.

## How it is detected
From the JSON files and the tokenizer's vocabulary. A list of end tokens is a set: two files agree if they share one.
The tokenizer's end token should be among those of the config or of generation_config.json.

## How to fix
Copy generation_config.json and the tokenizer from the folder in which training ended, and write the end token that
training used into both configs. In a chat model that is the token that ends a turn.

## References
- hiyouga/LLaMA-Factory#4408: end tokens after a merge
- unslothai/unsloth#188: generation that does not stop
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from suture.formats.model_config import text_levels
from suture.formats.vocabulary import TOKENIZER_FILES, token_text
from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Ids outside the vocabulary, ends that disagree, and no tokenizer."""
    yield from _outside(model)
    yield from _ends(model)
    sizes = any(level.get("vocab_size") for level in text_levels(model.config))
    has_text = model.arch is not None and model.arch.input_embedding is not None and sizes
    if has_text and not TOKENIZER_FILES & model.files.keys():
        found, do = "there is no tokenizer", "Copy the tokenizer that training used, before others look for one."
        yield RULE.finding("tokenizer.json", found, "one beside the weights", do, severity="info")


def _outside(model: ModelFolder) -> Iterable[Finding]:
    rows = _rows(model)
    for file, config in (("config.json", model.config), (GENERATION, model.documents.get(GENERATION, {}))):
        for field in FIELDS if rows else ():
            wrong = sorted(i for i in _ids(config.get(field)) if i >= rows or i < -1)
            if wrong:
                found = f"{listed([str(i) for i in wrong])}, and the embedding has rows 0 to {rows - 1}"
                do = "Put the id of the tokenizer's token there; or resize the embedding, if the token is new."
                yield RULE.finding(f"{file}: {field}", found, f"an id below {rows}", do, severity="error")


def _ends(model: ModelFolder) -> Iterable[Finding]:
    levels = (_ids(level.get("eos_token_id")) for level in text_levels(model.config))
    ours = next((ids for ids in levels if ids), set[int]())
    theirs = _ids(model.documents.get(GENERATION, {}).get("eos_token_id"))
    if ours and theirs and not ours & theirs:
        found = f"generation ends at {_shown(theirs)}, and config.json says {_shown(ours)}"
        do = "Write the end token that training used into both files."
        yield RULE.finding(f"{GENERATION}: eos_token_id", found, "one end token that both know", do)
    token = token_text(model.documents.get(TOKENIZER, {}).get("eos_token"))
    number = (model.vocabulary or {}).get(token) if token is not None else None
    if number is not None and (ours | theirs) and number not in ours | theirs:
        found = f"the tokenizer ends texts with {token!r} ({number}), and the configs say {_shown(ours | theirs)}"
        do = f"Add {number} to eos_token_id, if training ended its texts with it."
        yield RULE.finding(f"{TOKENIZER}: eos_token", found, "an end token that the configs know", do)


def _rows(model: ModelFolder) -> int:
    """Rows of the input embedding; 0 where there is none, or where it is packed."""
    tensor = model.tensor_of(f"{model.arch.input_embedding}.weight") if model.arch else None
    is_matrix = tensor is not None and len(tensor.shape) == 2 and not model.quantized.lonely
    return tensor.shape[0] if tensor is not None and is_matrix else 0


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {v for v in values if isinstance(v, int) and not isinstance(v, bool)}


def _shown(ids: set[int]) -> str:
    return listed([str(i) for i in ids])


RULE = Rule("W709", "token-ids", "warning", model=check_model, modes=("F47",))
