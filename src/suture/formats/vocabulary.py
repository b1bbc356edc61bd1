"""The vocabulary of a tokenizer, from its files alone: token → id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suture.errors import FormatError
from suture.formats.jsonfile import read_json_object

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
        return vocabulary
    if (folder / "vocab.txt").is_file():
        return {token: i for i, token in enumerate(_lines(folder / "vocab.txt")) if token}
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise FormatError(f"not UTF-8 text: {error}", where=str(path), expected="one token a line") from error


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
        return tokens | {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(
            f"not a tokenizer file: {error!r}",
            where=where,
            expected='"model" with "vocab", and "added_tokens"',
            do="Save the tokenizer again, or pass --tokenizer base.",
        ) from error
