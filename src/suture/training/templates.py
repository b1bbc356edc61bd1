"""Conversations as tokens: the chat template renders them, and the answers in them are found.

The whole conversation is rendered and tokenised once, as at inference; which tokens are answers comes from, in this
order: the template's own {% generation %} markers; the renderings of the conversation's beginnings, where they are
prefixes of the whole; TRL's training version of a known template.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from suture.errors import InputError
from suture.training.rows import SHOWN, Row, Table

# Some templates write today's date, which would make the tokens of a run depend on the day.
_DATE = "26 Jul 2024"
_FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{ '2024-07-26' if form.startswith('%Y-') else '26 July 2024' if '%B' in form "
    "else '" + _DATE + "' }}{%- endmacro -%}"
)
_BREAKS = (TemplateError, TypeError, ValueError, KeyError)  # what rendering raises on messages that do not suit it


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised example and which of its tokens the loss counts on."""

    ids: list[int]
    counted: list[bool]


class _NotPrefix(Exception):
    """The rendering of a conversation's beginning is not the beginning of its rendering."""


@dataclass(frozen=True, slots=True)
class _Chat:
    """How this run renders: a tokenizer, and a template that stands in for the tokenizer's own."""

    tokenizer: Any
    template: str | None = None

    def text(self, row: Row, upto: int | None = None, *, prompt: bool = False) -> str:
        """The rendering of the first messages, with the beginning of an answer where `prompt`."""
        messages = row.values["messages"][:upto]
        rendered: str = self.tokenizer.apply_chat_template(
            messages,
            tools=row.values["tools"],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return rendered

    def marked(self, row: Row) -> Tokens:
        """Tokens of a conversation, counted between the template's markers."""
        out = self.tokenizer.apply_chat_template(
            row.values["messages"],
            tools=row.values["tools"],
            chat_template=self.template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return Tokens(list(out["input_ids"]), [bool(mark) for mark in out["assistant_masks"]])

    def by_prefixes(self, row: Row) -> Tokens:
        """Tokens of a conversation, counted where the renderings of its beginnings say that an answer is."""
        whole, spans = self.text(row), []
        for number, message in enumerate(row.values["messages"]):
            if message["role"] == "assistant":
                start, end = self._span(row, number, whole)
                said = message.get("content")
                if isinstance(said, str) and said.strip()[-20:] not in whole[start:end]:
                    raise ValueError(f"what message {number + 1} says is not in the text that the template makes of it")
                spans.append((start, end))
        out = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        inside = [any(start <= at < end for start, end in spans) for at, _ in out["offset_mapping"]]
        return Tokens(list(out["input_ids"]), inside)

    def _span(self, row: Row, number: int, whole: str) -> tuple[int, int]:
        """Where an answer is in the text, its end included; _NotPrefix where that cannot be known."""
        try:
            begin, end = self.text(row, number, prompt=True), self.text(row, number + 1)
        except _BREAKS:
            raise _NotPrefix from None
        if not whole.startswith(end):  # some templates end the last message, whichever it is, with the end of a text
            end = end.removesuffix(self.tokenizer.eos_token or "")
        if not (whole.startswith(begin) and whole.startswith(end) and len(begin) < len(end)):
            raise _NotPrefix
        return len(begin), len(end)

    def everything(self, row: Row) -> Tokens:
        """Tokens of a conversation, all counted."""
        ids = list(self.tokenizer(self.text(row), add_special_tokens=False)["input_ids"])
        return Tokens(ids, [True] * len(ids))


def tokenize_chats(table: Table, tokenizer: Any, loss_on: str, notes: list[str]) -> list[Tokens]:
    """Every conversation as tokens; InputError names conversations that the template refuses."""
    template = _template(tokenizer, notes)
    chat = _Chat(tokenizer, template)
    if loss_on == "all":
        return _all(table, chat.everything)
    _need_offsets(tokenizer)
    if _has_markers(template):
        notes.append("answers are what the chat template marks as generated")
        return _ended(_all(table, chat.marked), tokenizer, notes)
    try:
        return _ended(_all(table, chat.by_prefixes), tokenizer, notes)
    except _NotPrefix:
        trained = _Chat(tokenizer, _training_template(tokenizer, table.source))
    different = sum(chat.text(row) != trained.text(row) for row in table.rows)
    notes.append(
        "answers are found by TRL's training version of this chat template, which renders "
        f"{different} of {len(table.rows)} conversations differently from the tokenizer's own"
    )
    return _ended(_all(table, trained.marked), tokenizer, notes)


def _all(table: Table, tokens: Callable[[Row], Tokens]) -> list[Tokens]:
    """Tokens of all rows, or one error that names the rows that the template refuses."""
    done, wrong = [], []
    for row in table.rows:
        try:
            done.append(tokens(row))
        except _BREAKS as error:
            wrong.append(f"row {row.number}: {' '.join(str(error).split()) or type(error).__name__}")
    if wrong:
        more = [f"… and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise InputError(
            f"the chat template refuses {len(wrong)} of {len(table.rows)} conversations\n  "
            + "\n  ".join([*wrong[:SHOWN], *more]),
            where=table.source,
            expected="messages in an order and of a form that the template knows",
            do="correct these rows, or set data.template to another template",
        )
    return done


def _template(tokenizer: Any, notes: list[str]) -> str:
    """The default template, with a fixed date."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InputError(
            "the tokenizer has no chat template",
            where=_name(tokenizer),
            expected="one, because the examples are conversations",
            do="set data.template to a file with a Jinja chat template, or train from the model's chat version",
        )
    if "strftime_now" in template:
        notes.append(
            f"the chat template writes today's date; {_DATE} stands in its place, so that runs can be repeated"
        )
    return _dated(str(template))


def _dated(template: str) -> str:
    """A template that writes the same date every day."""
    return _FIXED_DATE + template if "strftime_now" in template else template


def _has_markers(template: str) -> bool:
    """Whether a template says itself what is generated."""
    return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", template) is not None


def _need_offsets(tokenizer: Any) -> None:
    """InputError where the tokenizer cannot say which characters a token stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "the tokenizer does not say where its tokens are in the text",
            where=_name(tokenizer),
            expected="a tokenizer with a tokenizer.json",
            do="set data.loss_on to all, or use data of the format prompt",
        )


def _training_template(tokenizer: Any, source: str) -> str:
    """TRL's version of the tokenizer's template with markers; InputError where it has none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        template = get_training_chat_template(tokenizer)
    except (*_BREAKS, AttributeError):
        template = None
    if template is None:
        raise InputError(
            f"the chat template of {_name(tokenizer)} renders a conversation's beginning otherwise than the whole, so "
            "that answers cannot be told from the rest",
            where=source,
            expected="a template with {% generation %} … {% endgeneration %} around what the assistant says",
            do="set data.template to such a template, or data.loss_on to all",
        )
    return _dated(str(template))


def _name(tokenizer: Any) -> str:
    """What a message calls a tokenizer."""
    return str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")


def _ended(examples: Sequence[Tokens], tokenizer: Any, notes: list[str]) -> list[Tokens]:
    """Answers that end with the token that ends a turn: with it, and without the white space behind it."""
    special = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
    blank = {i for example in examples for i in set(example.ids) if not tokenizer.decode([i]).strip()}
    done, seen = [], Counter[str]()
    for example in examples:
        counted = list(example.counted)
        for start, end in _runs(counted):
            seen[_end(example.ids, counted, (start, end), special, blank, tokenizer.eos_token_id)] += 1
        done.append(Tokens(example.ids, counted))
    if seen["extended"]:
        notes.append(f"{seen['extended']} answers were marked without the token that ends them; it counts as well")
    if seen["open"]:
        notes.append(f"{seen['open']} answers have no token that ends them: there the model does not learn to stop")
    return done


def _end(
    ids: Sequence[int], counted: list[bool], run: tuple[int, int], special: set[int], blank: set[int], eos: int | None
) -> str:
    """Set the end of one answer in `counted`; says what was done."""
    start, end = run
    last = end - 1
    while last > start and ids[last] in blank and ids[last] not in special:
        last -= 1
    if ids[last] in special:
        counted[last + 1 : end] = [False] * (end - last - 1)
        return "ended"
    if end < len(ids) and ids[end] == eos:
        counted[end] = True
        return "extended"
    return "open"


def _runs(counted: Sequence[bool]) -> list[tuple[int, int]]:
    """Where counted tokens stand together."""
    edges = [i for i in range(len(counted) + 1) if (i > 0 and counted[i - 1]) != (i < len(counted) and counted[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def with_template(tokenizer: Any, text: str) -> Any:
    """A tokenizer that is the same but for its chat template."""
    changed = copy.copy(tokenizer)
    changed.chat_template = text
    return changed
