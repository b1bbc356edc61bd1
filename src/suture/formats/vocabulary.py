"""The vocabulary of a tokenizer, from its files alone: token → id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.errors import FormatError
from suture.formats.files import quoted, read_lines
from suture.formats.jsonfile import MAX_JSON_BYTES, read_json_object

MAX_IDS = 2**31  # of tokens; every tokenizer's ids fit in 32 bits

# Files that together are a tokenizer; anything else beside a model is not.
TOKENIZER_FILES = frozenset({
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "target.spm",
})  # fmt: skip
TEMPLATE_FILES = frozenset({"chat_template.jinja", "chat_template.json"})


def read_vocabulary(folder: Path) -> Mapping[str, int] | None:
    """Token → id of the tokenizer in a folder; None when there is none that can be read as text.

    Raises:
        FormatError: a tokenizer file is malformed.
    """
    if (folder / "tokenizer.json").is_file():
        return _fast(read_json_object(folder / "tokenizer.json"), f"{folder.name}/tokenizer.json")
    if (folder / "vocab.json").is_file():
        vocabulary = dict(read_json_object(folder / "vocab.json"))
        if (folder / "added_tokens.json").is_file():
            vocabulary |= read_json_object(folder / "added_tokens.json")
        return _checked(vocabulary, f"{folder.name}/vocab.json")
    if (folder / "vocab.txt").is_file():
        lines = read_lines(folder / "vocab.txt", MAX_JSON_BYTES).split("\n")
        return {token: i for i, token in enumerate(lines) if token}
    return None


def _checked(vocabulary: Mapping[Any, Any], where: str) -> Mapping[str, int]:
    """The same, when it is a table of text → id. Raises FormatError."""
    for token, i in vocabulary.items():
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < MAX_IDS:
            raise FormatError(
                f"the token {quoted(token)} has the id {quoted(i)}",
                where=where,
                expected=f"text, and a whole number below {MAX_IDS}",
                do="Save the tokenizer again, or pass --tokenizer base.",
            )
    return vocabulary


def token_text(token: Any) -> str | None:
    """The text of a token as configs hold it: as text, or as an object with a `content`; None where it is neither."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def has_template(folder: Path, files: tuple[str, ...]) -> bool:
    """True when the folder's tokenizer brings a chat template of its own, as a file or inside its config."""
    if TEMPLATE_FILES & set(files):
        return True
    return "tokenizer_config.json" in files and "chat_template" in read_json_object(folder / "tokenizer_config.json")


def _fast(tokenizer: Mapping[str, Any], where: str) -> Mapping[str, int]:
    """Vocabulary of a tokenizer.json: the model's tokens and the added ones."""
    try:
        model = tokenizer["model"]["vocab"]
        tokens = dict(model) if isinstance(model, dict) else {entry[0]: i for i, entry in enumerate(model)}
        tokens |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(
            f"not a tokenizer file: {quoted(repr(error))}",
            where=where,
            expected='"model" with "vocab", and "added_tokens"',
            do="Save the tokenizer again, or pass --tokenizer base.",
        ) from error
    return _checked(tokens, where)
