"""# T406 special-tokens-differ

## What it finds
A tokenizer, brought by the adapter, whose end, begin or padding token is another one than the base's settings name; or
which has no chat template while the base's has one.

## Why it matters
The merged model takes its generation settings from the base. If training taught the model to end its answers with
another token than the base's `eos_token_id`, generation does not stop there: it runs on, often with a new question that
it asks itself. A chat template that got lost makes every chat fail, or fall back to another format than the model was
trained on.

## How it is detected
The ids of the special tokens in the adapter's `tokenizer_config.json` are compared with `generation_config.json` and
`config.json` of the base. An end token that is among several of the base's is right; so is one that the base's own
tokenizer has too, since the adapter then changed nothing. A padding token where the base names none is the trainer's
habit and no finding. Another begin or padding token is an info.

## How to fix
After the merge, set `eos_token_id` in `generation_config.json` to the id that the finding names (a list may hold both),
or merge with `--tokenizer base` if the base's tokens were trained. Copy `chat_template.jinja` into the adapter's
folder, or save the tokenizer with its template.

## References
- hiyouga/LLaMA-Factory#4408: tokens that differ after an export
- unslothai/unsloth#188: templates and end tokens after saving
- https://huggingface.co/docs/trl/sft_trainer: eos_token of the trainer
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.rules.base import Case, Rule
from suture.values import Finding

WORDS = {"eos_token": "end", "bos_token": "begin", "pad_token": "padding"}


def check(case: Case) -> Iterable[Finding]:
    """One finding for each token that differs, and one for a template that is missing."""
    ours, theirs, base_ids = case.beside.base_tokens, case.beside.tokens, case.beside.base_ids
    if theirs is None:
        return
    for name, token in theirs.ids.items():
        wanted = base_ids.get(name, ())
        if wanted and token not in wanted and (ours is None or ours.ids.get(name) != token):
            yield _differs(case, name, token, wanted)
    if ours is not None and ours.has_template and not theirs.has_template:
        yield RULE.finding(
            f"{case.adapter.folder.name}: tokenizer_config.json",
            "the adapter's tokenizer has no chat template, the base's has one",
            "a template, if the model is to chat",
            "Put the template that was used in training beside the adapter, or merge with --tokenizer base.",
            severity="info",
        )


def _differs(case: Case, name: str, token: int, wanted: tuple[int, ...]) -> Finding:
    is_end = name == "eos_token"
    stops = "the merged model would not stop at it" if is_end else "the merged model keeps the base's"
    return RULE.finding(
        f"{case.adapter.folder.name}: tokenizer_config.json: {name}",
        f"the {WORDS[name]} token of the adapter's tokenizer has id {token}; {stops}",
        f"{' or '.join(map(str, wanted))}, as the base's generation_config.json or config.json says",
        f"Set {name}_id in generation_config.json of the merged model, if {token} is what was trained.",
        severity="warning" if is_end else "info",
    )


RULE = Rule("T406", "special-tokens-differ", "warning", check, modes=("F47",))
