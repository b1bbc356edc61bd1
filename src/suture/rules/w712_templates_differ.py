"""# W712 templates-differ

## What it finds
A chat template that stands in two places with two texts: in `chat_template.jinja` and inside tokenizer_config.json.

## Why it matters
A chat model answers well only in the format that it was trained in. Current versions of Transformers take the file,
older ones and other programs take the text in the config. With two texts, the model is asked in the trained format by
one program and in another by the next.

## How it is detected
Both texts are compared, without blanks at their ends. `chat_template.json`, which processors write, is a third place.

## How to fix
Find out which text training used (the tokenizer in the last checkpoint of the run has it), and delete the other one.

## References
- hiyouga/LLaMA-Factory#3370: templates that are not carried into a merged model
- Transformers' documentation, "Chat templates": where templates are stored
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from suture.model_folder import TEMPLATE, ModelFolder
from suture.rules.base import Rule
from suture.values import Finding


def check_model(model: ModelFolder) -> Iterable[Finding]:
    """One finding for each place whose text is not that of the first."""
    places = {TEMPLATE: model.template}
    for file in ("tokenizer_config.json", "chat_template.json"):
        places[f"{file}: chat_template"] = _default(model.documents.get(file, {}).get("chat_template"))
    texts = {place: text.strip() for place, text in places.items() if text is not None}
    first = next(iter(texts), "")
    for place, text in texts.items():
        if text != texts[first]:
            found = f"a template of {len(text):,} characters; {first} has another one, of {len(texts[first]):,}"
            do = "Keep the one that training used, and delete the other."
            yield RULE.finding(place, found, "one chat template, or the same text twice", do)


def _default(value: Any) -> str | None:
    """The template that is used without a name, of a text or of a list of named ones."""
    if isinstance(value, list):
        named = [entry for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0].get("template") if named else None
    return value if isinstance(value, str) else None


RULE = Rule("W712", "templates-differ", "warning", model=check_model, modes=("F47",))
