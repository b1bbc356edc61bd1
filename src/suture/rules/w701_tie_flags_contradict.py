"""# W701 tie-flags-contradict

## What it finds
A config that says "tied" where the files hold an embedding and a head with different values; a config that says
"untied" where the files hold no head; and a config that says one thing at the top and another in `text_config`.

## Why it matters
In a model with tied embeddings one matrix turns tokens into vectors at the start and vectors into tokens at the end.
`tie_word_embeddings` in config.json decides whether a loader makes one matrix of the two. If it says tied and the two
were trained apart, a loader keeps one and throws the other away, without an error: the model was right in memory and
babbles after it is loaded. If it says untied and there is no head, the head is drawn at random. In models that see or
hear, the text part has a config of its own with the same flag, and some programs read only that one.

## How it is detected
The flag is read at every level of config.json, with the default of the model class where a level is silent. The two
tensors are compared in 64 samples of their bytes, up to the first difference; with `--deep` to the last byte, which
finds two that differ in a few rows only. Equal tensors are healthy whatever the flag says.

## How to fix
If both matrices are meant: set `tie_word_embeddings` to false at every level that is named. If they should be one:
save the model again from its training, tied. If the head is missing: merge again, with a tool that writes it.

## References
- huggingface/transformers#45127: a merged model whose head is thrown away on loading
- huggingface/peft#2777: tied layers trained apart
- unslothai/unsloth#3444: embeddings of a merged model
"""

from __future__ import annotations

from collections.abc import Iterable

from suture.model_folder import ModelFolder
from suture.rules.base import Rule, listed
from suture.values import Finding

TOP = ("tie_word_embeddings",)


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """Ends that differ and are said to be one, and a head that is said to be there and is not."""
    if model.arch is None:
        return
    apart = [pair for pair, equal in model.same.items() if not equal]
    on = sorted(".".join(path) for path, value in model.flags.items() if value)
    tied = [tie.members for tie in model.arch.ties]
    for pair in apart:
        is_known = model.arch.source != "headers" or bool(on)
        is_tied = is_known and any(_all_stored(model, members, pair) for members in tied)
        if is_tied or on:
            yield _apart(pair, on, is_tied)
    yield from _headless(model)


def lost_head(model: ModelFolder) -> str | None:
    """The weight of the head, where the class has one of its own and no file holds it."""
    head = f"{model.arch.output_embedding}.weight" if model.arch else ""
    return head if head in model.missing else None


def _all_stored(model: ModelFolder, members: tuple[str, ...], pair: tuple[str, str]) -> bool:
    names = {tensor.name for member in members if (tensor := model.tensor_of(member))}
    return set(pair) <= names


def _apart(pair: tuple[str, str], on: list[str], is_tied: bool) -> Finding:
    said = f"{listed(on)} {'says' if len(on) == 1 else 'say'}" if on else "by default the class of the model says"
    if is_tied:
        found = f"{said} that {pair[0]} and {pair[1]} are one tensor; both are stored, and they differ"
        do = "If both are meant, set the flag to false at every level. A loader now keeps one and drops the other."
        return RULE.finding(f"config.json: {on[0] if on else TOP[0]}", found, "false, or two equal tensors", do)
    found = f"{said} tied, the level that Transformers reads says untied, and {pair[0]} and {pair[1]} differ"
    do = "Set the flag to false there too: programs that read only this level drop the head."
    return RULE.finding(f"config.json: {on[0]}", found, "false at every level", do, severity="warning")


def _headless(model: ModelFolder) -> Iterable[Finding]:
    off = sorted(".".join(path) for path, value in model.flags.items() if not value)
    where = f"config.json: {off[0] if off else TOP[0]}"
    if head := lost_head(model):
        found = f"the model is untied, and no file holds {head}: the loader draws it at random"
        do = "Write the head into the files; or, if the model was trained tied, set the flag to true."
        yield RULE.finding(where, found, f"{head} in the files", do)
    elif off and any(model.flags.values()) and not model.same:
        found = f"{off[0]} says untied, another level says tied, and the files hold one tensor for both ends"
        do = "Set the flag to true at every level: programs that read only this one look for a head in vain."
        yield RULE.finding(where, found, "the same at every level", do, severity="warning")


RULE = Rule("W701", "tie-flags-contradict", "error", model=check_model, modes=("F01",))
