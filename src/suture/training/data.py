"""From files to training examples: read, tokenise, cut, split and pack, and say everything that was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from suture.errors import InputError
from suture.training.batches import IGNORED, LEAK_LIMIT, Example, collate, pack, packing_leaks
from suture.training.config import DataConfig
from suture.training.rows import Format, Table, read_table
from suture.training.templates import Tokens, tokenize_chats, with_template

__all__ = ["IGNORED", "LEAK_LIMIT", "Example", "Prepared", "collate", "packing_leaks", "prepare"]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What a run trains and evaluates on."""

    train: tuple[Example, ...]
    eval: tuple[Example, ...]
    sha256: str  # over ids, labels and starts of all examples in order
    notes: tuple[str, ...]  # what was chosen, cut and left out, in words
    format: Format


def prepare(config: DataConfig, tokenizer: Any, seed: int) -> Prepared:
    """Examples of a run; the same for the same files, settings, tokenizer and seed.

    InputError where a file cannot be read, rows are unusable, or nothing is left to learn from.
    """
    notes: list[str] = []
    table = read_table(config.train, config)
    notes.append(f"{len(table.rows)} examples of the format {table.format} in {table.source}")
    train, held = _split(table, config, seed, notes)
    if config.eval is not None:
        held = read_table(config.eval, config)
        notes.append(f"{len(held.rows)} examples of the format {held.format} in {held.source}, for evaluation")
    rows = [_examples(part, role, tokenizer, config, notes) for part, role in ((train, "train"), (held, "eval"))]
    _note_shared(rows[0], rows[1], notes)
    if config.packing:
        rows = [_packed(part, role, config, seed, notes) for part, role in zip(rows, ("train", "eval"), strict=True)]
    unique = tuple(dict.fromkeys(notes))
    return Prepared(rows[0], rows[1], _digest(rows), unique, table.format)


def templated(config: DataConfig, tokenizer: Any) -> Any:
    """The tokenizer with the chat template that the config names, which is then saved with the adapter."""
    return tokenizer if config.template is None else with_template(tokenizer, _read_template(config.template))


def _read_template(path: Path) -> str:
    """The text of the chat template that the config names."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), expected="a Jinja chat template") from None


def _split(table: Table, config: DataConfig, seed: int, notes: list[str]) -> tuple[Table, Table]:
    """Rows to train on and rows held out, both in the order of the file."""
    n, n_held = len(table.rows), 0
    if config.eval is None and config.eval_share > 0:
        n_held = min(max(round(config.eval_share * n), 1), n - 1)
        notes.append(f"{n_held} of {n} examples are held out for evaluation")
    held = set(np.random.Generator(np.random.PCG64(seed)).permutation(n)[:n_held].tolist())
    parts = ([row for i, row in enumerate(table.rows) if (i in held) == wanted] for wanted in (False, True))
    train, test = (Table(table.source, table.format, tuple(part)) for part in parts)
    return train, test


def _examples(table: Table, role: str, tokenizer: Any, config: DataConfig, notes: list[str]) -> tuple[Example, ...]:
    """Tokenised examples of at most max_length tokens, with something to learn in each."""
    if not table.rows:
        return ()
    tokens = _tokenize(table, tokenizer, config.loss_on, notes)
    done, seen, numbers = [], Counter[str](), []
    for row, item in zip(table.rows, tokens, strict=True):
        n = len(item.ids)
        if n > config.max_length:
            seen["long"] += 1
            seen["cut"] += n - config.max_length
            numbers.append(row.number)
            if config.too_long != "truncate":
                continue
        example = _example(item, config.max_length)
        if example.n_counted:
            done.append(example)
        else:
            seen["empty"] += 1
    _report(seen, numbers, role, table, config, notes)
    if not done:
        raise InputError(
            f"none of {len(table.rows)} examples has a token to learn within {config.max_length} tokens",
            where=table.source,
            expected=f"at least one to {'train on' if role == 'train' else 'evaluate on'}",
            do="raise data.max_length, or look at data.format and data.loss_on",
        )
    return tuple(done)


def _report(
    seen: Counter[str], numbers: Sequence[int], role: str, table: Table, config: DataConfig, notes: list[str]
) -> None:
    """Notes on what was cut or dropped, or InputError where long examples are refused."""
    n, limit = len(table.rows), config.max_length
    if seen["long"] and config.too_long == "refuse":
        raise InputError(
            f"{seen['long']} of {n} examples have more than {limit} tokens, the first in row {numbers[0]}",
            where=table.source,
            expected=f"at most data.max_length = {limit}",
            do="raise data.max_length, or set data.too_long to truncate or drop",
        )
    if seen["long"] and config.too_long == "drop":
        notes.append(f"{role}: {seen['long']} of {n} examples with more than {limit} tokens were dropped")
    if seen["long"] and config.too_long == "truncate":
        notes.append(f"{role}: {seen['long']} of {n} examples were cut to {limit} tokens; {seen['cut']} tokens lost")
    if seen["empty"]:
        notes.append(f"{role}: {seen['empty']} of {n} examples were dropped: no token within {limit} counts")


def _example(tokens: Tokens, max_length: int) -> Example:
    """Ids and labels, cut at the end. Nothing predicts the first token, so the loss never counts on it."""
    ids = np.array(tokens.ids[:max_length], dtype=np.int32)
    counted = np.array(tokens.counted[:max_length], dtype=bool)
    counted[:1] = False
    return Example(ids, np.where(counted, ids, np.int32(IGNORED)))


def _packed(
    examples: tuple[Example, ...], role: str, config: DataConfig, seed: int, notes: list[str]
) -> tuple[Example, ...]:
    """Rows of several examples."""
    if not examples:
        return ()
    rows = pack(examples, config.max_length, seed)
    full = sum(len(row.input_ids) for row in rows) / (len(rows) * config.max_length)
    notes.append(f"{role}: {len(examples)} examples packed into {len(rows)} rows, {full:.0%} full")
    return rows


def _note_shared(train: Iterable[Example], held: Sequence[Example], notes: list[str]) -> None:
    """A note where evaluation would ask for what was learnt by heart."""
    known = {example.input_ids.tobytes() for example in train}
    n = sum(example.input_ids.tobytes() in known for example in held)
    if n:
        notes.append(f"eval: {n} of {len(held)} examples are in train as well, word for word")


def _digest(parts: Iterable[Sequence[Example]]) -> str:
    """sha256 over all examples; lengths stand before values, so that no two lists of examples look alike."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.int64(len(part)).astype("<i8").tobytes())
        for example in part:
            sizes = [len(example.input_ids), len(example.starts), *example.starts]
            for values in (sizes, example.input_ids, example.labels):
                digest.update(np.asarray(values).astype("<i8").tobytes())
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- tokenising


def _tokenize(table: Table, tokenizer: Any, loss_on: str, notes: list[str]) -> list[Tokens]:
    """All rows as tokens."""
    if table.format == "chat":
        return tokenize_chats(table, tokenizer, loss_on, notes)
    before, eos = _before(tokenizer), tokenizer.eos_token_id
    if eos is None:
        notes.append("the tokenizer has no token for the end of a text: the model does not learn to stop")
    apart, done = 0, []
    for row in table.rows:
        prompt = str(row.values.get("prompt", ""))
        answer = str(row.values["completion" if table.format == "prompt" else "text"])
        head, tail, together = _two(tokenizer, prompt, answer)
        apart += not together
        if eos is not None and tail[-1:] != [eos]:
            tail.append(eos)
        learn_head = table.format == "text" or loss_on == "all"
        done.append(Tokens([*before, *head, *tail], [learn_head] * (len(before) + len(head)) + [True] * len(tail)))
    if apart:
        notes.append(
            f"{apart} completions were tokenised apart from their prompts, because a token would span the border, "
            "which does not happen at inference"
        )
    return done


def _two(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int], bool]:
    """Tokens of a prompt and of its answer, and whether they were tokenised as one text."""
    alone = list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) if prompt else []
    whole = list(tokenizer(prompt + answer, add_special_tokens=False)["input_ids"])
    if whole[: len(alone)] == alone:
        return alone, whole[len(alone) :], True
    return alone, list(tokenizer(answer, add_special_tokens=False)["input_ids"]), False


def _before(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before every text, such as the one for its beginning."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    return next((full[:i] for i in range(len(full)) if full[i : i + len(plain)] == plain), [])
